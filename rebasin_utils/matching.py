"""Activation matching: the permutation of one network's units that makes them act like another's.

For every group of units the similarity of all pairs (reference unit, moving unit) over the data is
computed, and the one-to-one assignment of largest total similarity is found exactly (Li et al.
2016; Tatro et al. 2020; Ainsworth et al. 2023, Section 3.1; the paper's Section 3.2).

A permuted network computes the same activations in another order, so matching one layer does not
change what another layer sees: a single pass over the data serves all groups, where the literature
makes one pass per layer. How the moments are gathered is in `moments`, how ties are settled in
`assignment`; `benchmarks/matching.md` has what it costs.

What units act like is all that is compared: a spec that was not proved (`PermutationSpec.prove`)
for this architecture gives a matching that may not keep the network's function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from rebasin_utils.activations import streamed
from rebasin_utils.assignment import best_assignment
from rebasin_utils.errors import InputError
from rebasin_utils.moments import Moments, Objective, Std
from rebasin_utils.permutation import Permutation, PermutationSpec

#: Relative rounding error of a similarity, with a margin: below it, units cannot be told apart.
PRECISION = 1e-5

Batch = Tensor | Sequence[Tensor]


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
    objective: Objective

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
    batches: Iterable[Batch],
    *,
    objective: Objective = "correlation",
    std: Std = "pooled",
) -> Matching:
    """Match `moving`'s units to `reference`'s on the activations of one pass over `batches`.

    The arguments are those of `similarities`. The result does not depend on the number of threads:
    units that cannot be told apart, such as dead ones, are assigned by the rule of
    `assignment.best_assignment`.

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
    batches: Iterable[Batch],
    *,
    objective: Objective = "correlation",
    std: Std = "pooled",
) -> dict[str, tuple[np.ndarray, int]]:
    """How alike every unit of `reference` and every unit of `moving` act, for all groups at once.

    Args:
        spec: of the architecture that both nets have; it says where each group is looked at.
        moving, reference: the nets A and B; they run in eval mode and are not changed. They may be
            on different devices and of different precision.
        batches: each an input of the forward, [batch, …], or a sequence that begins with the inputs
            (so a `DataLoader` of images and labels will do). Gone through once.
        objective: correlation of two units (the paper's), their covariance, or the uncentred mean
            product (Ainsworth et al. 2023, equation 1).
        std: "pooled" over all samples; "mean_of_batches" averages the standard deviations of the
            batches and adds 1e-4 to the denominator, as the released code does: for ablation.

    Returns:
        Group name -> float64 [units of reference, units of moving], and the number of dead units.

    Raises:
        InputError: when `batches` is empty or one tensor, or an option has no such value.
    """
    if objective not in get_args(Objective) or std not in get_args(Std):
        raise InputError(
            f"objective = {objective!r}, std = {std!r}: choose one of "
            f"{', '.join(get_args(Objective))}, and one of {', '.join(get_args(Std))}"
        )
    if isinstance(batches, Tensor):
        raise InputError("batches is one tensor: give a list of batches, such as [images]")
    run_moving, run_reference = streamed(moving, spec), streamed(reference, spec)
    moments = {name: Moments(objective, std) for name in spec.groups}
    empty = True
    for batch in batches:
        inputs = (batch,) if isinstance(batch, Tensor) else tuple(batch)[: spec.inputs]
        in_step = zip(run_reference(*inputs), run_moving(*inputs), strict=True)
        for (name, of_reference), (_, of_moving) in in_step:
            moments[name].add(of_reference, of_moving)
        empty = False
    if empty:
        raise InputError("batches is empty: matching needs at least one batch of inputs")
    return {name: collected.similarity() for name, collected in moments.items()}


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
    p = best_assignment(similarity, PRECISION)
    units = np.arange(len(p))
    quality = GroupMatch(
        units=len(p),
        before=float(np.diagonal(similarity).mean()),
        after=float(similarity[units, p].mean()),
        moved=float((p != units).mean()),
        dead=dead,
    )
    return torch.from_numpy(p), quality
