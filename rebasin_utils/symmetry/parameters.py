"""Two nets' parameters as weight matching compares them: float32, by unit.

All parameters enter as they are: weights, biases, the affine part of norms. Running statistics do
not: they are measured and not learned.
"""

from __future__ import annotations

from torch import Tensor

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.permutation import Member, Spec, State

#: Relative rounding error of a float32 inner product, with a margin.
PRECISION = 1e-6


def pair_of_parameters(
    spec: Spec, moving: State, reference: State
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The parameters that some group moves, of both states, on the devices of the reference's.

    Masked weights count as zero. A tensor whose shape differs between the two, such as that of a
    classifier of other classes, cannot be compared and is left out.

    Raises:
        InputError: when a tensor is not finite.
    """
    theirs = _parameters(spec, reference)
    ours = _parameters(spec, moving)
    both = [name for name, t in theirs.items() if t.shape == ours[name].shape]
    return (
        {name: ours[name].to(theirs[name].device) for name in both},
        {name: theirs[name] for name in both},
    )


def by_unit(tensor: Tensor, member: Member) -> Tensor:
    """[units, everything that belongs to a unit on this axis]."""
    index = member.index.flatten().to(tensor.device)
    taken = tensor.index_select(member.axis, index).movedim(member.axis, 0)
    return taken.reshape(len(member.index), -1)


def _parameters(spec: Spec, state: State) -> dict[str, Tensor]:
    found = {}
    names = {member.tensor for group in spec.groups.values() for member in group.members}
    for name in sorted(names):
        if name.rpartition(".")[2].startswith("running_"):
            continue
        tensor = state.get(name)
        if tensor is None:
            tensor = state[f"{name}_orig"] * state[f"{name}_mask"]
        if not tensor.is_floating_point():
            continue
        if not tensor.isfinite().all():
            raise InputError(f"tensor {name!r} is not finite, so it cannot be matched")
        found[name] = tensor.detach().float()
    return found
