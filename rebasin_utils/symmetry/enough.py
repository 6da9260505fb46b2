"""When a matching has seen enough data: how much of its objective it can still be expected to lack.

Let S(p) be the total similarity of an assignment p over all data there could be, p* the best one,
and p̂ the one that was found from the images seen. p̂ lacks S(p*) − S(p̂), its regret, and a share
of S(p̂) is what `until` limits. It is bounded from two halves of the images, with similarities S₁,
S₂ and best assignments p₁, p₂, by how much worse each half finds the other's assignment:

    gap = ½ [S₁(p₁) − S₁(p₂) + S₂(p₂) − S₂(p₁)].

Its expectation is the regret of an assignment from half of the images plus the optimism of its own
half about it: S₂ is independent of p₁ and on average right about it, S(p₁), and S₂(p₂) is at least
S₂(p*), on average S(p*). So the gap bounds the regret of *half* of the images (cross-validation;
Stone 1974). What all of them lack follows from how both grow with the noise ε of the similarities.
The best total is a convex function of them, whose slope is the best assignment, so optimism and
regret together are ⟨p̂ − p*, ε⟩, and if that grows as t^(1+a) with the noise's scale t, regret is
a/(1+a) of it. Twice the images scale the noise by 1/√2, so p̂ lacks on average

    a/(1+a) · 2^(−(1+a)/2) · gap,

which whatever a > 0 is at most 0.255 gap. Four quarters of the images make three pairs of halves,
of which the mean gap is taken. That is one draw, and what is lacking another: for one group
`FACTOR` leaves room for both. In a network the draws of its groups even out, to 1/√n where n are
alike (`together`). `benchmarks/enough.md` has how often the bound holds, for a network and for one
group, and how far it is from what is lacking. Of fewer than some 20 units the gap is coarse, often
zero: where a network has no larger groups, the bound holds less often.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from torch import Tensor

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.assignment import best_assignment
from rebasin_utils.symmetry.moments import Moments, Objective, Std

#: What one group lacks, as a multiple of the mean gap: on average at most, and its bound.
EXPECTED, FACTOR = 0.255, 1.2

#: Samples after which the bound is first looked at; after that, whenever there are twice as many.
LEAST = 512


@dataclass(frozen=True)
class Enough:
    """What one group was matched on.

    samples: of how many inputs. regret: the bound on what this group lacks, as a share of its total
    similarity.
    """

    samples: int
    regret: float


def check(until: float | None) -> None:
    """Refuse a limit that is no share.

    Raises:
        InputError: when it is not between 0 and 1.
    """
    if until is not None and not 0 < until < 1:
        raise InputError(f"until = {until}: must be a share above 0 and below 1, or None")


def together(units: Sequence[int]) -> float:
    """The bound on what groups of so many units lack together, as a share of their bounds' sum."""
    deviation = math.hypot(*units) / max(sum(units), 1)
    return (EXPECTED + (FACTOR - EXPECTED) * deviation) / FACTOR


class Quarters:
    """The moments of one group, batch by batch in four parts, until the bound is low enough.

    precision: relative rounding error of a similarity, as in `assignment`.
    """

    def __init__(self, objective: Objective, std: Std, until: float, precision: float) -> None:
        self._parts = [Moments(objective, std) for _ in range(4)]
        self._until, self._precision = until, precision
        self._batches, self._next = 0, LEAST
        self.enough = Enough(0, math.inf)

    @property
    def empty(self) -> bool:
        """Whether nothing was taken in yet."""
        return not self._batches

    @property
    def done(self) -> bool:
        """Whether the bound has been reached."""
        return self.enough.regret <= self._until

    def add(self, reference: Tensor, moving: Tensor, samples: int) -> None:
        """Take in one batch, of so many inputs, unless enough was seen."""
        if self.done:
            return
        self._parts[self._batches % 4].add(reference, moving)
        if not self._batches:
            for part in self._parts[1:]:
                part.share_shifts(self._parts[0])
        self._batches += 1
        seen = self.enough.samples + samples
        self.enough = Enough(seen, self.enough.regret)
        if seen >= self._next and self._batches >= 4:
            self._next = 2 * seen
            self.look(self._until)

    def look(self, until: float = math.inf) -> None:
        """Bound the regret at what has been seen; of fewer than four batches nothing is known.

        until: as for `bound`.
        """
        if self._batches >= 4:
            q, r, s, t = self._parts
            halves = (
                [_matrix(*half) for half in pair]
                for pair in (((q, r), (s, t)), ((q, s), (r, t)), ((q, t), (r, s)))
            )
            regret = bound(halves, self.similarity()[0], self._precision, until)
            self.enough = Enough(self.enough.samples, regret)

    def similarity(self) -> tuple[np.ndarray, int]:
        """`Moments.similarity` of all that was seen."""
        return reduce(Moments.joined, self._parts[: self._batches]).similarity()


def bound(
    halves: Iterable[Sequence[np.ndarray]], whole: np.ndarray, precision: float, until: float
) -> float:
    """The bound on the regret of the best assignment of `whole`, as a share of its total.

    Each gap takes two assignments, and none is negative. So pairs are looked at only until those
    seen show that the bound is above `until`; then that is returned which they show.

    halves: three pairs of similarities, on either half of the data. whole: on all of it; each is
    [reference, moving]. Infinite where one is not finite, or the total not positive.
    """
    if not np.isfinite(whole).all():
        return math.inf
    rows = np.arange(len(whole))
    most = float(whole.max(1, initial=-np.inf).sum())  # no assignment has a larger total
    gaps: list[float] = []
    for pair in halves:
        if not all(np.isfinite(half).all() for half in pair):
            return math.inf
        (first, p1), (second, p2) = ((half, best_assignment(half, precision)) for half in pair)
        own = first[rows, p1].sum() + second[rows, p2].sum()
        gaps.append((own - first[rows, p2].sum() - second[rows, p1].sum()) / 2)
        least = FACTOR * sum(gaps) / 3
        if most > 0 and least > until * most:
            return least / most
    gap = max(float(np.mean(gaps)), 0.0)
    total = float(whole[rows, best_assignment(whole, precision)].sum())
    if gap == 0:
        return 0.0
    return FACTOR * gap / total if total > 0 else math.inf


def _matrix(first: Moments, second: Moments) -> np.ndarray:
    return first.joined(second).similarity()[0]
