"""A GPU that is pretended: it computes on the CPU, and minds what would fail or wait on a real one.

Its tensors say that they are on "cuda"; an operation that mixes them with tensors of the CPU fails,
as PyTorch lets it fail, and whatever crosses between the two is counted. A graph is what a CUDA
graph is: operations with the memory and the numbers that they had when they were recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.optim.sgd import sgd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from rebasin_utils.nets import images
from rebasin_utils.training import graphs, optimizers, stacking

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
        tensors: list[Tensor] = []

        def here_of(tensor: Tensor) -> Tensor:
            tensors.append(tensor)
            return tensor.here if isinstance(tensor, There) else tensor

        here = _mapped(here_of, (args, kwargs or {}))
        strays = [t for t in tensors if not isinstance(t, There)]
        copied = strays and operation is torch.ops.aten.copy_.default
        if copied or operation is torch.ops.aten._local_scalar_dense.default:
            PretendedGPU.cross()
        elif any(t.ndim for t in strays):
            shapes = [tuple(t.shape) for t in strays]
            raise RuntimeError(f"{operation}: tensors on two devices, {shapes} on the CPU")
        results = operation(*here[0], **here[1])
        if Graph.recording is not None and not operation.is_view:
            Graph.recording.append((operation, here, results))
        # What is computed in place is the tensor that it was.
        known = {id(t.here if isinstance(t, There) else t): t for t in tensors}

        def wrapped(result: Tensor) -> Tensor:
            return known[id(result)] if id(result) in known else There(result)

        return _mapped(wrapped, results)


def _mapped(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Every tensor in what an operation takes or gives, replaced; much faster than a pytree."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, part) for part in value])
    if isinstance(value, dict):
        return {name: _mapped(function, part) for name, part in value.items()}
    return value


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
                self.cross()
            return made if isinstance(made, There) else There(made)
        return func(*args, **kwargs)

    @classmethod
    def cross(cls) -> None:
        if Graph.recording is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        cls.crossed += 1

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
        self.cross()
        return There(tensor.detach().clone())

    def _back(self, tensor: There) -> Tensor:
        self.cross()
        return tensor.here.clone()


class Graph:
    """In the place of `torch.cuda.CUDAGraph`."""

    recording: list | None = None

    @contextmanager
    def record(self, stream: object) -> Iterator[None]:
        """In the place of `torch.cuda.graph`."""
        Graph.recording = self.tape = []
        try:
            yield
        finally:
            Graph.recording = None

    def replay(self) -> None:
        for operation, (args, kwargs), results in self.tape:
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old is not new:
                    old.copy_(new)


class Stream:
    """In the place of `torch.cuda.Stream`: all work is done at once, in the order of the calls."""

    def __init__(self, device: torch.device = DEVICE): ...

    def wait_stream(self, other: Stream) -> None: ...


CUDA = {
    "CUDAGraph": Graph,
    "graph": Graph.record,
    "Stream": Stream,
    "current_stream": Stream,
    "stream": nullcontext,
    "synchronize": lambda device=DEVICE: None,
    "empty_cache": lambda: None,
    "get_device_name": lambda device: "pretended",
    "mem_get_info": lambda device: (2**32, 2**32),
    "memory_reserved": lambda device: 0,
    "memory_allocated": lambda device: 0,
    "max_memory_allocated": lambda: 0,
    "reset_peak_memory_stats": lambda: None,
}


@contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """In it "cuda" can be used."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _forget()
    try:
        with patch.multiple(torch.cuda, **CUDA), PretendedGPU() as gpu:
            yield gpu
    finally:
        _forget()
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def prefer_graphs(patch: pytest.MonkeyPatch) -> None:
    """Nets that can be are stepped by graphs, whatever a trial finds; optimisers round as on a GPU.

    The fused optimiser of a CPU rounds by a number's place in memory; that of a GPU does not.
    """
    patch.setattr(graphs, "_seconds", lambda net, x, y: 1 - isinstance(net, graphs.Graphed))
    patch.setattr(optimizers, "sgd", lambda *args, fused, **more: sgd(*args, **more))
    graphs._chosen.clear()


def _forget() -> None:
    """What is remembered of one GPU, which is not true of another that bears its name."""
    images._mean_and_std.cache_clear()
    stacking._alone_rounds_otherwise.cache_clear()


def _is_cuda(device: str | torch.device | None) -> bool:
    return isinstance(device, str | torch.device) and torch.device(device).type == "cuda"
