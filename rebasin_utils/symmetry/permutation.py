"""Permutations of hidden units, as plain values, and the spec that says what they may move.

Relabelling the hidden units of a network leaves its function unchanged, provided every tensor axis
that speaks of those units is relabelled alike (Hecht-Nielsen 1990). A `Spec` lists, per
group of interchangeable units, all such axes (`spec` derives it from a model, and proves it).

A permutation maps every group's name to an index vector p: place i of the result takes unit p[i].
One function, `permute`, moves everything that is shaped like a state: weights, batch-norm buffers,
masks, momentum, signs. It only indexes, so it is exact, and it commutes with masking.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rebasin_utils.errors import InputError, require_state
from rebasin_utils.symmetry.example import Example

State = Mapping[str, Tensor]
Permutation = dict[str, Tensor]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


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
    """An activation that shows a group's units.

    The one by which a group is matched is the last before others take it up: after the
    nonlinearity, at the end of the last block for a residual stream. Where units show both whole
    and in parts (attention heads: as attention weights, and as features) the whole is taken.

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
    """Units that may trade places with one another, and everything that moves when they do.

    sights: every activation that newly shows the units, in order of computation; the tap is one.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    tap: Tap
    sights: tuple[Tap, ...] = ()


@dataclass(frozen=True)
class Pinned:
    """Positions on one axis that stay where they are: how many, and why."""

    tensor: str
    axis: int
    count: int
    reason: str


@dataclass(frozen=True, eq=False)
class Spec:
    """Which axes of which tensors move together, for one architecture.

    groups: by name, in the order in which the network computes them.
    pinned: the channel axes, or parts of them, that must not move, with the reason.
    shapes: of every tensor of the state, under the names of a dense model.
    inputs: how the forward takes its inputs: so many positional arguments, or the example whose run
        was written down.
    """

    groups: dict[str, Group]
    pinned: tuple[Pinned, ...]
    shapes: dict[str, tuple[int, ...]]
    inputs: int | Example = 1


def identity(spec: Spec) -> Permutation:
    """The permutation that moves nothing."""
    return {name: torch.arange(group.size) for name, group in spec.groups.items()}


def random_permutation(spec: Spec, generator: torch.Generator) -> Permutation:
    """One uniformly random permutation per group; `generator` must live on the CPU.

    Raises:
        InputError: when `generator` is something else, a seed for instance.
    """
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        raise InputError(f"generator = {generator!r}: give a torch.Generator on the CPU")
    return {
        name: torch.randperm(group.size, generator=generator) for name, group in spec.groups.items()
    }


def invert(p: Permutation) -> Permutation:
    """The permutation that undoes p: `compose(invert(p), p)` is the identity.

    Raises:
        InputError: when p is no permutation.
    """
    _refuse_other_than_permutations(p)
    return {name: torch.argsort(vector) for name, vector in p.items()}


def compose(p: Permutation, q: Permutation) -> Permutation:
    """First q, then p: `permute(spec, compose(p, q), s) == permute(spec, p, permute(spec, q, s))`.

    Raises:
        InputError: when one is no permutation, or they have not the same groups of the same sizes.
    """
    _refuse_other_than_permutations(p)
    _refuse_other_than_permutations(q)
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


def permute(spec: Spec, p: Permutation, state: State) -> dict[str, Tensor]:
    """A new dict with every tensor of `state` moved by p; the inputs stay as they are.

    state: anything with the names and shapes of the model's state (weights, buffers, masks,
        momentum, signs), or a part of it. The names that `torch.nn.utils.prune` gives
        (`weight_orig`, `weight_mask`) are understood as `weight`.

    Raises:
        InputError: when p lacks a group, has an unknown one, or holds a vector that is not a
            permutation; when `state` is no mapping of tensors (a module, say), or one of them is
            unknown to the spec or has another shape (the length of an axis that no group moves
            does not matter).
    """
    _validate(spec, p)
    require_state(state)
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
        name = dense_name(spec, key)
        if not isinstance(tensor, Tensor):
            raise InputError(f"state[{key!r}] is a {type(tensor).__name__}: give a tensor")
        if wrong := misfit(tensor, spec.shapes[name], moved.get(name, ())):
            raise InputError(f"tensor {key!r} {wrong}")
        place = tensor
        for axis, order in moved.get(name, {}).items():
            place = place.index_select(axis, order.to(place.device))
        result[key] = tensor.clone() if place is tensor else place
    return result


def misfit(tensor: Tensor, traced: tuple[int, ...], moved: Iterable[int]) -> str:
    """What keeps a tensor from being the one that was traced with this shape; "" if nothing does.

    Axes other than `moved`, which no group moves, may be of any length: nets may differ in their
    classes.
    """
    found = tuple(tensor.shape)
    alike = len(found) == len(traced) and all(found[axis] == traced[axis] for axis in moved)
    return "" if alike else f"has shape {found}, the spec was traced with {traced}"


def dense_name(spec: Spec, key: str) -> str:
    """The name of a tensor in the dense model: `conv.weight` for `conv.weight_mask`."""
    for name in (key, key.removesuffix("_orig"), key.removesuffix("_mask")):
        if name in spec.shapes:
            return name
    raise InputError(f"tensor {key!r} is not in the traced model's state")


def _validate(spec: Spec, p: Permutation) -> None:
    _refuse_other_than_permutations(p)
    for name in p:
        if name not in spec.groups:
            raise InputError(f"the permutation has a group {name!r} that the spec does not know")
    for name, group in spec.groups.items():
        if name not in p:
            raise InputError(f"the permutation lacks the group {name!r}")
        if len(p[name]) != group.size:
            raise InputError(
                f"the index vector of group {name!r} is not a permutation of its {group.size} units"
            )


def _refuse_other_than_permutations(p: Permutation) -> None:
    if not isinstance(p, Mapping):
        raise InputError(
            f"the permutation is a {type(p).__name__}: give a dict with an index vector per group"
        )
    for name, vector in p.items():
        if not isinstance(vector, Tensor):
            raise InputError(
                f"the index vector of group {name!r} is a {type(vector).__name__}: give a tensor"
            )
        whole = vector.ndim == 1 and vector.dtype in _INTEGERS
        if not whole or not torch.equal(
            vector.sort().values.to("cpu", torch.int64), torch.arange(len(vector))
        ):
            size = len(vector) if vector.ndim else 1
            raise InputError(
                f"the index vector of group {name!r} is not a permutation of its {size} units"
            )
