"""Results held against the paper: tidy tables, published numbers, paired differences, verdicts.

Differences between methods are paired: the two runs share the pair A–B, the rewind state where they
share the net, and the data order. Intervals are 95 % t-intervals over the pairs; differences are in
percentage points (pp) of test accuracy.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

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

#: The published table that the verdicts quote: ResNet20×1 on CIFAR-10.
QUOTED = "ws_table3_resnet20_w1_cifar10"


def published(name: str) -> pd.DataFrame:
    """One of the published tables, as shipped in `rebasin_utils/published/<name>.csv`."""
    folder = files("rebasin_utils") / "published"
    file = folder / f"{name}.csv"
    if not file.is_file():
        known = sorted(f.name.removesuffix(".csv") for f in folder.iterdir())
        raise InputError(f"published table = {name!r}: choose one of {', '.join(known)}")
    with file.open() as text:
        return pd.read_csv(text)


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


def overlap_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """The claims about `overlaps`, over all its sparsities: claim, paper, ours, n, verdict."""
    cells = 100 * table.pivot_table("overlap", ["sparsity", "seed"], "kind")
    claims = (
        ("π(A's ticket) shares more with B's ticket than A's ticket does", "permuted", "more"),
        ("a random permutation of A's ticket shares no more", "random_permutation", "no_more"),
    )
    rows = []
    for claim, kind, expects in claims:
        differences = (cells[kind] - cells["mask"]).groupby("sparsity")
        each = {s: interval(values) for s, values in differences}
        above = all(low > 0 for _, low, _ in each.values())
        below = any(high < 0 for _, _, high in each.values())
        if expects == "more":
            verdict = "holds" if above else "contradicted" if below else "open"
        else:
            verdict = "contradicted" if any(low > 0 for _, low, _ in each.values()) else "holds"
        ours = "; ".join(
            f"S={s:.0%}: {mean:+.1f} [{low:+.1f}, {high:+.1f}]"
            for s, (mean, low, high) in each.items()
        )
        n = table["seed"].nunique()
        rows.append((claim, "not in the paper", f"{kind} − mask, pp: {ours}", n, verdict))
    return pd.DataFrame(rows, columns=["claim", "paper", "ours", "n", "verdict"])


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


@dataclass(frozen=True)
class Claim:
    """`first` against `second`, by test accuracy, in the cells whose rewind epoch `applies`.

    expects: "more" (the interval of first − second lies above 0), "no_less" (it does not lie below
    0), or "same" (it holds 0).
    """

    text: str
    first: str
    second: str
    expects: Literal["more", "no_less", "same"]
    applies: Callable[[int], bool]
    paper: Callable[[float], str] = lambda sparsity: "not in the paper"

    def verdict(self, cells: pd.DataFrame) -> str:
        """holds, contradicted, or open: the intervals do not decide it, or there is one pair."""
        if cells["n"].min() < 2:
            return "open"
        below, above = (cells["high"] < 0).any(), (cells["low"] > 0).all()
        if self.expects == "same":
            return "contradicted" if below or (cells["low"] > 0).any() else "holds"
        if below:
            return "contradicted"
        return "holds" if above or self.expects == "no_less" else "open"


def _published_difference(
    first: str, second: str, applies: Callable[[int], bool]
) -> Callable[[float], str]:
    def quote(sparsity: float) -> str:
        rows = published(QUOTED)
        rows = rows[(rows["sparsity"] == sparsity) & rows["rewind_epoch"].map(applies)]
        if rows.empty:
            return f"nothing at {sparsity:.0%}"
        means = rows.pivot_table("mean", "rewind_epoch", "method")
        difference = means[first] - means[second]
        return f"{difference.min():+.2f} … {difference.max():+.2f} pp"

    return quote


CLAIMS = (
    Claim(
        "with the permuted mask B trains to a higher accuracy than with the mask as it is (k ≥ 1)",
        "permuted", "naive", "more", lambda k: k >= 1,
        _published_difference("permuted", "naive", lambda k: k >= 5),
    ),
    Claim(
        "LTH, A with its own mask, is at least as good as permuted (all k)",
        "lth", "permuted", "no_less", lambda k: True,
        _published_difference("LTH", "permuted", lambda k: k >= 5),
    ),
    Claim(
        "from the true init (k = 0) permuting the mask makes no difference",
        "permuted", "naive", "same", lambda k: k == 0,
        _published_difference("permuted", "naive", lambda k: k == 0),
    ),
    Claim(
        "a random permutation of the mask is no better than the mask as it is (k ≥ 1)",
        "naive", "random_permutation", "no_less", lambda k: k >= 1,
    ),
    Claim(
        "a random mask with the same layer densities is no better than the mask as it is (k ≥ 1)",
        "naive", "random_mask", "no_less", lambda k: k >= 1,
    ),
)  # fmt: skip


def path_verdicts(study: Study) -> pd.DataFrame:
    """The claims about the point halfway between A and B: claim, paper, ours, n, verdict.

    The paper's column is ResNet20×1 on CIFAR-10 (Jordan et al. 2023, whose matching the paper
    uses); a claim holds when the paired 95 % interval of the difference lies above 0.
    """
    repair = published("ref_repair_resnet20_bn_midpoint").query(
        "dataset == 'CIFAR-10' & width == 1"
    )
    reported = repair.set_index("variant")["test_acc"]
    table = paths(study)
    middle = 100 * table[table["alpha"] == 0.5].pivot_table("accuracy", "seed", "path")
    without, reset = (
        reported["permuted_midpoint_no_bn_reset"],
        reported["permuted_midpoint_bn_reset"],
    )
    claims = [
        ("matching raises the accuracy halfway", "unmatched", "matched", f"to {without:.1f} %"),
        (
            "recomputing batch norm's statistics raises it further",
            "matched",
            "matched_bn_reset",
            f"{without:.1f} → {reset:.1f} %",
        ),
        (
            "without matching, batch norm alone does not explain it",
            "unmatched_bn_reset",
            "matched_bn_reset",
            "not reported",
        ),
    ]
    rows = []
    for claim, before, after, paper in claims:
        if after not in middle:
            continue
        mean, low, high = interval(middle[after] - middle[before])
        verdict = "holds" if low > 0 else "contradicted" if high < 0 else "open"
        ours = (
            f"{middle[before].mean():.1f} → {middle[after].mean():.1f} %, "
            f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] pp"
        )
        rows.append((claim, paper, ours, len(middle), verdict))
    return pd.DataFrame(rows, columns=["claim", "paper", "ours", "n", "verdict"])


def verdicts(results: pd.DataFrame, sparsity: float = 0.90) -> pd.DataFrame:
    """The claims about sparse training at one sparsity: claim, paper, ours, n, verdict.

    The paper's column is ResNet20×1 on CIFAR-10 (its nominal k = 0 is one trained epoch); ours is
    whatever `results` holds, as mean difference and 95 % interval for every k.
    """
    at = results[results["sparsity"].sub(sparsity).abs() < 1e-9]
    there = set(at["method"])
    rows = []
    for claim in CLAIMS:
        if not {claim.first, claim.second} <= there:
            continue
        cells = paired_difference(at, claim.first, claim.second)
        cells = cells[cells["rewind_epoch"].map(claim.applies)]
        if cells.empty:
            continue
        each = [
            f"k={c.rewind_epoch}: {c.difference:+.2f} [{c.low:+.2f}, {c.high:+.2f}]"
            for c in cells.itertuples()
        ]
        rows.append(
            {
                "claim": claim.text,
                "paper": claim.paper(sparsity),
                "ours": f"{claim.first} − {claim.second}, pp: " + "; ".join(each),
                "n": int(cells["n"].min()),
                "verdict": claim.verdict(cells),
            }
        )
    return pd.DataFrame(rows, columns=["claim", "paper", "ours", "n", "verdict"])
