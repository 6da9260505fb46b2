"""Whether a state is of the architecture that a spec was traced from: its names and shapes.

A spec says which positions trade places; on a net of another width, or with another layer, the
first so many positions would be moved in silence. What no group moves may differ: the classes, the
channels of the input, the size of a kernel.
"""

from __future__ import annotations

from torch import Tensor

from rebasin_utils.errors import InputError, require_state
from rebasin_utils.symmetry.permutation import Spec, State, dense_name, misfit


def require_architecture(spec: Spec, state: State, whose: str) -> None:
    """Refuse a state that the spec does not speak of.

    state: under the model's own names, or those that `torch.nn.utils.prune` gives.
    whose: how the error calls it.

    Raises:
        InputError: when it is no state; when it lacks a tensor that some group moves, has one that
            the spec does not know, or one whose length differs on an axis that some group moves.
    """
    require_state(state, whose)
    moved: dict[str, set[int]] = {}
    for group in spec.groups.values():
        for member in group.members:
            moved.setdefault(member.tensor, set()).add(member.axis)
    try:
        found = {dense_name(spec, key): t for key, t in state.items() if isinstance(t, Tensor)}
        for name, tensor in found.items():
            if wrong := misfit(tensor, spec.shapes[name], moved.get(name, ())):
                raise InputError(f"tensor {name!r} {wrong}")
        for name in moved:
            if name not in found:
                raise InputError(f"it lacks the tensor {name!r}")
    except InputError as wrong:
        raise InputError(
            f"{whose} is of another architecture than the spec was traced from: {wrong}"
        ) from None
