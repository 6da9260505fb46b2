"""First and second moments of one group's units in two nets, gathered batch by batch.

Moments are taken about the mean of the first batch: raw float32 moments lose the correlation once
a unit's mean is large against its spread. Activations are gone through once, in pieces that stay in
the processor's cache. Sums are float32 over a stretch of samples and float64 over stretches; memory
does not grow with the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

Objective = Literal["correlation", "covariance", "inner_product"]
Std = Literal["pooled", "mean_of_batches"]

#: A unit whose standard deviation is below this share of its mean is constant: a dead unit.
DEAD = 1e-6

#: Numbers per piece on a CPU: 1 MB of float32 for each net.
PIECE = 2**18

#: Samples after which float32 sums are moved on to float64.
STRETCH = 2**14


class Moments:
    """Sums over samples of both nets' units, of their squares, and of the products of all pairs.

    Activations come as [samples, units] or [samples, units, slots]; slots (an attention head's
    features) are compared one by one and their similarities averaged. Pairs are (of the reference,
    of the moving net); tensors are [slots, …].
    """

    def __init__(self, objective: Objective, std: Std) -> None:
        self.objective, self.std = objective, std
        self._samples = self._batches = self._stretch = 0
        self._shifts: list[Tensor] = []  # [slots, 1, units]
        self._sums: list[Tensor] = []  # sums of both, squares of both, products; float64
        self._latest: list[Tensor] = []  # the same over the latest stretch; float32
        self._batch_stds: list[Tensor] = []

    @property
    def empty(self) -> bool:
        """Whether nothing was taken in yet."""
        return not self._batches

    def share_shifts(self, other: Moments) -> None:
        """Take moments about what another takes them about, so that both can be joined."""
        self._shifts = other._shifts

    def joined(self, other: Moments) -> Moments:
        """The moments of what both have seen; they share their shifts, and stay as they are."""
        both = Moments(self.objective, self.std)
        both._shifts = self._shifts
        both._samples = self._samples + other._samples
        both._batches = self._batches + other._batches
        both._sums = _added(self._totals(), other._totals())
        stds = [std.clone() for std in self._batch_stds]
        both._batch_stds = _added(stds, other._batch_stds)
        return both

    def sum_over(self, group: dist.ProcessGroup) -> None:
        """Add what the other ranks have seen; all end with the same moments.

        Each took them about the mean of its own first batch: they are moved to the first rank's.
        """
        first = [shift.double() for shift in self._shifts]
        source = dist.get_global_rank(group, 0)
        for shift in first:
            dist.broadcast(shift, source, group)
        n, totals = self._samples, self._totals()
        d_b, d_a = (s.double() - f for s, f in zip(self._shifts, first, strict=True))
        sum_b, sum_a, square_b, square_a, products = totals
        products += sum_b[:, :, None] * d_a + d_b.mT * sum_a[:, None] + n * (d_b.mT * d_a)
        for total, square, d in ((sum_b, square_b, d_b[:, 0]), (sum_a, square_a, d_a[:, 0])):
            square += 2 * d * total + n * d.square()
            total += n * d
        counts = torch.tensor([n, self._batches], device=products.device)
        for tensor in (*totals, *self._batch_stds, counts):
            dist.all_reduce(tensor, group=group)
        self._samples, self._batches = counts.tolist()
        self._shifts = [f.float() for f in first]
        self._sums, self._latest, self._stretch = totals, [], 0

    @torch.no_grad()
    def add(self, reference: Tensor, moving: Tensor) -> None:
        """Take in one batch: both nets' activations on the same inputs."""
        home = moving.device if reference.device.type == "cpu" else reference.device
        pair = [_by_slot(x.to(home)) for x in (reference, moving)]
        slots, samples, units = pair[0].shape
        if not self._shifts:
            self._shifts = [x.mean(1, keepdim=True, dtype=torch.float32) for x in pair]
        rows = max(PIECE // (slots * units), 1) if home.type == "cpu" else samples
        with full_float32(home):
            for pieces in zip(*(x.split(rows, 1) for x in pair), strict=True):
                self._add([x.float() - s for x, s in zip(pieces, self._shifts, strict=True)])
            if self.std == "mean_of_batches":
                stds = [x.double().std(1) for x in pair]
                self._batch_stds = _added(self._batch_stds, stds)
        self._samples += samples
        self._batches += 1

    def _add(self, pair: list[Tensor]) -> None:
        """Take in one piece, float32 [slots, samples, units] about the shifts; overwrites it."""
        b, a = pair
        products = self._latest[4].baddbmm_(b.mT, a) if self._latest else b.mT @ a
        sums = [x.sum(1) for x in pair] + [x.square_().sum(1) for x in pair]
        self._latest = [*_added(self._latest[:4], sums), products]
        self._stretch += b.shape[1]
        if self._stretch >= STRETCH:
            self._end_stretch()

    def _end_stretch(self) -> None:
        self._sums = _added(self._sums, [x.double() for x in self._latest])
        self._latest, self._stretch = [], 0

    def _totals(self) -> list[Tensor]:
        """The sums over all samples so far, float64, in memory of their own."""
        totals = [x.to(torch.float64, copy=True) for x in self._latest or self._sums]
        return _added(totals, self._sums) if self._latest and self._sums else totals

    def similarity(self) -> tuple[np.ndarray, int]:
        """float64 [units of reference, units of moving]; the number of dead units.

        See `matching.similarities`. The covariance of a dead unit is exactly 0, so that rounding
        noise does not choose between dead units. All of a unit's entries are NaN if it was NaN or
        infinite for a sample.
        """
        mean_b, mean_a, square_b, square_a, products = (
            x.div_(self._samples).cpu() for x in self._totals()
        )
        means = [mean_b, mean_a]  # about the shifts
        full = [m + s.double().cpu()[:, 0] for m, s in zip(means, self._shifts, strict=True)]
        squares = [square_b, square_a]
        stds = [(q - m.square()).clamp_min_(0).sqrt_() for q, m in zip(squares, means, strict=True)]
        dead = [s <= DEAD * m.abs() for s, m in zip(stds, full, strict=True)]
        covariance = products.addcmul_(*_sides(means), value=-1)  # in place: it is large
        covariance.mT[dead[1]] = 0.0
        covariance[dead[0]] = 0.0
        broken = [~q.isfinite() for q in squares]
        covariance.mT[broken[1]] = torch.nan  # a dead unit of the other net hides nothing
        covariance[broken[0]] = torch.nan
        if self.objective == "covariance":
            result = covariance
        elif self.objective == "inner_product":
            result = covariance.addcmul_(*_sides(full))
        elif self.std == "mean_of_batches":
            b, a = _sides([s.cpu() / self._batches for s in self._batch_stds])
            result = covariance.div_(b * a + 1e-4)
        else:
            b, a = _sides([s.masked_fill(d, 1.0) for s, d in zip(stds, dead, strict=True)])
            result = covariance.div_(b).div_(a)
        result = result.mean(0) if len(result) > 1 else result[0]
        return result.numpy(), max(int(d.all(0).sum()) for d in dead)


def _by_slot(x: Tensor) -> Tensor:
    """[samples, units(, slots)] -> [slots, samples, units]."""
    return x[None] if x.ndim == 2 else x.movedim(2, 0)


def _sides(pair: list[Tensor]) -> tuple[Tensor, Tensor]:
    """[slots, n], [slots, m] -> [slots, n, 1], [slots, 1, m]: an operation on both is outer."""
    return pair[0][:, :, None], pair[1][:, None, :]


def _added(total: list[Tensor], more: list[Tensor]) -> list[Tensor]:
    """Sums term by term; an empty total counts as zeros."""
    return [t.add_(m) for t, m in zip(total, more, strict=True)] if total else more


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """No bfloat16 or TensorFloat-32 products, whatever the caller allows for training."""
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    kept = [b.fp32_precision for b in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, kept, strict=True):
            backend.fp32_precision = precision
