"""Two networks brought into one basin in one call: trace, prove, match, move."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from torch import Tensor, nn

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.batches import Batch, arguments, needed_arguments
from rebasin_utils.symmetry.matching import Matching, match_activations
from rebasin_utils.symmetry.moments import Objective
from rebasin_utils.symmetry.permutation import permute
from rebasin_utils.symmetry.spec import PermutationSpec


@dataclass(frozen=True, eq=False)
class Aligned:
    """What `align` gives: the moving net's state, moved, and how that was found."""

    state: dict[str, Tensor]
    matching: Matching
    spec: PermutationSpec


def align(
    moving: nn.Module,
    reference: nn.Module,
    batches: Iterable[Batch],
    *,
    objective: Objective = "correlation",
) -> Aligned:
    """Permute `moving`'s hidden units so that they act like `reference`'s on the data.

    The permuted state computes the same function as before; load it into a net of the same
    architecture, average it with `reference`'s, compare the two.

    Args:
        moving, reference: nets of one architecture that torch.fx can trace; neither is changed.
        batches: as for `match_activations`; the first also serves as the example to trace with.
        objective: as for `match_activations`.

    Raises:
        InputError: when there is no batch, or as `PermutationSpec.trace`, `PermutationSpec.prove`
            and `match_activations` do.
    """
    left = iter(batches)
    first = next(left, None)
    if first is None:
        raise InputError("batches: there is none to match on")
    example = first
    if isinstance(first, tuple | list):
        example = arguments(first, needed_arguments(reference))
    spec = PermutationSpec.trace(reference, example)
    spec.prove(reference, example)
    matching = match_activations(spec, moving, reference, chain([first], left), objective=objective)
    return Aligned(permute(spec, matching.permutation, moving.state_dict()), matching, spec)
