"""Results held against the paper: published numbers, paired differences, verdicts.

Differences between methods are paired: the two runs share the pair A–B, the rewind state where they
share the net, and the data order. Intervals are 95 % t-intervals over the pairs. Percentage points
(pp) of test accuracy throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files

import pandas as pd
from scipy import stats

from rebasin_utils.errors import InputError
from rebasin_utils.settings import METHODS

#: What a reader sees in place of the name in the table.
METHOD_NAMES = {
    "dense": "dense",
    "imp": "IMP (A, fine-tuned)",
    "lth": "LTH (A, its own mask)",
    "permuted": "permuted (B, π(mask))",
    "naive": "naive (B, mask)",
    "random_permutation": "random π (B)",
    "random_mask": "random mask (B)",
}

HOLDS, CONTRADICTS, OPEN = "holds", "contradicts", "open"


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
    """Mean test accuracy in %, rows (sparsity, rewind epoch), columns the sparse methods present."""
    sparse = results[results["rewind_epoch"].notna()]
    grid = sparse.pivot_table("test_accuracy", ["sparsity", "rewind_epoch"], "method") * 100
    return grid[[m for m in METHODS if m in grid]].rename_axis(columns=None)


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Mean, sample standard deviation (pp) and n of every cell of the grid, tidy."""
    cells = results.groupby(
        ["model", "width", "method", "sparsity", "rewind_epoch"], dropna=False, sort=False
    )["test_accuracy"]
    table = cells.agg(mean="mean", std="std", n="count").reset_index()
    return table.assign(mean=100 * table["mean"], std=100 * table["std"])


def paired_difference(results: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """`first` minus `second` in every (sparsity, rewind epoch), paired over the seeds.

    Returns:
        sparsity, rewind_epoch, difference (mean, pp), low and high (95 % interval), n.
    """
    runs = results[results["method"].isin([first, second]) & results["rewind_epoch"].notna()]
    cells = runs.pivot_table(
        "test_accuracy", ["sparsity", "rewind_epoch", "seed"], "method", sort=True
    )
    if first not in cells or second not in cells:
        raise InputError(f"the results hold no runs of {first!r} and {second!r} to compare")
    differences = 100 * (cells[first] - cells[second]).dropna()
    rows = []
    for (sparsity, rewind_epoch), each in differences.groupby(["sparsity", "rewind_epoch"]):
        mean, low, high = interval(each)
        rows.append((sparsity, int(rewind_epoch), mean, low, high, len(each)))
    columns = ["sparsity", "rewind_epoch", "difference", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % t-interval; the ends are infinite for a single value."""
    values = pd.Series(values, dtype=float)
    if len(values) < 2:
        return values.mean(), float("-inf"), float("inf")
    half = stats.t.ppf(0.975, len(values) - 1) * values.sem()
    return values.mean(), values.mean() - half, values.mean() + half


def published_range(
    first: str, second: str, sparsity: float, table: str = "ws_table3_resnet20_w1_cifar10"
) -> str:
    """Smallest and largest published `first` - `second` over the rewind epochs from 10 on, pp."""
    rows = published(table)
    rows = rows[(rows["sparsity"] == sparsity) & (rows["rewind_epoch"] >= 10)]
    means = rows.pivot_table("mean", "rewind_epoch", "method")
    difference = means[first] - means[second]
    return f"{difference.min():+.1f} … {difference.max():+.1f} pp"


def verdicts(results: pd.DataFrame, sparsity: float = 0.90) -> pd.DataFrame:
    """The paper's claims about sparse training, one row each: claim, paper, ours, n, verdict.

    The paper's column is ResNet20×1 on CIFAR-10; ours is whatever `results` holds. A claim holds
    when the 95 % interval lies on its side in every cell it speaks of, is contradicted when it lies
    wholly on the other side in one, and is open otherwise.
    """
    at = results[results["sparsity"].sub(sparsity).abs() < 1e-9]
    percent = f"{sparsity:.0%}"
    claims = [
        (
            f"permuted beats naive at {percent}, k ≥ 1",
            ("permuted", "naive"),
            lambda k: k >= 1,
            published_range("permuted", "naive", sparsity),
        ),
        (
            f"LTH is at least as good as permuted at {percent}, all k",
            ("lth", "permuted"),
            lambda k: k >= 0,
            published_range("LTH", "permuted", sparsity),
        ),
        (
            f"at the init (k = 0), permuting gains nothing over naive at {percent}",
            ("permuted", "naive"),
            lambda k: k == 0,
            "nominal k = 0 is one epoch: " + _published_zero(sparsity),
        ),
        (
            f"a random π is no better than naive at {percent}, k ≥ 1",
            ("naive", "random_permutation"),
            lambda k: k >= 1,
            "not in the paper",
        ),
        (
            f"a random mask of equal layer densities is no better than naive at {percent}, k ≥ 1",
            ("naive", "random_mask"),
            lambda k: k >= 1,
            "not in the paper",
        ),
    ]
    rows = []
    for claim, (first, second), applies, paper in claims:
        cells = paired_difference(at, first, second)
        cells = cells[cells["rewind_epoch"].map(applies)]
        if cells.empty:
            continue
        verdict = _verdict(cells, equality="gains nothing" in claim, weak="no better" in claim)
        rows.append(
            {
                "claim": claim,
                "paper": paper,
                "ours": _describe(cells, f"{first} − {second}"),
                "n": int(cells["n"].min()),
                "verdict": verdict,
            }
        )
    return pd.DataFrame(rows)


def _published_zero(sparsity: float) -> str:
    rows = published("ws_table3_resnet20_w1_cifar10")
    rows = rows[(rows["sparsity"] == sparsity) & (rows["rewind_epoch"] == 0)]
    means = rows.set_index("method")["mean"]
    return f"{means['permuted'] - means['naive']:+.2f} pp"


def _verdict(cells: pd.DataFrame, equality: bool, weak: bool) -> str:
    if equality:
        inside = (cells["low"] <= 0) & (cells["high"] >= 0)
        return HOLDS if inside.all() else CONTRADICTS
    if (cells["high"] < 0).any():
        return CONTRADICTS
    if weak:  # "no better than" needs no difference, only none on the other side
        return HOLDS
    return HOLDS if (cells["low"] > 0).all() else OPEN


def _describe(cells: pd.DataFrame, what: str) -> str:
    each = [
        f"k={r.rewind_epoch}: {r.difference:+.1f} [{r.low:+.1f}, {r.high:+.1f}]"
        for r in cells.itertuples()
    ]
    return f"{what}, pp — " + ", ".join(each)
