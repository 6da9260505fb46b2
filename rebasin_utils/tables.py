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
from scipy import stats

from rebasin_utils import masks
from rebasin_utils.errors import InputError
from rebasin_utils.permutation import permute, random_permutation
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


def paths(study: Study) -> pd.DataFrame:
    """Test accuracy and loss between A and B: path, seed, alpha, accuracy, loss."""
    rows = []
    for seed in range(study.settings.seeds):
        metrics = dict(study.load(study.plan.connectivity(seed)).record["metrics"])
        alphas = metrics.pop("alphas")
        rows += [
            {"path": path, "seed": seed, "alpha": alpha, **point}
            for path, points in metrics.items()
            for alpha, point in zip(alphas, points, strict=True)
        ]
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
    half = stats.t.ppf(0.975, len(values) - 1) * values.sem()
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
