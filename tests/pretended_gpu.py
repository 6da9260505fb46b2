"""A GPU that is pretended: it computes on the CPU, and minds what would fail or wait on a real one.

Its tensors say that they are on "cuda"; an operation that mixes them with tensors of the CPU fails,
as PyTorch lets it fail, and whatever crosses between the two is counted.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 0)


class There(Tensor):
    """A tensor on the pretended GPU. here: its numbers, on the CPU."""

    @staticmethod
    def __new__(cls, here: Tensor):
        layout = dict(strides=here.stride(), storage_offset=here.storage_offset())
        made = cls._make_wrapper_subclass(cls, here.shape, dtype=here.dtype, **layout)
        made.here = here
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @property
    def device(self) -> torch.device:
        return DEVICE

    @property
    def is_cuda(self) -> bool:
        return True

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        strays = [t for t in tensors if not isinstance(t, There)]
        copied = strays and operation is torch.ops.aten.copy_.default
        if copied or operation is torch.ops.aten._local_scalar_dense.default:
            PretendedGPU.crossed += 1
        elif any(t.ndim for t in strays):
            shapes = [tuple(t.shape) for t in strays]
            raise RuntimeError(f"{operation}: tensors on two devices, {shapes} on the CPU")
        here = tree_map_only(There, lambda t: t.here, (args, kwargs or {}))
        results = operation(*here[0], **here[1])
        # What is computed in place is the tensor that it was.
        known = {id(t): t for t in strays} | {
            id(t.here): t for t in tensors if isinstance(t, There)
        }
        return tree_map_only(
            Tensor, lambda t: known[id(t)] if id(t) in known else There(t), results
        )


class PretendedGPU(TorchFunctionMode):
    """While it is entered, "cuda" is `DEVICE`, to be moved to and to make tensors on."""

    #: Times that numbers went from one side to the other, for which a real GPU may have to wait.
    crossed = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func is Tensor.tolist and isinstance(first, There):
            return self._back(first).tolist()
        if func is Tensor.cpu and isinstance(first, There):
            return self._back(first)
        if func is Tensor.to:
            return self._moved(first, args[1:], kwargs)
        if _is_cuda(kwargs.get("device")):
            made = func(*args, **kwargs | {"device": "cpu"})
            if func in (torch.tensor, torch.as_tensor):
                PretendedGPU.crossed += 1
            return made if isinstance(made, There) else There(made)
        return func(*args, **kwargs)

    def _moved(self, tensor: Tensor, args: tuple, kwargs: dict) -> Tensor:
        """`Tensor.to`."""
        if args and isinstance(args[0], Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        targets = [a for a in (*args, kwargs.get("device")) if isinstance(a, str | torch.device)]
        to_cuda = any(map(_is_cuda, targets))
        if targets and not to_cuda and isinstance(tensor, There):
            tensor = self._back(tensor)
        args = ["cpu" if _is_cuda(a) else a for a in args]
        tensor = tensor.to(*args, **kwargs | ({"device": "cpu"} if "device" in kwargs else {}))
        return self._there(tensor) if to_cuda and not isinstance(tensor, There) else tensor

    def _there(self, tensor: Tensor) -> There:
        PretendedGPU.crossed += 1
        return There(tensor.detach().clone())

    def _back(self, tensor: There) -> Tensor:
        PretendedGPU.crossed += 1
        return tensor.here.clone()


def _is_cuda(device: str | torch.device | None) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"
