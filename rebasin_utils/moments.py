"""First and second moments of one group's units in two nets, gathered batch by batch.

Moments are taken about the mean of the first batch: raw float32 moments lose the correlation once
a unit's mean is large against its spread. The products of a batch are float32, their sums over
batches float64. Per batch and net this costs three passes over the activation and half a matrix
product; memory does not grow with the number of batches.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Objective = Literal["correlation", "covariance", "inner_product"]
Std = Literal["pooled", "mean_of_batches"]

#: A unit whose standard deviation is below this share of its mean is constant: a dead unit.
DEAD = 1e-6


class Moments:
    """Sums over samples of both nets' units, their squares, and the products of all pairs.

    Activations come as [samples, units] or [samples, units, slots]; slots (an attention head's
    features) are compared one by one and their similarities averaged.
    """

    def __init__(self) -> None:
        self.samples = self.batches = 0
        self._reference, self._moving = _OneNet(), _OneNet()
        self._products: Tensor | float = 0.0  # [slots, units of reference, units of moving]

    def add(self, reference: Tensor, moving: Tensor) -> None:
        """One batch of activations of the same inputs. On two devices, `moving` is brought over."""
        moving = moving.to(reference.device)
        with torch.autocast(reference.device.type, enabled=False):
            b, a = self._reference.centred(reference), self._moving.centred(moving)
            self._products = self._products + (b.mT @ a).double()
            self._reference.add(b)
            self._moving.add(a)
        self.samples += b.shape[1]
        self.batches += 1

    def similarity(self, objective: Objective, std: Std) -> tuple[Tensor, int]:
        """float64 [units of reference, units of moving] on the CPU; the number of dead units.

        See `matching.similarities`. A dead unit's covariance is exactly 0, so that noise cannot
        choose between dead units.
        """
        n = self.samples
        (mean_b, full_b, var_b, dead_b), (mean_a, full_a, var_a, dead_a) = (
            net.moments(n) for net in (self._reference, self._moving)
        )
        dead = int(torch.maximum(dead_b.all(0).sum(), dead_a.all(0).sum()))
        covariance = self._products.cpu() / n - _outer(mean_b, mean_a)
        covariance = covariance.masked_fill(dead_b[:, :, None] | dead_a[:, None, :], 0.0)
        if objective == "covariance":
            result = covariance
        elif objective == "inner_product":
            result = covariance + _outer(full_b, full_a)
        elif std == "mean_of_batches":
            std_b, std_a = (
                net.batch_stds.cpu() / self.batches for net in (self._reference, self._moving)
            )
            result = covariance / (_outer(std_b, std_a) + 1e-4)
        else:
            scale = _outer(var_b.sqrt(), var_a.sqrt())
            result = torch.where(scale == 0, 0.0, covariance / scale)
        return result.mean(0), dead


class _OneNet:
    """The part of the moments that concerns one net; every tensor is [slots, units]."""

    def __init__(self) -> None:
        self.shift: Tensor | None = None
        self.sums: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0
        self.batch_stds: Tensor | float = 0.0

    def centred(self, x: Tensor) -> Tensor:
        """[samples, units(, slots)] -> float32 [slots, samples, units] about the fixed shift."""
        x = x.float()
        x = x[None] if x.ndim == 2 else x.movedim(2, 0)
        if self.shift is None:
            self.shift = x.mean(1)
        return x - self.shift[:, None, :]

    def add(self, centred: Tensor) -> None:
        """Overwrites its argument."""
        n = centred.shape[1]
        total = centred.sum(1).double()
        squares = centred.square_().sum(1).double()
        self.sums = self.sums + total
        self.squares = self.squares + squares
        variance = (squares - total.square() / n).clamp_min(0) / (n - 1)  # NaN for a single sample
        self.batch_stds = self.batch_stds + variance.sqrt()

    def moments(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean about the shift, mean, variance, and whether the unit is dead; on the CPU."""
        mean = self.sums.cpu() / n
        variance = (self.squares.cpu() / n - mean.square()).clamp_min(0)
        full = mean + self.shift.double().cpu()
        return mean, full, variance, variance.sqrt() <= DEAD * full.abs()


def _outer(b: Tensor, a: Tensor) -> Tensor:
    """[slots, n], [slots, m] -> [slots, n, m]."""
    return b[:, :, None] * a[:, None, :]
