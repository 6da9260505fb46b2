"""Random numbers that a network draws itself while it is trained: dropout, stochastic depth.

As the order of the images does, they come from the run's seed and from where the run stands, so
that neither what else a process does, nor where it was stopped, changes any.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
from torch import nn

from rebasin_utils.nets.data import Split, in_order


def draws(model: nn.Module, images: Split) -> bool:
    """Whether the model draws numbers in a training step; found out on a copy and two images."""
    few, _ = next(in_order(images.head(2), 2))
    dtype = next((p.dtype for p in model.parameters()), few.dtype)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        before = torch.get_rng_state()
        # What the model cannot do, training will say.
        with suppress(RuntimeError, ValueError):
            copy.deepcopy(model).cpu().train()(few.to("cpu", dtype))
        return not torch.equal(torch.get_rng_state(), before)


@contextmanager
def drawing(device: torch.device, *place: int) -> Iterator[None]:
    """What is drawn inside depends on `place` alone: (seed, epoch, step, rank) of a training step.

    Every rank draws for its own part of a batch, so how many there are changes what is drawn.
    """
    # Apart from the data order's and AWS's, should a run's seeds be the same.
    sequence = np.random.SeedSequence(place, spawn_key=(1,))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
        yield
