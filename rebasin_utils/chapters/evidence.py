"""Differences between methods, paired over independent pairs, and what they say of a claim.

Two runs that are compared share the pair A–B, the rewind state where they share the net, and the
data order. Differences are in percentage points (pp) of test accuracy. `interval` is the 95%
t-interval that figures draw; a claim is judged by the rule of `judgement`, with intervals of 90%
(a one-sided bound at 5% on either side).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import pandas as pd
from scipy.special import stdtrit

from rebasin_utils.chapters.judgement import Kind, Spread, judge
from rebasin_utils.errors import InputError
from rebasin_utils.study.parts import METHODS
from rebasin_utils.study.study import Study

COLUMNS = ["claim", "paper", "ours", "n", "verdict"]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of its 95% t-interval; the ends are infinite for a single value."""
    values = pd.Series(values, dtype=float)
    if len(values) < 2:
        return values.mean(), float("-inf"), float("inf")
    half = stdtrit(len(values) - 1, 0.975) * values.sem()
    return values.mean(), values.mean() - half, values.mean() + half


def accuracy_grid(results: pd.DataFrame) -> pd.DataFrame:
    """Mean test accuracy in %; rows are (sparsity, rewind epoch), columns the sparse methods."""
    sparse = _sparse(results)
    grid = sparse.pivot_table("test_accuracy", ["sparsity", "rewind_epoch"], "method") * 100
    return grid[[m for m in METHODS if m in grid]].rename_axis(columns=None)


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


def has_gap(results: pd.DataFrame, sparsity: float) -> bool:
    """Whether LTH is ahead of naive, as a pair's mean over k ≥ 1, by the 95% interval."""
    gaps = paired(results, "lth", "naive")
    later = pd.DataFrame({k: gap for (s, k), gap in gaps.items() if s == sparsity and k >= 1})
    _, low, _ = interval(later.mean(axis=1))
    return low > 0


def paired(results: pd.DataFrame, first: str, second: str) -> dict[tuple[float, int], pd.Series]:
    """`first` minus `second`, pp, of every pair, by (sparsity, rewind epoch).

    Raises:
        InputError: when `results` does not hold both methods.
    """
    sparse = _sparse(results)
    runs = sparse.set_index(["sparsity", "rewind_epoch", "seed"]).groupby("method")["test_accuracy"]
    for method in (first, second):
        if method not in runs.groups:
            raise InputError(f"the results hold no runs of {method!r} to compare")
    differences = 100 * (runs.get_group(first) - runs.get_group(second)).dropna()
    cells = differences.groupby(["sparsity", "rewind_epoch"])
    return {(sparsity, int(k)): each for (sparsity, k), each in cells}


def paired_difference(results: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """The means of `paired` and their 95% intervals.

    Returns:
        sparsity, rewind_epoch, difference (mean, pp), low and high, n.

    Raises:
        InputError: when `results` does not hold both methods.
    """
    rows = [
        (sparsity, rewind_epoch, *interval(each), len(each))
        for (sparsity, rewind_epoch), each in paired(results, first, second).items()
    ]
    columns = ["sparsity", "rewind_epoch", "difference", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def gaps(results: pd.DataFrame, sparsity: float, rewind_epoch: int) -> pd.DataFrame:
    """What permuted gains over naive and lacks to LTH in one cell of the grid, pp, by seed.

    Returns:
        columns `permuted − naive` and `LTH − permuted`; none where the results lack the runs.
    """
    runs = _sparse(results)
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


def on_images(study: Study) -> str:
    """Where a study's paths are not measured on all test images, on how many; else nothing."""
    samples = study.settings.paths.samples
    whole = study.settings.data.test_limit
    return "" if samples is None or samples == whole else f" on the first {samples:,} test images"


def row(
    claim: str,
    paper: str,
    what: str,
    differences: Mapping[str, Sequence[float]],
    kind: Kind = "more",
    spread: Spread = "normal",
) -> tuple:
    """A row of the verdicts, as `COLUMNS`, from the differences in each cell, by the cell's label.

    A claim that something is no worse, or the same, has a margin of `judgement.MARGIN`.
    """
    verdict = judge(differences, kind, spread=spread)
    return claim, paper, what + verdict.differences, verdict.pairs, str(verdict)


def by_sparsity(differences: pd.Series) -> dict[str, pd.Series]:
    """Differences that are indexed by (sparsity, …), apart, by a label for people."""
    return {f"S={sparsity:.0%}": each for sparsity, each in differences.groupby("sparsity")}
