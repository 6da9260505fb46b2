"""The device that a study computes on, and the memory there."""

from __future__ import annotations

import copy
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from functools import cache
from io import StringIO

import psutil
import torch
from torch import nn

from rebasin_utils.errors import InputError

#: Environment of a process that trains on a CPU: what it frees it keeps, in huge pages. A step
#: takes and frees up to gigabytes; pages handed back meanwhile must be mapped and cleared again.
#: glibc reads this as a process starts; other systems ignore it.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",  # no mapping of its own for a large tensor
    "MALLOC_TRIM_THRESHOLD_": str(2**36),
    "MALLOC_ARENA_MAX": "1",  # those that threads have besides are handed back nevertheless
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def torch_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device = {name!r}: not available here; try auto or cpu") from error
    return device


def device_name(device: torch.device) -> str:
    """What a reader calls it: the GPU's product name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@cache
def machine() -> str:
    """This computer in a few words: its processor and the cores that may be used."""
    name = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo") as lines:
        models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        name = next(models, name)
    return f"{name}, {cores()} cores"


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; elsewhere nobody restricts a process
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_available(device: torch.device) -> int:
    """Bytes that this process may take: what is free on the GPU, or a core's share of the RAM."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return psutil.virtual_memory().available // (os.cpu_count() or 1)


def runs_channels_last(module: nn.Module, trial: Callable[[nn.Module], object]) -> bool:
    """Whether a module can compute in channels-last memory; found out on a copy in eval mode.

    A forward that takes images apart by `x.view(len(x), -1)` cannot.

    Args:
        trial: runs a module on a few samples.
    """
    if all(parameter.ndim != 4 for parameter in module.parameters()):
        return True
    try:
        # A traced module prints a traceback of what fails in it.
        with torch.no_grad(), torch.random.fork_rng(devices=[]), redirect_stderr(StringIO()):
            trial(channels_last(copy.deepcopy(module)).eval())
    except RuntimeError:
        return False
    return True


def channels_last(module: nn.Module) -> nn.Module:
    """The module, its 2D convolutions' kernels now in channels-last memory.

    Convolutions and whatever looks at single channels are faster there.
    """
    for parameter in module.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return module


@contextmanager
def reproducible(device: torch.device) -> Iterator[None]:
    """The same bits every time: one thread on a CPU, cuDNN's deterministic kernels on a GPU.

    With two threads convolutions round otherwise than with one. Small runs gain nothing from
    threads anyway; cores are used by processes.
    """
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    if device.type == "cpu":
        torch.set_num_threads(1)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.deterministic = deterministic
