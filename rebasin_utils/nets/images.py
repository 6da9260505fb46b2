"""A split of a data set: what all splits can, and one that is a uint8 tensor on the device.

Training, evaluation, matching and statistics know a `Split` and nothing of where its pixels are:
in memory (`Images`), or in files that are decoded while they are needed (`streams.Stream`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Self

import torch
from torch import Tensor

from rebasin_utils.errors import InputError
from rebasin_utils.nets.sources import Source


class Split(ABC):
    """One split of a data set, wherever its pixels are.

    labels: int64 [n], on the device on which its batches are.
    """

    labels: Tensor
    source: Source

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width), after pooling if any."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same split with its batches on `device`."""

    @abstractmethod
    def chosen(self, rows: slice | Tensor) -> Self:
        """These samples only, in this order."""

    @abstractmethod
    def pieces(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All samples in order: uint8 pixels and labels, `size` at a time, the last maybe fewer."""

    def held(self) -> Split:
        """The same split in memory, for what looks at it many times, where it fits; else itself."""
        return self

    def head(self, n: int) -> Self:
        """The first `n` samples."""
        return self.chosen(slice(n))

    def balanced(self, n: int) -> Self:
        """`n` samples with equally many of every class, and the classes in turns.

        They are the first of each class, so a larger subset holds a smaller one as its head. Where
        the number of classes does not divide `n`, the first classes have one more.

        Raises:
            InputError: when `n` is below 1 or a class has too few samples.
        """
        if n < 1:
            raise InputError(f"data.limit = {n}: must be at least 1")
        classes = self.source.classes
        there = torch.bincount(self.labels, minlength=classes).cpu()
        asked = n // classes + (torch.arange(classes) < n % classes).long()
        for label in (asked > there).nonzero().flatten().tolist():
            raise InputError(
                f"data.limit = {n}: a balanced subset takes {asked[label]} samples of class {label}"
                f", which has {there[label]}; at most {classes * there.min()} can be had"
            )
        return self.chosen(in_turns(self.labels)[:n])

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 [..., channels, height, width] -> float32 with the source's mean and std."""
        mean, std = _mean_and_std(self.source, pixels.device)
        return (pixels.to(torch.float32) - mean) / std


@dataclass(frozen=True)
class Images(Split):
    """A split in memory: one tensor on the device that it is used on.

    pixels: uint8 [n, channels, height, width]; labels: int64 [n], on the same device.
    """

    pixels: Tensor
    labels: Tensor
    source: Source

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.pixels.shape[1:])

    def to(self, device: torch.device | str) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device), self.source)

    def chosen(self, rows: slice | Tensor) -> Images:
        return Images(self.pixels[rows], self.labels[rows], self.source)

    def pieces(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield self.pixels[rows], self.labels[rows]


def in_turns(labels: Tensor) -> Tensor:
    """int64 [n], an order in which the classes take turns: the first sample of each, the second, …

    Within a class it keeps the order of `labels`; a class that is used up is passed over.
    """
    by_class = labels.argsort(stable=True)
    counts = torch.bincount(labels)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    place = torch.empty_like(labels)  # of every sample within its class
    place[by_class] = torch.arange(len(labels), device=labels.device) - starts
    return (place * len(counts) + labels).argsort()


@cache
def _mean_and_std(source: Source, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of pixels in [0, 255], [channels, 1, 1] each; a GPU waits for numbers that are sent to it."""
    return tuple(
        torch.tensor(values, device=device).view(-1, 1, 1) * 255
        for values in (source.mean, source.std)
    )
