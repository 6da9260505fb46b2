"""Activation matching: the permutation of one network's units that makes them act like another's.

For every group of units the similarity of all pairs (reference unit, moving unit) over the data is
computed, and the one-to-one assignment of largest total similarity is found exactly (Li et al.
2016; Tatro et al. 2020; Ainsworth et al. 2023, Section 3.1; the paper's Section 3.2).

A permuted network computes the same activations in another order, so matching one layer does not
change what another layer sees: a single pass over the data serves all groups, where the literature
makes one pass per layer. Only where units of one group are the samples of another (a mixer's
channels and hidden units) is a further pass needed: `passes` says when and why. How the moments are
gathered is in `moments`, how ties are settled in `assignment` and `ties`; `benchmarks/matching.md`
has what it costs.

What units act like is all that is compared: a spec that was not proved (`PermutationSpec.prove`)
for this architecture gives a matching that may not keep the network's function.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor, nn

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.architecture import require_architecture
from rebasin_utils.symmetry.assignment import Assignment, assigned
from rebasin_utils.symmetry.batches import Batch, tensors
from rebasin_utils.symmetry.comparison import Pair
from rebasin_utils.symmetry.enough import Enough, Quarters, check, together
from rebasin_utils.symmetry.moments import Objective, Std
from rebasin_utils.symmetry.passes import passes
from rebasin_utils.symmetry.permutation import Permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.ties import settled_by_sights, settled_by_weights

#: Relative rounding error of a similarity, with a margin: below it, units cannot be told apart.
PRECISION = 1e-5

#: Samples, of the first batches, on which units that are alike at their tap are told apart.
CLOSER_LOOK = 512


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
    """A permutation of the moving net's units, and its quality per group.

    enough: of a matching that stops by itself, how much each group has seen, and what it may lack.
    """

    permutation: Permutation
    groups: dict[str, GroupMatch]
    objective: Objective
    enough: dict[str, Enough] = field(default_factory=dict)

    @property
    def regret(self) -> float:
        """The bound on what all groups lack, as a share; infinite of a matching without `until`."""
        if not self.enough:
            return math.inf
        units = {name: self.groups[name].units for name in self.enough}
        totals = {name: n * self.groups[name].after for name, n in units.items()}
        lacks = sum(total * self.enough[name].regret for name, total in totals.items())
        return together(list(units.values())) * lacks / sum(totals.values())

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
    until: float | None = None,
    group: dist.ProcessGroup | None = None,
) -> Matching:
    """Match `moving`'s units to `reference`'s on their activations on `batches`.

    The arguments are those of `similarities`; `group`, of ranks of torch.distributed that call
    this with the same nets and a part of the data each, one batch at least: what they have seen is
    summed, and all get the first one's permutation; and `until`: stop reading, group by group, as
    soon as the whole permutation lacks no more than this share of the total similarity that the
    best one has over all such data, by the bound that `enough` derives; None reads everything.
    Batches should be in random order, and of some hundred samples: the bound is looked at whenever
    their number has doubled, from 512 on, and which samples make a half, and where reading ends,
    depend on where batches end. Units that cannot be told apart where their group is looked at,
    such as dead ones, are told apart by their other activations on the first `CLOSER_LOOK` samples,
    and then by their weights (`ties`). The result does not depend on the number of threads.

    Returns:
        A `Matching`; `permute(spec, matching.permutation, state_of_moving)` is near `reference`.
    """
    check(until)
    if until is not None and group is not None:
        raise InputError(f"until = {until:g}: ranks of a group must each see all of their data")
    pair = replace(_pair(spec, moving, reference, objective, std), group=group)
    sizes = [each.size for each in spec.groups.values()]
    limit = None if until is None else until / together(sizes)  # for one group alone
    seen = _seen(pair, batches, limit)
    assignments = seen.settled | _assignments(pair, seen)
    permutation = settled_by_weights(spec, moving, reference, assignments)
    quality = {
        name: _quality(similarity, permutation[name].numpy(), dead)
        for name, (similarity, dead) in seen.similarities.items()
    }
    short = [name for name, found in seen.enough.items() if found.regret > limit]
    if short:
        worst = max(seen.enough[name].regret for name in short)
        warnings.warn(
            f"until = {until:g}: the data ended before {len(short)} of {len(quality)} groups had "
            f"seen enough; they may lack {worst:.2g} of their similarity",
            stacklevel=2,
        )
    ordered = {name: permutation[name] for name in quality}
    return Matching(ordered, quality, objective, seen.enough)


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
        batches: what each may be, `batches` says: a tensor [batch, …], a sequence that begins with
            the inputs (so a `DataLoader` of images and labels will do), or a mapping of them by
            name. Gone through once, so that an iterator will do; as often as `passes` says, where
            units of one group are the samples of another.
        objective: correlation of two units (the paper's), their covariance, or the uncentred mean
            product (Ainsworth et al. 2023, equation 1).
        std: "pooled" over all samples; "mean_of_batches" averages the standard deviations of the
            batches and adds 1e-4 to the denominator, as the released code does: for ablation.

    Returns:
        Group name -> float64 [units of reference, units of moving], and the number of dead units.

    Raises:
        InputError: when a net is not of the spec's architecture (the classes may differ), `batches`
            is empty, one tensor, or an iterator where several passes are needed, or an option has
            no such value.
    """
    return _seen(_pair(spec, moving, reference, objective, std), batches).similarities


def assign(similarity: np.ndarray, dead: int, name: str) -> tuple[Tensor, GroupMatch]:
    """The assignment of largest total similarity.

    similarity: float64 [units of reference, units of moving].

    Returns:
        p with p[i] the moving unit that goes to place i, and its quality.

    Raises:
        InputError: when a similarity is not finite, because an activation was not.
    """
    p = _assigned(similarity, name).columns
    return torch.from_numpy(p), _quality(similarity, p, dead)


def _quality(similarity: np.ndarray, p: np.ndarray, dead: int) -> GroupMatch:
    units = np.arange(len(p))
    return GroupMatch(
        units=len(p),
        before=float(np.diagonal(similarity).mean()),
        after=float(similarity[units, p].mean()),
        moved=float((p != units).mean()),
        dead=dead,
    )


def _assigned(similarity: np.ndarray, name: str) -> Assignment:
    if not np.isfinite(similarity).all():
        raise InputError(f"group {name!r}: an activation is not finite, so it cannot be matched")
    return assigned(similarity, PRECISION)


def _pair(
    spec: PermutationSpec,
    moving: nn.Module,
    reference: nn.Module,
    objective: Objective,
    std: Std,
) -> Pair:
    if objective not in get_args(Objective) or std not in get_args(Std):
        raise InputError(
            f"objective = {objective!r}, std = {std!r}: choose one of "
            f"{', '.join(get_args(Objective))}, and one of {', '.join(get_args(Std))}"
        )
    for whose, net in (("moving", moving), ("reference", reference)):
        if not isinstance(net, nn.Module):
            raise InputError(f"{whose} is a {type(net).__name__}: give the network, a module")
        require_architecture(spec, net.state_dict(), f"{whose} ({type(net).__name__})")
    return Pair(spec, moving, reference, objective, std)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What all passes over the data have shown.

    similarities: of every group, from its last look. settled: what the passes before the last one
    settled. latest: the groups of the last pass. first: the first batches. enough: where the
    passes stop by themselves, what each group has seen.
    """

    similarities: dict[str, tuple[np.ndarray, int]]
    settled: dict[str, Assignment]
    latest: tuple[str, ...]
    first: list[Batch]
    enough: dict[str, Enough]


def _seen(pair: Pair, batches: Iterable[Batch], limit: float | None = None) -> _Seen:
    """limit: of what one group may lack, as `Quarters` has it."""
    if isinstance(batches, Tensor):
        raise InputError("batches is one tensor: give a list of batches, such as [images]")
    order = passes(pair.spec)
    again = (
        f"this network needs {len(order)} passes over them, for units of some groups are the "
        "samples of others: give a list or a DataLoader"
    )
    if len(order) > 1 and isinstance(batches, Iterator):
        raise InputError(f"batches is an iterator, to be gone through once, and {again}")
    seen = _Seen({}, {}, (), [], {})
    for looks in order:
        settled = seen.settled | _assignments(pair, seen)
        data = batches if seen.first else _remembering(batches, seen.first)
        gather = {}
        if limit is not None:
            how = pair.objective, pair.std, limit, PRECISION
            gather = {name: Quarters(*how) for name in looks}
        found = pair.compare(looks, _permutation(settled), data, gather=gather)
        if not found and seen.similarities:
            raise InputError(f"batches gives nothing when gone through again, and {again}")
        if not found:
            raise InputError("batches is empty: matching needs at least one batch of inputs")
        for half in gather.values():
            if not half.done:
                half.look()
        enough = seen.enough | {name: half.enough for name, half in gather.items()}
        seen = _Seen(seen.similarities | found, settled, tuple(found), seen.first, enough)
    return replace(seen, similarities={n: seen.similarities[n] for n in pair.spec.groups})


def _assignments(pair: Pair, seen: _Seen) -> dict[str, Assignment]:
    """The groups of the last pass, as far as activations settle them."""
    found = {name: _assigned(seen.similarities[name][0], name) for name in seen.latest}
    settled = settled_by_sights(pair, found, _permutation(seen.settled), seen.first, PRECISION)
    if pair.group is not None:  # others might round otherwise
        box = [settled]
        dist.broadcast_object_list(box, dist.get_global_rank(pair.group, 0), pair.group)
        (settled,) = box
    return settled


def _permutation(assignments: Mapping[str, Assignment]) -> Permutation:
    return {name: torch.from_numpy(a.columns) for name, a in assignments.items()}


def _remembering(batches: Iterable[Batch], first: list[Batch]) -> Iterator[Batch]:
    """The batches; the first ones, with `CLOSER_LOOK` samples or more, are kept in `first`."""
    samples = 0
    for batch in batches:
        yield batch
        if samples < CLOSER_LOOK:
            first.append(batch)
            samples += len(tensors(batch)[0])
