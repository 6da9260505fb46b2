"""Permutations of hidden units, as plain values, and the spec that says what they may move.

Relabelling the hidden units of a network leaves its function unchanged, provided every tensor axis
that speaks of those units is relabelled alike (Hecht-Nielsen 1990). A `PermutationSpec` lists, per
group of interchangeable units, all such axes. It is derived from the model by
`PermutationSpec.trace` and can be tested by running the model with `PermutationSpec.check`.

A permutation maps every group's name to an index vector p: place i of the result takes unit p[i].
One function, `permute`, moves everything that is shaped like a state: weights, batch-norm buffers,
masks, momentum, signs. It only indexes, so it is exact, and it commutes with masking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch
from torch import Tensor, nn

from rebasin_utils.errors import InputError

State = Mapping[str, Tensor]
Permutation = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Member:
    """One axis of one tensor that moves with its group.

    index: int64 [units, slots], the positions of every unit on that axis. A unit may have several
    (a channel flattened together with its pixels, an attention head with its features).
    """

    tensor: str
    axis: int
    index: Tensor


@dataclass(frozen=True, eq=False)
class Tap:
    """The activation by which a group is matched: the last one before others take it up.

    That is after the nonlinearity, at the end of the last block for a residual stream. Where units
    show both whole and in parts (attention heads: as attention weights, and as features) the whole
    is taken.

    node: the name of the node in the torch.fx graph that produces it.
    place: the same for people: the module that computes it.
    dims: the dimensions of the activation that hold the units, ascending.
    index: int64 [units, slots], positions within those dimensions, flattened in that order.
    """

    node: str
    place: str
    dims: tuple[int, ...]
    index: Tensor

    @cached_property
    def takes_all(self) -> bool:
        """Whether the units are all that those dimensions hold, in their order."""
        return torch.equal(self.index.flatten(), torch.arange(self.index.numel()))


@dataclass(frozen=True, eq=False)
class Group:
    """Units that may trade places with one another, and everything that moves when they do."""

    name: str
    size: int
    members: tuple[Member, ...]
    tap: Tap


@dataclass(frozen=True)
class Pinned:
    """Positions on one axis that stay where they are: how many, and why."""

    tensor: str
    axis: int
    count: int
    reason: str


@dataclass(frozen=True, eq=False)
class Report:
    """What a spec says, as two tables and one number.

    groups: name, units, slots (positions of one unit at the tap), tap, tensors (axes that move).
    pinned: tensor, axis, count (of positions), reason.
    free_share: share of all positions on channel axes (axes longer than 1, without the pixels of
        convolution kernels) that belong to a group.
    """

    groups: pd.DataFrame
    pinned: pd.DataFrame
    free_share: float

    def __str__(self) -> str:
        with pd.option_context("display.max_colwidth", 60):
            return (
                f"{len(self.groups)} groups, {self.free_share:.1%} of channel positions free\n"
                f"{self.groups.to_string(index=False)}\n\npinned to the identity:\n"
                f"{self.pinned.to_string(index=False) if len(self.pinned) else 'nothing'}"
            )

    def _repr_html_(self) -> str:
        return (
            f"<p>{len(self.groups)} groups, {self.free_share:.1%} of channel positions free</p>"
            f"{self.groups.to_html(index=False)}<p>Pinned to the identity:</p>"
            f"{self.pinned.to_html(index=False)}"
        )


@dataclass(frozen=True, eq=False)
class PermutationSpec:
    """Which axes of which tensors move together, for one architecture.

    groups: by name, in the order in which the network computes them.
    pinned: the channel axes, or parts of them, that must not move, with the reason.
    shapes: of every tensor of the state, under the names of a dense model.
    inputs: how many positional arguments the forward was traced with.
    """

    groups: dict[str, Group]
    pinned: tuple[Pinned, ...]
    shapes: dict[str, tuple[int, ...]]
    inputs: int = 1

    @classmethod
    def trace(
        cls, model: nn.Module, example: Tensor | tuple[Tensor, ...], stream_tap: str = "last"
    ) -> PermutationSpec:
        """Derive the spec from the model's own graph, by `tracing.trace`.

        Args:
            model: any module that torch.fx can trace; neither its mode nor its buffers change.
            example: an input batch, or a tuple of the forward's positional arguments.
            stream_tap: "last" taps the last residual stream at its last block; "released_code" taps
                it one block earlier, as the code behind the paper's tables does.

        Raises:
            InputError: when the model cannot be traced; the sentence names the place. Also for
                "released_code" when the last residual stream has one block only.
        """
        from rebasin_utils.tracing import trace

        return trace(model, example, stream_tap)

    def check(self, model: nn.Module, example: Tensor | tuple[Tensor, ...], seed: int = 0) -> float:
        """Relative change of the model's outputs when every group is permuted at random.

        See `tracing.check`. A right spec gives rounding error (about 1e-14), a wrong one 1e-3 to 1.
        """
        from rebasin_utils.tracing import check

        return check(model, self, example, seed)

    def prove(
        self,
        model: nn.Module,
        example: Tensor | tuple[Tensor, ...],
        seed: int = 0,
        tolerance: float = 1e-5,
    ) -> float:
        """`check`, and an error instead of a number when the function is not kept.

        Raises:
            InputError: when the relative change exceeds `tolerance`.
        """
        error = self.check(model, example, seed)
        if not error <= tolerance:
            raise InputError(
                f"this spec does not keep the function of {type(model).__name__}: a random "
                f"permutation changes its output by {error:.1e} (relative), more than {tolerance:g}"
            )
        return error

    def report(self) -> Report:
        """Groups, sizes, taps; what is pinned and why; the share of channels that are free."""
        groups = [
            {
                "group": g.name,
                "units": g.size,
                "slots": g.tap.index.shape[1],
                "tap": g.tap.place,
                "tensors": len(g.members),
            }
            for g in self.groups.values()
        ]
        pinned = [vars(p) for p in self.pinned]
        free = sum(m.index.numel() for g in self.groups.values() for m in g.members)
        total = free + sum(p.count for p in self.pinned)
        return Report(
            pd.DataFrame(groups, columns=["group", "units", "slots", "tap", "tensors"]),
            pd.DataFrame(pinned, columns=["tensor", "axis", "count", "reason"]),
            free / total if total else 0.0,
        )


def identity(spec: PermutationSpec) -> Permutation:
    """The permutation that moves nothing."""
    return {name: torch.arange(group.size) for name, group in spec.groups.items()}


def random_permutation(spec: PermutationSpec, generator: torch.Generator) -> Permutation:
    """One uniformly random permutation per group; `generator` must live on the CPU."""
    return {
        name: torch.randperm(group.size, generator=generator) for name, group in spec.groups.items()
    }


def invert(p: Permutation) -> Permutation:
    """The permutation that undoes p: `compose(invert(p), p)` is the identity."""
    return {name: torch.argsort(vector) for name, vector in p.items()}


def compose(p: Permutation, q: Permutation) -> Permutation:
    """First q, then p: `permute(spec, compose(p, q), s) == permute(spec, p, permute(spec, q, s))`.

    Raises:
        InputError: when the two do not have the same groups of the same sizes.
    """
    if p.keys() != q.keys():
        odd = sorted(p.keys() ^ q.keys())
        raise InputError(f"only one of the two permutations has the group {odd[0]!r}")
    for name, vector in p.items():
        if vector.shape != q[name].shape:
            raise InputError(
                f"group {name!r} has {len(vector)} units in one permutation and {len(q[name])} in "
                "the other"
            )
    return {name: q[name].to(vector.device)[vector] for name, vector in p.items()}


def permute(spec: PermutationSpec, p: Permutation, state: State) -> dict[str, Tensor]:
    """A new dict with every tensor of `state` moved by p; the inputs stay as they are.

    state: anything with the names and shapes of the model's state (weights, buffers, masks,
        momentum, signs), or a part of it. The names that `torch.nn.utils.prune` gives
        (`weight_orig`, `weight_mask`) are understood as `weight`.

    Raises:
        InputError: when p lacks a group, has an unknown one, or holds a vector that is not a
            permutation; when a tensor of `state` is unknown to the spec or has another shape.
    """
    _validate(spec, p)
    moved: dict[str, dict[int, Tensor]] = {}  # tensor -> axis -> index along that axis
    for group in spec.groups.values():
        vector = p[group.name].to("cpu", torch.int64)
        for member in group.members:
            axes = moved.setdefault(member.tensor, {})
            length = spec.shapes[member.tensor][member.axis]
            order = axes.setdefault(member.axis, torch.arange(length))
            order[member.index.flatten()] = member.index[vector].flatten()
    result = {}
    for key, tensor in state.items():
        name = _dense_name(spec, key)
        if tuple(tensor.shape) != spec.shapes[name]:
            raise InputError(
                f"tensor {key!r} has shape {tuple(tensor.shape)}, the spec was traced with "
                f"{spec.shapes[name]}"
            )
        place = tensor
        for axis, order in moved.get(name, {}).items():
            place = place.index_select(axis, order.to(place.device))
        result[key] = tensor.clone() if place is tensor else place
    return result


def _validate(spec: PermutationSpec, p: Permutation) -> None:
    for name in p:
        if name not in spec.groups:
            raise InputError(f"the permutation has a group {name!r} that the spec does not know")
    for name, group in spec.groups.items():
        if name not in p:
            raise InputError(f"the permutation lacks the group {name!r}")
        vector = p[name]
        whole = vector.ndim == 1 and not vector.is_floating_point() and len(vector) == group.size
        if not whole or not torch.equal(vector.sort().values.cpu(), torch.arange(group.size)):
            raise InputError(
                f"the index vector of group {name!r} is not a permutation of its {group.size} units"
            )


def _dense_name(spec: PermutationSpec, key: str) -> str:
    """The name of a tensor in the dense model: `conv.weight` for `conv.weight_mask`."""
    for name in (key, key.removesuffix("_orig"), key.removesuffix("_mask")):
        if name in spec.shapes:
            return name
    raise InputError(f"tensor {key!r} is not in the traced model's state")
