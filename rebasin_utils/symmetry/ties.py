"""Telling apart the units that look alike at their tap: by their other sights, then by weights.

A unit that is dead behind its ReLU, or at the end of a residual stream, is like every other dead
unit there, and yet it may be alive before the ReLU or in earlier blocks. What the tap leaves open
is settled by the sum of the similarities at all other activations that show the group, and what
these leave open by the weights (coordinate ascent, as in `weight_matching`, over the open units
alone). Units that differ in nothing keep their order. None of this touches a unit that the tap
tells from the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from rebasin_utils.symmetry.assignment import Assignment, refined
from rebasin_utils.symmetry.batches import Batch
from rebasin_utils.symmetry.comparison import Pair
from rebasin_utils.symmetry.moments import full_float32
from rebasin_utils.symmetry.parameters import PRECISION as PRECISION_OF_WEIGHTS
from rebasin_utils.symmetry.parameters import by_unit, pair_of_parameters
from rebasin_utils.symmetry.passes import look_at
from rebasin_utils.symmetry.permutation import Permutation, Spec, permute

#: After so many sweeps over the open groups their weights are left as they are matched.
SWEEPS = 10


def settled_by_sights(
    pair: Pair,
    assignments: Mapping[str, Assignment],
    settled: Permutation,
    batches: Sequence[Batch],
    precision: float,
) -> dict[str, Assignment]:
    """The same assignments, with the open units matched on the groups' other activations.

    settled: the permutation of the groups that are known; an activation whose samples are units of
        others is passed over.
    batches: a few, for which both nets are run once more if anything is open.
    """
    looks, units = {}, {}
    for name, assignment in assignments.items():
        group = pair.spec.groups[name]
        for i, sight in enumerate(group.sights if len(assignment.open_rows) else ()):
            look = look_at(pair.spec, sight)
            if sight.node != group.tap.node and look.needs() <= settled.keys():
                looks[name, i] = look
                units[name, i] = assignment.open_rows, assignment.open_columns
    if not looks:
        return dict(assignments)
    seen: dict[str, np.ndarray] = {}
    for (name, _), (similarity, _) in pair.compare(looks, settled, batches, units).items():
        finite = np.nan_to_num(similarity, nan=0.0, posinf=0.0, neginf=0.0)
        seen[name] = seen.get(name, 0.0) + finite
    return {
        name: refined(assignment, seen[name], precision) if name in seen else assignment
        for name, assignment in assignments.items()
    }


def settled_by_weights(
    spec: Spec, moving: nn.Module, reference: nn.Module, assignments: Mapping[str, Assignment]
) -> Permutation:
    """The permutation of these assignments, with the open units matched by their weights."""
    p = {name: torch.from_numpy(a.columns) for name, a in assignments.items()}
    unvisited = {name for name, a in assignments.items() if len(a.open_rows)}
    open_groups = [name for name in spec.groups if name in unvisited]
    if not open_groups:
        return p
    ours, theirs = pair_of_parameters(spec, moving.state_dict(), reference.state_dict())
    with full_float32(next((t.device for t in theirs.values()), torch.device("cpu"))):
        for _ in range(SWEEPS):
            before = dict(p)
            for name in open_groups:
                unvisited.discard(name)
                p[name] = _by_weights(spec, name, assignments, p, ours, theirs, unvisited)
            if all(torch.equal(p[name], before[name]) for name in open_groups):
                break
    return p


def _by_weights(
    spec: Spec,
    name: str,
    assignments: Mapping[str, Assignment],
    p: Permutation,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    unvisited: set[str],
) -> Tensor:
    """One group's permutation, its open units matched on the weights that others have settled.

    unvisited: groups whose open units are not settled; what belongs to these does not count.
    """
    group, assignment = spec.groups[name], assignments[name]
    rows, columns = (torch.from_numpy(x) for x in (assignment.open_rows, assignment.open_columns))
    places = torch.argsort(p[name])[columns]
    mine = {m.tensor: ours[m.tensor] for m in group.members if m.tensor in ours}
    moved = permute(spec, p, mine)
    similarity = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for member in group.members:
        if member.tensor not in moved:
            continue
        known = theirs[member.tensor]
        for other in unvisited:
            for m in spec.groups[other].members:
                if m.tensor == member.tensor:
                    unknown = m.index[torch.from_numpy(assignments[other].open_rows)].flatten()
                    known = known.index_fill(m.axis, unknown.to(known.device), 0.0)
        b, a = by_unit(known, member)[rows], by_unit(moved[member.tensor], member)[places]
        similarity += (b @ a.mT).double().cpu()
    chosen = refined(assignment, similarity.numpy(), PRECISION_OF_WEIGHTS)
    return torch.from_numpy(chosen.columns)
