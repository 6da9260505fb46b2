"""Processes that work on one run together: ranks, of which the first leads.

All ranks call the same function with the same arguments, apart from files: what a run starts from,
and where its progress goes, is the first one's matter. Each takes an equal part of every batch.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rebasin_utils.errors import InputError, RanksLost
from rebasin_utils.nets.images import Split

#: A rank waits for as long while the first one computes what it does alone.
PATIENCE = timedelta(days=2)


@dataclass(frozen=True)
class Ranks:
    """All processes of a process group; this one is number `rank` of `size`."""

    rank: int
    size: int

    @property
    def group(self) -> dist.ProcessGroup:
        return dist.group.WORLD

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        """What `batches.Batches` calls a part."""
        return self.rank, self.size

    def told(self, what: Any = None) -> Any:
        """What the first rank gives, on all ranks."""
        box = [what]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gathered(self, what: Any) -> list[Any]:
        """What every rank gives, on all ranks."""
        found = [None] * self.size
        dist.all_gather_object(found, what)
        return found

    def sum(self, *tensors: Tensor) -> None:
        """Replace tensors by their sums over all ranks."""
        for tensor in tensors:
            dist.all_reduce(tensor)

    def share(self, split: Split) -> Split:
        """This rank's samples of a split: every sample is one rank's."""
        n = len(split)
        return split.chosen(slice(self.rank * n // self.size, (self.rank + 1) * n // self.size))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What the ranks do as one: no rank can go on alone once another has failed.

        Raises:
            RanksLost: whatever went wrong, here or elsewhere.
        """
        try:
            yield
        except InputError as error:
            raise RanksLost(f"rank {self.rank}: {error}") from error
        except RuntimeError as error:
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            if _is_lost(str(error)):
                first = "another rank died"
            raise RanksLost(f"rank {self.rank}: {first}; {_GO_ON}") from error


_GO_ON = "what is stored stays, and the same command goes on from the last checkpoints"


def _is_lost(message: str) -> bool:
    """gloo and NCCL have no exceptions of their own for it."""
    return any(sign in message for sign in ("gloo", "NCCL", "Connection", "Broken pipe"))


def started() -> bool:
    """Whether `torchrun`, or what sets its variables, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[Ranks, torch.device]]:
    """The ranks that `torchrun` has started, connected: NCCL between GPUs, gloo between CPUs.

    Returns:
        The ranks, and this rank's device.

    Raises:
        RanksLost: when they cannot be connected.
    """
    backend = "cpu:gloo"
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    before = signal.signal(signal.SIGTERM, _stopped)
    try:
        try:
            dist.init_process_group(backend, timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise RanksLost(f"the ranks cannot be connected: {why}") from error
        try:
            yield Ranks(dist.get_rank(), dist.get_world_size()), device
        finally:
            dist.destroy_process_group()
    except (RanksLost, Stopped) as error:
        before = signal.SIG_IGN  # torchrun sends it to what ends already, and has yet to say why
        raise RanksLost(str(error)) from error
    finally:
        signal.signal(signal.SIGTERM, before)


class Stopped(BaseException):
    """torchrun ends all ranks so when one has died.

    No `Exception`: whatever runs at that moment, such as a model that is being traced, would take
    it for its own.
    """


def _stopped(*_: Any) -> None:
    rank = os.environ["RANK"]
    raise Stopped(f"rank {rank}: stopped, for another rank died or from outside; {_GO_ON}")
