"""Activation matching: the permutation of one network's units that makes them act like another's.

For every group of units the similarity of all pairs (reference unit, moving unit) over the data is
computed, and the one-to-one assignment of largest total similarity is found exactly (Li et al.
2016; Tatro et al. 2020; Ainsworth et al. 2023, Section 3.1; the paper's Section 3.2).

A permuted network computes the same activations in another order, so matching one layer does not
change what another layer sees: a single pass over the data serves all groups, where the literature
makes one pass per layer. Moments are accumulated about the first batch's mean, because raw moments
lose the correlation once a unit's mean is large against its spread; products are float32, their
sums over batches float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from rebasin_utils.errors import InputError
from rebasin_utils.permutation import Permutation, PermutationSpec
from rebasin_utils.tracing import tapped

Objective = Literal["correlation", "covariance", "inner_product"]
Std = Literal["pooled", "mean_of_batches"]

#: A unit whose standard deviation is below this share of its mean is constant: a dead unit.
DEAD = 1e-6


@dataclass(frozen=True)
class GroupMatch:
    """How well one group matched.

    before, after: mean similarity of a unit with the one in its place, unmatched and matched.
    moved: share of the units that change places. dead: units that are constant on all inputs, in
    the net that has more of them.
    """

    units: int
    before: float
    after: float
    moved: float
    dead: int


@dataclass(frozen=True, eq=False)
class Matching:
    """A permutation of the moving net's units, and its quality per group."""

    permutation: Permutation
    groups: dict[str, GroupMatch]
    objective: str

    def table(self) -> pd.DataFrame:
        """One row per group: units, before, after, moved, dead."""
        return quality_table(self.quality())

    def quality(self) -> dict[str, dict]:
        """The same as plain values."""
        return {name: dict(vars(match)) for name, match in self.groups.items()}

    def __repr__(self) -> str:
        units = sum(m.units for m in self.groups.values())
        table = self.table().to_string(index=False, float_format="{:.3f}".format)
        return (
            f"Matching of {units} units in {len(self.groups)} groups by {self.objective}\n{table}"
        )


def quality_table(quality: Mapping[str, Mapping]) -> pd.DataFrame:
    """`Matching.quality`, as stored, with one row per group."""
    return pd.DataFrame([{"group": name, **match} for name, match in quality.items()])


def match_activations(
    spec: PermutationSpec,
    moving: nn.Module,
    reference: nn.Module,
    batches: Iterable[Tensor],
    *,
    objective: Objective = "correlation",
    std: Std = "pooled",
) -> Matching:
    """Match `moving`'s units to `reference`'s on the activations of one pass over `batches`.

    The arguments are those of `similarities`.

    Returns:
        A `Matching`; `permute(spec, matching.permutation, state_of_moving)` is near `reference`.
    """
    permutation, quality = {}, {}
    compared = similarities(spec, moving, reference, batches, objective=objective, std=std)
    for name, (similarity, dead) in compared.items():
        permutation[name], quality[name] = assign(similarity, dead, name)
    return Matching(permutation, quality, objective)


def similarities(
    spec: PermutationSpec,
    moving: nn.Module,
    reference: nn.Module,
    batches: Iterable[Tensor],
    *,
    objective: Objective = "correlation",
    std: Std = "pooled",
) -> dict[str, tuple[np.ndarray, int]]:
    """How alike every unit of `reference` and every unit of `moving` act, for all groups at once.

    Args:
        spec: of the architecture that both nets have.
        moving, reference: the nets A and B; they are run in eval mode and not changed.
        batches: inputs, float [batch, …]; memory does not grow with their number.
        objective: correlation of two units (the paper's), their covariance, or the uncentred mean
            product (Ainsworth et al. 2023, equation 1).
        std: "pooled" over all samples; "mean_of_batches" averages the standard deviations of the
            batches and adds 1e-4 to the denominator, as the released code does: for ablation.

    Returns:
        Group name -> float64 [units of reference, units of moving], and the number of dead units.

    Raises:
        InputError: when `batches` is empty.
    """
    run_moving, run_reference = tapped(moving, spec), tapped(reference, spec)
    moments: dict[str, _Moments] = {}
    for batch in batches:
        of_moving = run_moving(batch.to(_device(moving)))
        of_reference = run_reference(batch.to(_device(reference)))
        for name in spec.groups:
            if name not in moments:
                moments[name] = _Moments(of_reference[name], of_moving[name])
            moments[name].add(of_reference[name], of_moving[name])
    if not moments and spec.groups:
        raise InputError("batches is empty: matching needs at least one batch of inputs")
    return {name: collected.similarity(objective, std) for name, collected in moments.items()}


def assign(similarity: np.ndarray, dead: int, name: str) -> tuple[Tensor, GroupMatch]:
    """The assignment of largest total similarity.

    similarity: float64 [units of reference, units of moving].

    Returns:
        p with p[i] the moving unit that goes to place i, and its quality.

    Raises:
        InputError: when a similarity is not finite, because an activation was not.
    """
    if not np.isfinite(similarity).all():
        raise InputError(f"group {name!r}: an activation is not finite, so it cannot be matched")
    _, p = linear_sum_assignment(similarity, maximize=True)
    units = np.arange(len(p))
    quality = GroupMatch(
        units=len(p),
        before=float(np.diagonal(similarity).mean()),
        after=float(similarity[units, p].mean()),
        moved=float((p != units).mean()),
        dead=dead,
    )
    return torch.from_numpy(p), quality


class _Moments:
    """First and second moments of one group's units in both nets, about a fixed shift.

    Activations come as [samples, units] or [samples, units, slots]; slots (an attention head's
    features) are compared one by one and their similarities averaged.
    """

    def __init__(self, reference: Tensor, moving: Tensor):
        self.shift = [_by_slot(x).mean(1, keepdim=True) for x in (reference, moving)]
        self.samples = self.batches = 0
        self.sums: list[Tensor | float] = [0.0, 0.0]
        self.squares: list[Tensor | float] = [0.0, 0.0]
        self.batch_stds: list[Tensor | float] = [0.0, 0.0]
        self.products: Tensor | float = 0.0

    def add(self, reference: Tensor, moving: Tensor) -> None:
        b, a = (_by_slot(x) - s for x, s in zip((reference, moving), self.shift, strict=True))
        self.samples += b.shape[1]
        self.batches += 1
        for i, x in enumerate((b, a)):
            self.sums[i] = self.sums[i] + x.sum(1).double()
            self.squares[i] = self.squares[i] + x.square().sum(1).double()
            self.batch_stds[i] = self.batch_stds[i] + x.std(1).double()
        self.products = self.products + (b.mT @ a.to(b.device)).double()

    def similarity(self, objective: Objective, std: Std) -> tuple[np.ndarray, int]:
        """[units of reference, units of moving], averaged over slots; the number of dead units."""
        n = self.samples
        shift_b, shift_a = (s.squeeze(1).double().cpu() for s in self.shift)
        mean_b, mean_a = (s.cpu() / n for s in self.sums)
        products = self.products.cpu() / n
        var_b, var_a = (
            (q.cpu() / n - m.square()).clamp_min(0)
            for q, m in zip(self.squares, (mean_b, mean_a), strict=True)
        )
        covariance = products - mean_b[:, :, None] * mean_a[:, None, :]
        full_b, full_a = mean_b + shift_b, mean_a + shift_a
        dead_b, dead_a = (v.sqrt() <= DEAD * m.abs() for v, m in ((var_b, full_b), (var_a, full_a)))
        dead = int(torch.maximum(dead_b.all(0).sum(), dead_a.all(0).sum()))
        covariance = covariance.masked_fill(dead_b[:, :, None] | dead_a[:, None, :], 0.0)
        if objective == "inner_product":
            result = covariance + full_b[:, :, None] * full_a[:, None, :]
        elif objective == "covariance":
            result = covariance
        elif std == "mean_of_batches":
            std_b, std_a = (s.cpu() / self.batches for s in self.batch_stds)
            result = covariance / (std_b[:, :, None] * std_a[:, None, :] + 1e-4)
        else:
            scale = var_b.sqrt()[:, :, None] * var_a.sqrt()[:, None, :]
            result = torch.where(scale == 0, 0.0, covariance / scale)
        return result.mean(0).numpy(), dead


def _device(net: nn.Module) -> torch.device:
    return next(net.parameters()).device


def _by_slot(x: Tensor) -> Tensor:
    """[samples, units(, slots)] -> float32 [slots, samples, units]."""
    x = x.float()
    return x[None] if x.ndim == 2 else x.movedim(2, 0)
