"""Tidy tables of a study's results: grids, paths, trajectories, paired differences.

Differences between methods are paired: the two runs share the pair A–B, the rewind state where they
share the net, and the data order. Intervals are 95 % t-intervals over the pairs; differences are in
percentage points (pp) of test accuracy.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pandas as pd
import torch
from scipy.special import stdtrit

from rebasin_utils import masks
from rebasin_utils.diversity import METRICS
from rebasin_utils.errors import InputError
from rebasin_utils.interpolation import barrier
from rebasin_utils.permutation import Permutation, permute, random_permutation
from rebasin_utils.plan import derive_seed
from rebasin_utils.settings import METHODS
from rebasin_utils.study import Study

#: What a reader sees in place of the name in the table.
METHOD_NAMES = {
    "dense": "dense",
    "imp": "IMP",
    "lth": "LTH: A with its mask",
    "permuted": "permuted: B with π(mask)",
    "naive": "naive: B with A's mask",
    "random_permutation": "B with random π(mask)",
    "random_mask": "B with a random mask",
}


def accuracy_grid(results: pd.DataFrame) -> pd.DataFrame:
    """Mean test accuracy in %; rows are (sparsity, rewind epoch), columns the sparse methods."""
    sparse = _sparse(results)
    grid = sparse.pivot_table("test_accuracy", ["sparsity", "rewind_epoch"], "method") * 100
    return grid[[m for m in METHODS if m in grid]].rename_axis(columns=None)


def _converged(results: pd.DataFrame) -> pd.DataFrame:
    """Without the diverged runs, which have no accuracy to speak of; says how many they are."""
    diverged = int(results["diverged"].sum())
    if diverged:
        warnings.warn(f"{diverged} diverged runs are left out of the means", stacklevel=3)
    return results[~results["diverged"]]


def _sparse(results: pd.DataFrame) -> pd.DataFrame:
    """The sparse runs of one study; means over different nets would say nothing."""
    if len(results[["dataset", "model", "width"]].drop_duplicates()) > 1:
        raise InputError("the results are of several studies: choose one data set, model and width")
    return _converged(results[results["rewind_epoch"].notna()])


def summary(results: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean and sample standard deviation of the test accuracy in %, and n, for every group."""
    cells = _converged(results).groupby(list(by), dropna=False, sort=False)["test_accuracy"]
    table = cells.agg(mean="mean", std="std", n="count").reset_index()
    return table.assign(mean=100 * table["mean"], std=100 * table["std"])


def gap_closed(results: pd.DataFrame, method: str, sparsity: float) -> float:
    """Share of the gap between naive and LTH that `method` closes, from the means over k ≥ 1."""
    sparse = _sparse(results)
    later = sparse[(sparse["rewind_epoch"] >= 1) & (sparse["sparsity"] == sparsity)]
    mean = later.groupby("method")["test_accuracy"].mean()
    return (mean[method] - mean["naive"]) / (mean["lth"] - mean["naive"])


def paths(study: Study, split: str = "test") -> pd.DataFrame:
    """Accuracy and loss between A and B: path, seed, alpha, accuracy, loss.

    path: `unmatched` or `matched`, and what was done to the merged net, if anything: `_bn_reset` or
    `_repair`. split: "test" or "train".
    """
    rows = []
    for seed in range(study.settings.seeds):
        metrics = study.load(study.plan.connectivity(seed)).record["metrics"]
        rows += [
            {"path": _path_name(path), "seed": seed, "alpha": alpha, **point}
            for path in metrics["paths"]
            if path["split"] == split
            for alpha, point in zip(metrics["alphas"], path["points"], strict=True)
        ]
    return pd.DataFrame(rows)


def _path_name(path: dict) -> str:
    correction = path["correction"]
    return path["path"] if correction == "none" else f"{path['path']}_{correction}"


def variances(study: Study, split: str = "test") -> pd.DataFrame:
    """Variance of every layer halfway from A to B, relative to the ends': seed, path, layer, ratio.

    Below 1 it has collapsed (Jordan et al. 2023, Section 3).

    split: measured on "test" images, or on the "train" images that the corrections measured, too.
    """
    rows = [
        {"seed": seed, "path": _path_name(each), "layer": each["layer"], "ratio": each["ratio"]}
        for seed in range(study.settings.seeds)
        for each in study.load(study.plan.connectivity(seed)).record["metrics"]["variances"]
        if each["split"] == split
    ]
    return pd.DataFrame(rows)


def barriers(study: Study) -> pd.DataFrame:
    """Barriers between A and B (equation 3): path, split, seed, loss (nats), error (pp)."""
    rows = []
    for split in ("test", "train"):
        for (path, seed), at in paths(study, split).groupby(["path", "seed"], sort=False):
            both = _barriers(at["alpha"], at["accuracy"], at["loss"])
            rows.append({"path": path, "split": split, "seed": seed, **both})
    return pd.DataFrame(rows)


def segments(study: Study) -> pd.DataFrame:
    """Barriers between two solutions of net A, on test images.

    Returns:
        kind (of `plan.SEGMENTS`), seed, sparsity, rewind_epoch (of the LTH end), correction, loss
        (nats), error (pp).
    """
    rows = []
    for node in study.plan.nodes("segment"):
        metrics = study.load(node).record["metrics"]
        for path in metrics["paths"]:
            points = pd.DataFrame(path["points"])
            rows.append(
                {
                    "kind": node.variant,
                    "seed": node.seed,
                    "sparsity": node.sparsity,
                    "rewind_epoch": node.rewind_epoch,
                    "correction": path["correction"],
                    **_barriers(metrics["alphas"], points["accuracy"], points["loss"]),
                }
            )
    return pd.DataFrame(rows).astype({"rewind_epoch": "Int64"})


def _barriers(
    alphas: Sequence[float], accuracies: Sequence[float], losses: Sequence[float]
) -> dict[str, float]:
    alphas, errors = list(alphas), [100 * (1 - a) for a in accuracies]
    return {"loss": barrier(list(losses), alphas), "error": barrier(errors, alphas)}


def early_matching(study: Study) -> pd.DataFrame:
    """Permuted runs at the settings' cell whose π was matched with an early B, and their measure.

    Returns:
        sparsity, seed, method (permuted, naive or lth), match_epoch (of permuted; the last is that
        of the grid), test_accuracy, agreement (share of the units that this π and the grid's send
        to the same place).
    """
    s, plan, rows = study.settings, study.plan, []
    for seed in range(s.seeds):
        cell, final = (*s.cell, seed), study.permutation(seed)
        runs = [
            ("permuted", t, plan.sparse("permuted", *cell, match_epoch=t)) for t in s.match_epochs
        ]
        runs += [("permuted", s.dense.epochs, plan.sparse("permuted", *cell))]
        runs += [(m, None, plan.sparse(m, *cell)) for m in ("naive", "lth") if m in s.methods]
        for method, epoch, node in runs:
            found = study.load(node.parents[2]).tensors if method == "permuted" else None
            rows.append(
                {
                    "sparsity": s.cell[0],
                    "seed": seed,
                    "method": method,
                    "match_epoch": epoch,
                    "test_accuracy": study.load(node).record["metrics"]["test_accuracy"],
                    "agreement": _agreement(found, final) if found else None,
                }
            )
    return pd.DataFrame(rows).astype({"match_epoch": "Int64"})


def bill(study: Study) -> pd.DataFrame:
    """What a sparse net B at the settings' cell costs its owner: mask, match_epoch, epochs.

    Of A and its ticket nothing is counted. B is trained until it is both matched and rewound to.
    """
    s = study.settings
    last, start = s.dense.epochs, s.cell[1]
    own = study.plan.ticket("B", 0, s.cell[0]).round.number * s.imp.epochs
    rows = [("A's, naive", None, start)]
    rows += [("A's, permuted", t, max(t, start)) for t in (*s.match_epochs, last)]
    rows += [("B's own, by IMP", None, last + own)]
    table = pd.DataFrame(rows, columns=["mask", "match_epoch", "epochs"])
    return table.astype({"match_epoch": "Int64"}).assign(epochs=table["epochs"] + last - start)


def _agreement(first: Permutation, second: Permutation) -> float:
    same = sum((first[name] == second[name]).sum().item() for name in second)
    return same / sum(len(index) for index in second.values())


def ensembles(study: Study) -> pd.DataFrame:
    """Every method's ensemble at the settings' cell: one row a method and source of the ticket.

    Returns:
        method, seed, n, accuracy (mean of the members, %), ensemble (accuracy, %), and
        `diversity.METRICS`, each the mean over all pairs of members.
    """
    rows = []
    for node in study.plan.nodes("diversity"):
        found = study.load(node).record["metrics"]
        rows.append(
            {
                "method": node.variant,
                "seed": node.seed,
                "n": len(found["accuracies"]),
                "accuracy": 100 * pd.Series(found["accuracies"]).mean(),
                "ensemble": 100 * found["ensemble"],
                **pd.DataFrame(found["pairs"])[list(METRICS)].mean(),
            }
        )
    return pd.DataFrame(rows)


def midpoints(study: Study) -> pd.DataFrame:
    """Accuracy in % halfway between A and B: one row a kind of path; mean, std, n over pairs."""
    table = paths(study)
    at = 100 * table[table["alpha"] == 0.5].set_index("path")["accuracy"]
    summary = at.groupby("path", sort=False).agg(mean="mean", std="std", n="count")
    return summary.reset_index().assign(model=study.settings.model, width=study.settings.width)


def rounds(study: Study, role: str = "A") -> pd.DataFrame:
    """The pruning trajectory: seed, round, sparsity, test_accuracy; round 0 is the dense net."""
    rows = []
    for seed in range(study.settings.seeds):
        nodes = [study.plan.dense(role, seed)]
        nodes += [study.plan.imp(role, seed, step) for step in study.plan.rounds]
        for node in nodes:
            metrics = study.load(node).record["metrics"]
            rows.append(
                {
                    "seed": seed,
                    "round": node.round.number if node.round else 0,
                    "sparsity": metrics["prunable_sparsity"],
                    "test_accuracy": metrics["test_accuracy"],
                }
            )
    return pd.DataFrame(rows).sort_values(["seed", "sparsity"], ignore_index=True)


def overlaps(study: Study) -> pd.DataFrame:
    """Share of A's ticket that B's own pruning keeps, too: sparsity, seed, kind, overlap.

    kind: `mask` as it is, `permuted` by π, or by a `random_permutation`.
    """
    rows = []
    for seed in range(study.settings.seeds):
        generator = torch.Generator().manual_seed(derive_seed("overlaps", seed))
        moves = {
            "permuted": study.permutation(seed),
            "random_permutation": random_permutation(study.spec, generator),
        }
        for sparsity in study.settings.sparsities:
            mask, own = study.mask(seed, sparsity), study.mask(seed, sparsity, role="B")
            kinds = {"mask": mask} | {n: permute(study.spec, p, mask) for n, p in moves.items()}
            rows += [
                {"sparsity": sparsity, "seed": seed, "kind": k, "overlap": masks.overlap(m, own)}
                for k, m in kinds.items()
            ]
    return pd.DataFrame(rows)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % t-interval; the ends are infinite for a single value."""
    values = pd.Series(values, dtype=float)
    if len(values) < 2:
        return values.mean(), float("-inf"), float("inf")
    half = stdtrit(len(values) - 1, 0.975) * values.sem()
    return values.mean(), values.mean() - half, values.mean() + half


def paired_difference(results: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """`first` minus `second` in every (sparsity, rewind epoch), paired over the seeds.

    Returns:
        sparsity, rewind_epoch, difference (mean, pp), low and high (95 % interval), n.

    Raises:
        InputError: when `results` does not hold both methods.
    """
    sparse = _sparse(results)
    runs = sparse.set_index(["sparsity", "rewind_epoch", "seed"]).groupby("method")["test_accuracy"]
    for method in (first, second):
        if method not in runs.groups:
            raise InputError(f"the results hold no runs of {method!r} to compare")
    differences = 100 * (runs.get_group(first) - runs.get_group(second)).dropna()
    rows = [
        (sparsity, int(rewind_epoch), *interval(each), len(each))
        for (sparsity, rewind_epoch), each in differences.groupby(["sparsity", "rewind_epoch"])
    ]
    columns = ["sparsity", "rewind_epoch", "difference", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def gaps(study: Study, sparsity: float, rewind_epoch: int) -> pd.DataFrame:
    """What permuted gains over naive and lacks to LTH in one cell of the grid, pp, by seed.

    Returns:
        columns `permuted − naive` and `LTH − permuted`; none where the study lacks the runs.
    """
    runs = _sparse(study.results())
    at = runs[
        runs["sparsity"].sub(sparsity).abs().lt(1e-9) & (runs["rewind_epoch"] == rewind_epoch)
    ]
    accuracy = 100 * at.pivot_table("test_accuracy", "seed", "method")
    if not {"lth", "permuted", "naive"} <= set(accuracy):
        return pd.DataFrame()
    return pd.DataFrame(
        {
            "permuted − naive": accuracy["permuted"] - accuracy["naive"],
            "LTH − permuted": accuracy["lth"] - accuracy["permuted"],
        }
    )


def gaps_by_width(studies: Sequence[Study], sparsity: float, rewind_epoch: int) -> pd.DataFrame:
    """The means of `gaps` and their 95 % intervals: width, gap, difference, low, high, n."""
    rows = []
    for study in studies:
        for gap, values in gaps(study, sparsity, rewind_epoch).items():
            rows.append((study.settings.width, gap, *interval(values), len(values)))
    return pd.DataFrame(rows, columns=["width", "gap", "difference", "low", "high", "n"])
