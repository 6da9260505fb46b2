"""Reading groups, taps and pins off a solved walk."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.permutation import Group, Member, Pinned, Tap
from rebasin_utils.symmetry.tracing.places import place_of
from rebasin_utils.symmetry.tracing.values import Units, Value

#: Why something is pinned that takes no part in the forward.
UNUSED = "not used in the forward"

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True, eq=False)
class Walked:
    """What a walk leaves behind.

    axes: (tensor, axis) -> its atoms; the atoms of tensors come before those of activations.
    values: the Value of every node of the graph, in graph order. computing: the nodes that make new
    activations (neither copies nor pools). units: the solved ledger.
    """

    axes: Mapping[tuple[str, int], np.ndarray]
    values: Mapping[fx.Node, Any]
    computing: frozenset[fx.Node]
    units: Units


@dataclass(frozen=True, eq=False)
class _Sight:
    """A node at which a kind of unit is seen: along which dimensions, at which positions."""

    node: fx.Node
    dims: tuple[int, ...]
    index: np.ndarray  # [units, slots]


def read_groups(walked: Walked, stream_tap: str) -> tuple[dict[str, Group], tuple[Pinned, ...]]:
    """All groups of two or more interchangeable units, and all positions that are in none."""
    units = walked.units
    free = (units.kind >= 0) & units.tied
    real = np.concatenate([*walked.axes.values(), np.zeros(0, np.int64)])
    rank = np.full(len(units.unit), len(units.unit))  # order of units: by their first real atom
    np.minimum.at(rank, units.unit[real], real)
    rank = rank[units.unit]
    movable = real[free[real]]
    pairs = np.unique(np.stack([units.kind[movable], units.unit[movable]]), axis=1)
    kinds, count = np.unique(pairs[0], return_counts=True)
    kinds = set(kinds[count > 1].tolist())
    sights = _sights(walked, kinds, rank)

    seen = sorted((k for k in kinds if sights[k]), key=lambda k: _order(walked, sights[k][0]))
    members = _members(walked, set(seen), rank)
    taps = {k: _last(sights[k]) for k in seen}
    if stream_tap == "released_code":
        taps |= _one_block_early(walked, sights)
    elif stream_tap != "last":
        raise InputError(f"stream_tap = {stream_tap!r}: choose 'last' or 'released_code'")
    groups: dict[str, Group] = {}
    for kind in seen:
        first = sights[kind][0].node
        name = base = place_of(first) or first.name
        again = 2
        while name in groups:
            name, again = f"{base}#{again}", again + 1
        shown = {sight: _as_tap(sight) for sight in sights[kind]}
        tap = shown[taps[kind]]
        groups[name] = Group(name, len(tap.index), members[kind], tap, tuple(shown.values()))
    return groups, _pinned(walked, kinds, set(seen))


def _as_tap(sight: _Sight) -> Tap:
    index = torch.from_numpy(sight.index)
    return Tap(sight.node.name, describe(sight.node), sight.dims, index)


def describe(node: fx.Node) -> str:
    """A node for people: `layer1.0.relu`, or `layer1.0 (add)` for a function called there."""
    path = place_of(node)
    if node.op == "call_module":
        return path
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return f"{path} ({name})" if path else f"{node.name} ({name})"


def _sights(walked: Walked, kinds: set[int], rank: np.ndarray) -> dict[int, list[_Sight]]:
    """Per kind, every computing node that shows its units, in graph order."""
    sights: dict[int, list[_Sight]] = defaultdict(list)
    for node in walked.values:
        value = walked.values[node]
        if node not in walked.computing or not isinstance(value, Value) or not value.sampled:
            continue
        for factor in value.factors:
            dims = tuple(d for d, n in enumerate(factor.shape) if n > 1)
            atoms = factor.reshape(-1)
            here = walked.units.kind[atoms]
            for kind in kinds.intersection(here.tolist()):
                at = np.flatnonzero(here == kind)
                at = at[np.lexsort((at, rank[atoms[at]]))]
                count = len(np.unique(rank[atoms[at]]))
                sights[kind].append(_Sight(node, dims, at.reshape(count, -1)))
    return sights


def _last(sights: list[_Sight]) -> _Sight:
    """The last node that shows a unit in one place, or where there is none the last at all."""
    return next((s for s in reversed(sights) if s.index.shape[1] == 1), sights[-1])


def _order(walked: Walked, sight: _Sight) -> int:
    return list(walked.values).index(sight.node)


def _one_block_early(walked: Walked, sights: dict[int, list[_Sight]]) -> dict[int, _Sight]:
    """The tap of the last residual stream moved to the output of its second-to-last block.

    A block ends in a sum of two activations and the activation functions that follow it alone.
    A network without residual streams has nothing to move.
    """
    ends = {
        kind: [s for s in seen if s.node.target in _ADDS and _adds_activations(walked, s.node)]
        for kind, seen in sights.items()
    }
    ends = {kind: found for kind, found in ends.items() if found}
    if not ends:
        return {}
    kind = max(ends, key=lambda k: _order(walked, ends[k][-1]))
    if len(ends[kind]) < 2:
        raise InputError("stream_tap = 'released_code' needs two blocks in the last stage")
    by_node = {s.node: s for s in sights[kind]}
    node = ends[kind][-2].node
    while len(node.users) == 1 and (after := next(iter(node.users))) in by_node:
        if len(after.all_input_nodes) > 1:
            break
        node = after
    return {kind: by_node[node]}


def _adds_activations(walked: Walked, node: fx.Node) -> bool:
    operands = [walked.values.get(n) for n in node.all_input_nodes]
    return sum(isinstance(v, Value) and v.sampled for v in operands) == 2


def _members(walked: Walked, kinds: set[int], rank: np.ndarray) -> dict[int, tuple[Member, ...]]:
    members: dict[int, list[Member]] = defaultdict(list)
    for (tensor, axis), atoms in walked.axes.items():
        here = walked.units.kind[atoms]
        for kind in kinds.intersection(here.tolist()):
            at = np.flatnonzero(here == kind)
            at = at[np.lexsort((at, rank[atoms[at]]))]
            count = len(np.unique(rank[atoms[at]]))
            index = torch.from_numpy(at.reshape(count, -1))
            members[kind].append(Member(tensor, axis, index))
    return {kind: tuple(found) for kind, found in members.items()}


def _pinned(walked: Walked, kinds: set[int], seen: set[int]) -> tuple[Pinned, ...]:
    """Every position outside the groups, counted by axis and reason."""
    units, pinned = walked.units, []
    for (tensor, axis), atoms in walked.axes.items():
        reasons: dict[str, int] = defaultdict(int)
        for atom in atoms:
            kind = units.kind[atom]
            if not units.tied[atom]:
                reasons[UNUSED] += 1
            elif units.reason[atom]:
                reasons[units.reason[atom]] += 1
            elif kind not in kinds:
                reasons["no other unit plays the same part"] += 1
            elif kind not in seen:
                reasons["no activation shows these units"] += 1
        pinned += [Pinned(tensor, axis, n, reason) for reason, n in reasons.items()]
    return tuple(p for p in pinned if p.reason != "kernel position")
