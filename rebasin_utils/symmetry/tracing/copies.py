"""Copies of a model to run and take apart, so that the model itself stays as it is.

A forward may write into the model: buffers that count, an embedding with `max_norm`. So nothing
here ever runs the user's model, only copies of it that have tensors of their own.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_utils.errors import InputError


def eval_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that shares no memory with the model, which keeps its own mode.

    Tensors that share memory with one another do so in the copy.

    Raises:
        InputError: for what is not a module, hides its network behind a wrapper, has no Python
            forward to follow or integer weights, or cannot be copied; the sentence says which.
    """
    refuse_what_hides(model)
    tensors: dict[int, Any] = {}
    storages: dict[Any, Any] = {}
    for module in model.modules():
        own = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        for t in own:
            if isinstance(t, Tensor) and id(t) not in tensors:
                tensors[id(t)] = _copied(t, storages)
    try:
        return copy.deepcopy(model, tensors).eval()
    except Exception as e:
        raise InputError(f"{type(model).__name__} cannot be copied: {e}") from e


def refuse_what_hides(model: nn.Module) -> None:
    """Raise what `eval_copy` raises of models that cannot be looked into."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}: give the nn.Module itself")
    for path, module in model.named_modules():
        name, where = type(module).__name__, f"model.{path}" if path else "model"
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(
                f"{where} is a TorchScript module, which has no Python forward to follow: give the "
                "module it was made from"
            )
        if type(module).__module__.startswith("torch.ao.nn.quantized"):
            raise InputError(
                f"{where} is a quantised {name}, whose weights are no tensors of the state: give "
                "the floating-point model"
            )
        inside = list(module._modules)
        if type(module).__module__.startswith("torch.") and inside in (["module"], ["_orig_mod"]):
            raise InputError(
                f"{where} is a {name}, which only wraps a network and gives its tensors other "
                f"names: give the {type(module._modules[inside[0]]).__name__} inside, "
                f"{where}.{inside[0]}"
            )


def _copied(tensor: Tensor, storages: dict[Any, Any]) -> Tensor:
    new = copy.deepcopy(tensor.detach(), storages)
    storages["kept", id(new)] = new  # the memo knows tensors by their ids, which must stay taken
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(new, requires_grad=tensor.requires_grad)
    return new
