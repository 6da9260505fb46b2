"""Nets that a user brings, and nets, masks and permutations to take away: plain files of tensors.

What is read is safetensors, or a `state_dict` that `torch.save` wrote; it is loaded with
`weights_only`, so that no pickled code is ever run. What is written is safetensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from rebasin_utils.errors import InputError
from rebasin_utils.files import replace_synced

Kind = Literal["net", "mask", "signed mask", "permutation"]

#: Under which name training scripts put the state dict beside the rest of what they save.
_NESTED = ("state_dict", "model_state_dict", "model")
#: What wrappers put before every name: data parallel, `torch.compile`.
_PREFIXES = ("module.", "_orig_mod.")

_USES = {
    "net": "net.load_state_dict({loaded})",
    "mask": "mask = {loaded}  # parameter: bool, True where the weight is kept",
    "signed mask": "signs = {loaded}  # parameter: int8, -1, 0 or 1",
    "permutation": "permutation = {loaded}  # group: place i takes the unit with this number",
}


def read(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The state of a net of the architecture of `model`, which is not changed.

    A state dict may lie within a training script's checkpoint, bear the prefixes of data parallel
    or `torch.compile`, have another floating-point type, or lack batch norm's counts of batches.

    Returns:
        the tensors on the CPU, in the order and with the types of the model's own.

    Raises:
        InputError: when the file cannot be read or holds pickled code, something that is no tensor,
            the state of another net, or numbers that are not finite.
    """
    where = f"checkpoint = {str(path)!r}"
    state = _unwrapped(_loaded(path, where))
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"{where}: {name} is a {type(tensor).__name__}; must be a tensor")
    own = model.state_dict()
    counts = {name: t for name, t in own.items() if name.endswith("num_batches_tracked")}
    found = {**counts, **state}
    _check_names(where, "lacks", own.keys() - found.keys(), model)
    _check_names(where, "has", found.keys() - own.keys(), model)
    for name, tensor in own.items():
        if found[name].shape != tensor.shape:
            raise InputError(
                f"{where}: {name} has the shape {list(found[name].shape)}, and that of "
                f"{type(model).__name__} {list(tensor.shape)}"
            )
        if not found[name].isfinite().all():
            raise InputError(f"{where}: {name} has numbers that are not finite")
    return {name: found[name].to(tensor.dtype, copy=True) for name, tensor in own.items()}


def write(path: Path, tensors: Mapping[str, Tensor], kind: Kind) -> str:
    """Write a state, a mask, a signed mask or a permutation as safetensors, whole or not at all.

    Returns:
        a line of Python that loads it; it also stands in the file, under "load" of its metadata.

    Raises:
        InputError: when the name does not end in .safetensors, or it cannot be written there.
    """
    if path.suffix != ".safetensors":
        raise InputError(f"file = {str(path)!r}: its name must end in .safetensors")
    line = _USES[kind].format(loaded=f"safetensors.torch.load_file({str(path)!r})")
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    try:
        replace_synced(path, save_tensors(own, metadata={"kind": kind, "load": line}))
    except OSError as error:
        raise InputError(f"file = {str(path)!r}: cannot be written ({error.strerror})") from error
    return line


def _loaded(path: Path, where: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # what is raised at files that are none of theirs is of many kinds
        if "GLOBAL" in str(error):
            raise InputError(
                f"{where}: holds pickled code, which is not run; save net.state_dict() instead"
            ) from error
        raise InputError(
            f"{where}: is neither safetensors nor a state_dict ({type(error).__name__})"
        ) from error


def _unwrapped(content: Any) -> dict[str, Any]:
    """The state dict within a checkpoint, without the prefixes of wrappers."""
    for name in _NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    state = dict(content) if isinstance(content, Mapping) else {"it": content}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _check_names(where: str, verb: str, names: Set[str], model: nn.Module) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise InputError(
            f"{where}: is of another net than {type(model).__name__}; it {verb} {min(names)}{more}"
        )
