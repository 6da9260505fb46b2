"""The paper's claims, held against a study's results: claim, paper, ours, n, verdict.

Every claim is about differences, paired over the pairs A–B, with a 95 % t-interval in each cell it
speaks of. It *holds* when the intervals are where it says, is *contradicted* when one lies wholly
on the other side, and is *open* otherwise, or when there is one pair only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import pandas as pd

from rebasin_utils.errors import InputError
from rebasin_utils.study import Study
from rebasin_utils.tables import interval, overlaps, paired_difference, paths

COLUMNS = ["claim", "paper", "ours", "n", "verdict"]

#: "more": every interval lies above 0. "no_less": none lies below 0. "same": every one holds 0.
Expects = Literal["more", "no_less", "same"]

#: The published table that the verdicts quote: ResNet20×1 on CIFAR-10.
QUOTED = "ws_table3_resnet20_w1_cifar10"


def published(name: str) -> pd.DataFrame:
    """One of the published tables, as shipped in `rebasin_utils/published/<name>.csv`.

    Raises:
        InputError: when there is none of that name.
    """
    folder = files("rebasin_utils") / "published"
    file = folder / f"{name}.csv"
    if not file.is_file():
        known = sorted(f.name.removesuffix(".csv") for f in folder.iterdir())
        raise InputError(f"published table = {name!r}: choose one of {', '.join(known)}")
    with file.open() as text:
        return pd.read_csv(text)


def judge(cells: pd.DataFrame, expects: Expects) -> str:
    """holds, contradicted or open, from the columns low, high and n of the cells' intervals."""
    if cells["n"].min() < 2:
        return "open"
    any_below, any_above = (cells["high"] < 0).any(), (cells["low"] > 0).any()
    if any_below or (expects == "same" and any_above):
        return "contradicted"
    if expects == "more":
        return "holds" if (cells["low"] > 0).all() else "open"
    return "holds"


@dataclass(frozen=True)
class Claim:
    """`first` against `second`, by test accuracy, in the cells whose rewind epoch `applies`."""

    text: str
    first: str
    second: str
    expects: Expects
    applies: Callable[[int], bool]
    paper: Callable[[float], str] = lambda sparsity: "not in the paper"


def _published_difference(
    first: str, second: str, applies: Callable[[int], bool]
) -> Callable[[float], str]:
    def quote(sparsity: float) -> str:
        rows = published(QUOTED)
        rows = rows[(rows["sparsity"] == sparsity) & rows["rewind_epoch"].map(applies)]
        if rows.empty:
            return f"nothing at {sparsity:.0%}"
        means = rows.pivot_table("mean", "rewind_epoch", "method")
        each = means[first] - means[second]
        if len(each) == 1:
            return f"{each.iloc[0]:+.2f} pp"
        return f"{each.min():+.2f} … {each.max():+.2f} pp"

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


def of_sparse_runs(results: pd.DataFrame, sparsity: float = 0.90) -> pd.DataFrame:
    """The claims about sparse training at one sparsity; those without runs are left out.

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
        labels = [f"k={k}" for k in cells["rewind_epoch"]]
        ours = f"{claim.first} − {claim.second}, pp: {_describe(labels, cells)}"
        verdict = judge(cells, claim.expects)
        rows.append((claim.text, claim.paper(sparsity), ours, int(cells["n"].min()), verdict))
    return pd.DataFrame(rows, columns=COLUMNS)


def of_paths(study: Study) -> pd.DataFrame:
    """The claims about the point halfway between A and B.

    The paper's column is ResNet20×1 on CIFAR-10 as in Jordan et al. 2023, whose matching the paper
    uses.
    """
    repair = published("ref_repair_resnet20_bn_midpoint")
    repair = repair[(repair["dataset"] == "CIFAR-10") & (repair["width"] == 1)]
    reported = repair.set_index("variant")["test_acc"]
    plain = reported["permuted_midpoint_no_bn_reset"]
    reset = reported["permuted_midpoint_bn_reset"]
    claims = (
        ("matching raises the accuracy halfway", "unmatched", "matched", f"to {plain:.1f} %"),
        (
            "recomputing batch norm's statistics raises it further",
            "matched", "matched_bn_reset", f"{plain:.1f} → {reset:.1f} %",
        ),
        (
            "batch norm recomputed, matching still raises it",
            "unmatched_bn_reset", "matched_bn_reset", "not reported",
        ),
    )  # fmt: skip
    table = paths(study)
    middle = 100 * table[table["alpha"] == 0.5].pivot_table("accuracy", "seed", "path")
    rows = []
    for claim, before, after, paper in claims:
        if {before, after} <= set(middle):
            cells = _intervals([middle[after] - middle[before]])
            means = f"{middle[before].mean():.1f} → {middle[after].mean():.1f} %"
            ours = f"{after} − {before}, pp: {_describe([means], cells)}"
            rows.append((claim, paper, ours, len(middle), judge(cells, "more")))
    return pd.DataFrame(rows, columns=COLUMNS)


def of_overlaps(study: Study) -> pd.DataFrame:
    """The claims about how much of B's own ticket is in A's, over all sparsities."""
    table = overlaps(study)
    shared = 100 * table.pivot_table("overlap", ["sparsity", "seed"], "kind")
    claims: tuple[tuple[str, str, str, Expects], ...] = (
        (
            "π(A's ticket) shares more with B's ticket than A's ticket does",
            "permuted", "mask", "more",
        ),
        (
            "a random permutation of A's ticket shares no more with B's than A's ticket does",
            "mask", "random_permutation", "no_less",
        ),
    )  # fmt: skip
    rows = []
    for claim, first, second, expects in claims:
        each = dict(list((shared[first] - shared[second]).groupby("sparsity")))
        cells = _intervals(list(each.values()))
        ours = f"{first} − {second}, pp: {_describe([f'S={s:.0%}' for s in each], cells)}"
        rows.append((claim, "not in the paper", ours, cells["n"].min(), judge(cells, expects)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _intervals(differences: Sequence[pd.Series]) -> pd.DataFrame:
    rows = [(*interval(each), len(each)) for each in differences]
    return pd.DataFrame(rows, columns=["difference", "low", "high", "n"])


def _describe(labels: Sequence[str], cells: pd.DataFrame) -> str:
    return "; ".join(
        f"{label}: {c.difference:+.2f} [{c.low:+.2f}, {c.high:+.2f}]"
        for label, c in zip(labels, cells.itertuples(), strict=True)
    )
