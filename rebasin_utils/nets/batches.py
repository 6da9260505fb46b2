"""Training batches of many runs at once, gathered, augmented and normalised on the device.

Nothing is done image by image in Python. The order of an epoch and the augmentation of every sample
come from a stateless `EpochPlan` of (seed, epoch), so that a run can be stopped and resumed at any
epoch and does not depend on what runs beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rebasin_utils.errors import InputError
from rebasin_utils.nets.images import Images, Split


@dataclass(frozen=True)
class EpochPlan:
    """What one epoch of several runs does with every sample: its order, crop and flip.

    order: int64 [runs, n], permutations; offsets: int64 [runs, n, 2], top and left of the crop;
    flips: bool [runs, n]; the last two are None without augmentation. Every run's part is drawn on
    the CPU from its (seed, epoch) alone, so it is the same on every device and in any company.
    """

    order: Tensor
    offsets: Tensor | None = None
    flips: Tensor | None = None

    @classmethod
    def draw(cls, seeds: Sequence[int], epoch: int, images: Split, augment: bool) -> EpochPlan:
        """The plan of the 0-based `epoch` of the runs with these data seeds."""
        n, device = len(images), images.device
        side, chance = 2 * images.source.pad + 1, 0.5 if images.source.flip else 0.0
        drawn = {}
        for seed in set(seeds):
            state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(state >> 1))
            drawn[seed] = [torch.randperm(n, generator=generator)]
            if augment:
                drawn[seed].append(torch.randint(0, side, (n, 2), generator=generator))
                drawn[seed].append(torch.rand(n, generator=generator) < chance)
        parts = zip(*(drawn[seed] for seed in seeds), strict=True)
        return cls(*(torch.stack(part).to(device) for part in parts))

    @staticmethod
    def part(step: int, batch_size: int, part: tuple[int, int]) -> slice:
        """Where in the order a batch lies, or the (rank, ranks) part of it."""
        rank, ranks = part
        size = batch_size // ranks
        start = step * batch_size + rank * size
        return slice(start, start + size)


class Batches:
    """Normalised, optionally augmented training batches of one split, made on its device.

    Without augmentation the whole split is normalised once. The last, incomplete batch is dropped,
    as in the paper.

    part: (rank, ranks): of every batch only this one of as many equal parts.

    Raises:
        InputError: when the split has less than one batch, or the ranks cannot divide it.
    """

    def __init__(
        self, images: Images, batch_size: int, augment: bool, part: tuple[int, int] = (0, 1)
    ):
        require_a_batch(images, batch_size, part)
        self.images, self.batch_size, self.augment, self.part = images, batch_size, augment, part
        self.steps = len(images) // batch_size
        if augment:
            self._padded = F.pad(images.pixels, (images.source.pad,) * 4)
        else:
            self._floats = images.normalised(images.pixels)

    def plan(self, seeds: Sequence[int], epoch: int) -> EpochPlan:
        """The `EpochPlan` of the runs with these data seeds, for this split."""
        return EpochPlan.draw(seeds, epoch, self.images, self.augment)

    def epoch(
        self, seeds: Sequence[int], epoch: int, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the 0-based `epoch` of the runs with these data seeds, from `first` on."""
        plan = self.plan(seeds, epoch)
        return (self.at(plan, step) for step in range(first, self.steps))

    def at(self, plan: EpochPlan, step: int) -> tuple[Tensor, Tensor]:
        """Batch number `step` of every run.

        Returns:
            float32 [runs, batch, channels, height, width] and int64 labels [runs, batch].
        """
        chosen = plan.part(step, self.batch_size, self.part)
        rows = plan.order[:, chosen]
        labels = self.images.labels[rows]
        if not self.augment:
            pixels = self._floats.index_select(0, rows.flatten())  # three times as fast as [rows]
            return pixels.view(*rows.shape, *self.images.shape), labels
        _, height, width = self.images.shape
        y = torch.arange(height, device=rows.device) + plan.offsets[:, chosen, :1]
        x = torch.arange(width, device=rows.device) + plan.offsets[:, chosen, 1:]
        x = torch.where(plan.flips[:, chosen, None], x.flip(-1), x)
        # Advanced indexing puts the channels last, which is the memory format convolutions like.
        pixels = self._padded[rows[..., None, None], :, y[..., :, None], x[..., None, :]]
        return self.images.normalised(pixels.movedim(-1, 2)), labels


def require_a_batch(images: Split, batch_size: int, part: tuple[int, int]) -> None:
    """Refuse a batch that the split has not, or that the ranks cannot divide."""
    if not 1 <= batch_size <= len(images):
        raise InputError(f"batch_size = {batch_size}: the split has {len(images)} samples")
    if batch_size % part[1]:
        raise InputError(
            f"batch_size = {batch_size}: {part[1]} ranks cannot divide it into equal parts"
        )


def in_order(split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples in order as (float32 batch, labels), the last batch smaller if need be."""
    for pixels, labels in split.pieces(batch_size):
        yield split.normalised(pixels), labels
