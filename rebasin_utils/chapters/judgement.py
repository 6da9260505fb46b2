"""The verdict on a claim about paired differences: it holds, is contradicted, or is open.

The first two take evidence. A claim says where a difference d lies: first minus second, paired over
independent pairs, in one cell of a table or in each of several (one a rewind epoch, say):

    "more"                0 < d             first is better
    "no worse"      −margin < d             first may be worse, but by less than the margin
    "same"          −margin < d < margin    either may be better, but by less than the margin

Every cell has an interval for its d, each end of which is a one-sided bound at the 5% level. The
claim *holds* when every interval lies inside the claimed range; for "same" these are the two
one-sided tests of Schuirmann 1987. It is *contradicted* when one of them lies wholly outside, and
*open* otherwise. Not having been contradicted is not holding: a wide interval leaves a claim open.

**Several cells.** Holding takes all of them, so that each is tested at the full level and a false
claim still holds in no more than 5% of studies (the intersection–union test, Berger 1982).
Contradicting takes one, and every cell and every end of the range is another chance to err: here
the level is divided by their number (Bonferroni's bound; Dunn 1961), which is right however the
cells depend on one another, and they do, by their pairs.

**Spreads.** With spread "normal" d is the mean, and the interval is Student's. With spread "any" d
is the median, and the ends of the interval are pairs (the sign test, inverted), whatever the
spread. That is for cells where a run may fall to chance. A few pairs then differ by tens of points,
often to one side only: Student's interval is not made for this, nor are signed ranks and flipped
signs, which assume a symmetric spread; and no test of a mean keeps its level for every spread
(Bahadur and Savage 1956). Which of the two applies belongs to the claim and is stated before its
differences are seen: picked by the look of them, two tests that keep their level need not keep it
together. The sign test has a price: with n pairs its least level is 2⁻ⁿ, so that four pairs (6.3%)
or fewer decide nothing. It also judges differences that are all equal, whatever the claim says of
them: they show no spread to measure by.

**Open** comes with the pairs that would settle it: so many that, were the effects and spreads those
that were seen, the claim would hold, or else be contradicted, with a probability of 80%. What was
seen in a few pairs is uncertain, and so is this number: it says whether to run 10 or 100.

    Schuirmann 1987, J. Pharmacokinetics and Biopharmaceutics 15, 657. Berger 1982, Technometrics
    24, 295. Dunn 1961, J. American Statistical Association 56, 52. Bahadur and Savage 1956, Annals
    of Mathematical Statistics 27, 1115.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, median
from typing import Literal, get_args

import numpy as np
from scipy.special import bdtr, chdtri, ndtr, stdtrit

from rebasin_utils.errors import InputError

Kind = Literal["more", "no worse", "same"]
Spread = Literal["normal", "any"]
Outcome = Literal["holds", "open", "contradicted"]

#: How often a false claim may hold, and how often a true one may be contradicted.
LEVEL = 0.05

#: What counts as no difference, in percentage points.
MARGIN = 0.5

#: How surely the stated number of pairs settles a claim, and the largest number that is tried.
POWER = 0.8
MOST_PAIRS = 1000


@dataclass(frozen=True)
class Interval:
    """A cell's difference, by its mean or median, and the one-sided bounds on it.

    The bounds are at `LEVEL` each, so that both together are a 90% interval. They are infinite
    where the pairs bound nothing.
    """

    cell: str
    statistic: Literal["mean", "median"]
    centre: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        of = "median " if self.statistic == "median" else ""
        ends = f"[{self.low:+.2f}, {self.high:+.2f}]".replace("inf", "∞")
        return f"{self.cell}: {of}{self.centre:+.2f} {ends}"


@dataclass(frozen=True)
class Verdict:
    """What the differences say of a claim; as text, what a table of verdicts says.

    claimed: the range that the claim gives the differences, in words.
    pairs_to_settle: of an open claim, pairs in every cell; None when it is not open, when
    `MOST_PAIRS` would not do, or when a cell has one pair, which shows no spread.
    """

    outcome: Outcome
    claimed: str
    intervals: tuple[Interval, ...]
    pairs_to_settle: int | None

    @property
    def pairs(self) -> int:
        """The pairs of the cell that has fewest."""
        return min(each.pairs for each in self.intervals)

    @property
    def differences(self) -> str:
        """Every cell's difference and 90% interval, in a line."""
        return "; ".join(map(str, self.intervals))

    def __str__(self) -> str:
        if self.outcome == "contradicted":
            return "contradicted at this scale"
        if self.outcome == "holds":
            return "holds"
        if self.pairs_to_settle is not None:
            return f"open: about {self.pairs_to_settle} pairs would settle it"
        if self.pairs < 2:
            return "open: one pair shows no spread"
        return f"open: not even {MOST_PAIRS} pairs would settle it"


def judge(
    differences: Mapping[str, Sequence[float]],
    kind: Kind,
    *,
    margin: float = MARGIN,
    spread: Spread = "normal",
) -> Verdict:
    """The verdict on a claim about `differences`: for each cell, first minus second of every pair.

    Args:
        differences: by the cell's label; the pairs of one cell are independent of each other, those
            of different cells need not be. In percentage points, or else in the unit of `margin`.
        kind: "more", "no worse" or "same", as above.
        margin: what "no worse" and "same" allow; "more" has none.
        spread: "normal", or "any" where a run may fall to chance; stated with the claim.

    Raises:
        InputError: when there is no cell or a cell without pairs, when a difference is not finite,
            and when `kind`, `margin` or `spread` is none of the above.
    """
    claimed = _claimed(kind, margin)
    if spread not in get_args(Spread):
        raise InputError(f"spread = {spread!r}: choose one of {', '.join(get_args(Spread))}")
    if not differences:
        raise InputError("differences = {}: there must be at least one cell to judge")
    cells = [_cell(label, values, spread) for label, values in differences.items()]
    outcome = _outcome(cells, claimed)
    statistic = "mean" if spread == "normal" else "median"
    intervals = (
        Interval(label, statistic, cell.centre, *cell.bounds(LEVEL), cell.pairs)
        for label, cell in zip(differences, cells, strict=True)
    )
    pairs = _pairs_to_settle(cells, claimed) if outcome == "open" else None
    return Verdict(outcome, str(claimed), tuple(intervals), pairs)


def outcome_of(verdict: str) -> Outcome:
    """The outcome of a verdict that was written out."""
    return next(outcome for outcome in get_args(Outcome) if verdict.startswith(outcome))


def summary(outcomes: Iterable[Outcome]) -> str:
    """So many claims hold, are open and are contradicted, in a line.

    Each was judged by itself: of twenty false claims, one may hold.

    Raises:
        InputError: when something is none of the three outcomes.
    """
    count = Counter(outcomes)
    unknown = [each for each in count if each not in get_args(Outcome)]
    if unknown:
        raise InputError(f"outcome = {unknown[0]!r}: must be {', '.join(get_args(Outcome))}")
    claims = "1 claim" if count.total() == 1 else f"{count.total()} claims"
    hold = "holds" if count["holds"] == 1 else "hold"
    return (
        f"{claims}: {count['holds']} {hold}, {count['open']} open, "
        f"{count['contradicted']} contradicted at this scale"
    )


# ------------------------------------------------------------------------------------ the rule


@dataclass(frozen=True)
class _Range:
    """The open interval (low, high)."""

    low: float
    high: float

    def contains(self, low: float, high: float) -> bool:
        return self.low < low and high < self.high

    def outside(self) -> list[_Range]:
        """What lies outside, a range for every finite end."""
        sides = (_Range(-math.inf, self.low), _Range(self.high, math.inf))
        return [side for side in sides if side.low < side.high]

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {self.low:g}"
        return f"between {self.low:g} and {self.high:g}"


def _claimed(kind: Kind, margin: float) -> _Range:
    if not 0 < margin < math.inf:
        raise InputError(f"margin = {margin}: must be a finite number above 0")
    ranges = {
        "more": _Range(0, math.inf),
        "no worse": _Range(-margin, math.inf),
        "same": _Range(-margin, margin),
    }
    if kind not in ranges:
        raise InputError(f"kind = {kind!r}: choose one of {', '.join(ranges)}")
    return ranges[kind]


def _outcome(cells: Sequence[_Normal | _Any], claimed: _Range) -> Outcome:
    if all(claimed.contains(*cell.bounds(LEVEL)) for cell in cells):
        return "holds"
    sides, level = _against(claimed, cells)
    if any(side.contains(*cell.bounds(level)) for cell in cells for side in sides):
        return "contradicted"
    return "open"


def _against(claimed: _Range, cells: Sequence[_Normal | _Any]) -> tuple[list[_Range], float]:
    """The ranges that contradict a claim, and the level at which each cell is held to each."""
    sides = claimed.outside()
    return sides, LEVEL / (len(cells) * len(sides))


def _pairs_to_settle(cells: Sequence[_Normal | _Any], claimed: _Range) -> int | None:
    """The fewest pairs a cell, more than there are, that would make `_outcome` other than open."""
    sides, level = _against(claimed, cells)

    def settle(pairs: int) -> bool:
        # How the cells depend on one another is not known; these two bounds need not know it.
        missed = sum(1 - cell.chance(claimed, pairs, LEVEL) for cell in cells)
        refuted = max(cell.chance(side, pairs, level) for cell in cells for side in sides)
        return max(1 - missed, refuted) >= POWER

    fewest = min(cell.pairs for cell in cells)
    if fewest < 2 or not settle(MOST_PAIRS):
        return None
    return next(pairs for pairs in range(fewest + 1, MOST_PAIRS + 1) if settle(pairs))


# --------------------------------------------------------------------- one cell, by its spread


def _cell(label: str, values: Sequence[float], spread: Spread) -> _Normal | _Any:
    values = sorted(map(float, values))
    if not values:
        raise InputError(f"differences of {label!r}: there must be at least one pair")
    wrong = [value for value in values if not math.isfinite(value)]
    if wrong:
        raise InputError(f"differences of {label!r}: one is {wrong[0]}, all must be finite")
    rounding = 1e-9 * max(1, abs(values[0]), abs(values[-1]))
    seen = values[-1] - values[0] > rounding
    return _Normal(values) if spread == "normal" and seen else _Any(values)


class _Normal:
    """Pairs with a normal spread: the mean, and Student's interval."""

    def __init__(self, values: Sequence[float]) -> None:
        self.pairs, self.centre = len(values), fmean(values)
        squares = math.fsum((value - self.centre) ** 2 for value in values)
        self._std = math.sqrt(squares / (self.pairs - 1))

    def bounds(self, level: float) -> tuple[float, float]:
        half = _student(self.pairs, level) * self._std / math.sqrt(self.pairs)
        return self.centre - half, self.centre + half

    def chance(self, inside: _Range, pairs: int, level: float) -> float:
        """Of the interval from so many pairs to lie inside, had they this mean and spread.

        Given the sample's spread, the mean has to fall between two limits; this is averaged over
        the law of the sample's spread.
        """
        error = self._std / math.sqrt(pairs)
        half = _student(pairs, level) * _relative_std(pairs)
        below = ndtr((inside.high - self.centre) / error - half)
        above = ndtr((inside.low - self.centre) / error + half)
        return float(np.maximum(below - above, 0).mean())


class _Any:
    """Pairs with any spread: the median, and the interval between two of the sorted pairs."""

    def __init__(self, values: Sequence[float]) -> None:
        self._sorted = values
        self.pairs, self.centre = len(values), median(values)

    def bounds(self, level: float) -> tuple[float, float]:
        left_out = _left_out(self.pairs, level)
        if left_out < 0:
            return -math.inf, math.inf
        return self._sorted[left_out], self._sorted[-1 - left_out]

    def chance(self, inside: _Range, pairs: int, level: float) -> float:
        """Of the interval from so many pairs to lie inside, had they this spread (a lower bound).

        The share of pairs beyond an end of the range is (those seen + ½) / (pairs + 1): that none
        was seen among a few does not mean that there are none.
        """
        left_out = _left_out(pairs, level)
        if left_out < 0:
            return 0.0
        low = sum(value <= inside.low for value in self._sorted)
        high = sum(value >= inside.high for value in self._sorted)
        missed = sum(
            1 - bdtr(left_out, pairs, (seen + 0.5) / (self.pairs + 1))
            for seen, end in ((low, inside.low), (high, inside.high))
            if math.isfinite(end)
        )
        return max(1 - float(missed), 0.0)


@cache
def _student(pairs: int, level: float) -> float:
    """The quantile of Student's distribution that a mean of so many pairs has above it."""
    return float(stdtrit(pairs - 1, 1 - level))


@cache
def _relative_std(pairs: int) -> np.ndarray:
    """Quantiles [100] of a sample's standard deviation, relative to the true one."""
    middles = (np.arange(100) + 0.5) / 100
    return np.sqrt(chdtri(pairs - 1, middles) / (pairs - 1))


@cache
def _left_out(pairs: int, level: float) -> int:
    """How many of the lowest pairs lie below the bound; −1 where even the lowest bounds nothing.

    The r-th lowest pair is above the median when fewer than r pairs are below it, which has the
    probability of fewer than r heads in so many throws of a coin.
    """
    return int((bdtr(np.arange(pairs), pairs, 0.5) <= level).sum()) - 1
