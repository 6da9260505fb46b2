"""Images that do not fit in memory: files that are decoded while they are needed.

A stream gives the numbers that the same split gives in memory. Its order and its augmentation come
from (seed, epoch, sample) alone, so that neither the processes that decode nor where a run was
stopped changes any. What is decoded and cut travels as uint8; it is normalised on the device.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from rebasin_utils.errors import InputError, RunError
from rebasin_utils.nets.batches import EpochPlan, require_a_batch
from rebasin_utils.nets.devices import cores, memory_available
from rebasin_utils.nets.images import Images, Split
from rebasin_utils.nets.pictures import fitted, in_colour, opened, shorter_side
from rebasin_utils.nets.sources import Source

#: Share of the free memory above which pixels are streamed rather than kept.
SHARE = 0.25

#: Images that are decoded at a time to be kept.
HELD_AT_ONCE = 256

#: Batches that every process of a loader has ready or in the making.
PREFETCHED = 2

SHARED_MEMORY = Path("/dev/shm")

_RATIO = (3 / 4, 4 / 3)  # `RandomResizedCrop`'s default


class Cut(NamedTuple):
    """What a batch takes of a picture.

    row: which one. top, left: of the crop from the padded picture; None: it is taken whole. flip:
    left-right. drawn: (seed, epoch) of a random part that is cut from the original and resized.
    """

    row: int
    top: int | None = None
    left: int = 0
    flip: bool = False
    drawn: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Files(Dataset):
    """Pictures that are decoded and cut when they are asked for, in whatever process.

    names: their paths below `root`, an array of bytes, which many processes share. side: the
    shorter side is resized to it and the middle cropped; None: they have one size already. pool:
    average every pool × pool pixels into one. where: what sentences begin with. since: the time,
    in seconds, after which none may have changed.
    """

    root: str
    names: np.ndarray
    source: Source
    side: int | None
    pool: int
    where: str
    since: float = field(default_factory=time.time)

    def __len__(self) -> int:
        return len(self.names)

    def __getitems__(self, cuts: Sequence[Cut]) -> Tensor | InputError:
        """uint8 [cuts, height, width, channels]; a mistake is handed over as it is, in one line."""
        try:
            return torch.stack([self._view(cut) for cut in cuts])
        except InputError as error:
            # A new one, without traceback and cause: where distributed is imported these travel as
            # well, and come to hold the loader, whose processes then take seconds to end.
            return InputError(*error.args)

    def _view(self, cut: Cut) -> Tensor:
        """uint8 [height, width, channels]."""
        name, flip = os.fsdecode(self.names[cut.row]), cut.flip
        image = self._opened(name)
        if cut.drawn is None:
            image = self._whole(image, name)
        else:
            image, flip = _random_part(image, self.source, (*cut.drawn, cut.row))
            flip = flip and self.source.flip
        pixels = torch.from_numpy(np.array(image)[..., : self.source.shape[0]])
        if self.pool > 1:
            pooled = F.avg_pool2d(pixels.movedim(-1, 0).to(torch.float32), self.pool)
            pixels = pooled.round().to(torch.uint8).movedim(0, -1)
        if cut.top is not None:
            (height, width), pad = pixels.shape[:2], self.source.pad
            padded = F.pad(pixels, (0, 0, pad, pad, pad, pad))
            pixels = padded[cut.top : cut.top + height, cut.left : cut.left + width]
        return pixels.flip(1) if flip else pixels

    def _opened(self, name: str) -> Image.Image:
        path = f"{self.root}/{name}"
        try:
            now = os.stat(path)
        except OSError:
            raise InputError(f"{self.where}: {name} is gone since the folder was listed") from None
        if max(now.st_mtime, now.st_ctime) > self.since:
            raise InputError(f"{self.where}: {name} has changed since the folder was listed")
        return in_colour(opened(path, f"{self.where}: {name}"))

    def _whole(self, image: Image.Image, name: str) -> Image.Image:
        """As it is tested and matched on: of the size that all have."""
        _, height, width = self.source.shape
        if self.source.crop == "resized":
            return fitted(image, width, shorter_side(width))
        if self.side is not None and image.size != (self.side, self.side):
            image = fitted(image, self.side)
        if image.size != (width, height):
            raise InputError(
                f"{self.where}: {name} is {image.width} × {image.height} pixels, not {width} × "
                f"{height} as the others"
            )
        return image


def _random_part(
    image: Image.Image, source: Source, seeds: Sequence[int]
) -> tuple[Image.Image, bool]:
    """A random part of the original, resized to the source's shape, and whether to flip it."""
    from torchvision.transforms import RandomResizedCrop
    from torchvision.transforms import functional as transforms

    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    with torch.random.fork_rng(devices=[]):
        # `torch.manual_seed` also asks after GPUs, which takes longer than decoding.
        torch.default_generator.manual_seed(int(state >> 1))
        part = RandomResizedCrop.get_params(image, (source.smallest, 1.0), _RATIO)
        flip = bool(torch.rand(()) < 0.5)
    return transforms.resized_crop(image, *part, list(source.shape[1:])), flip


@dataclass(frozen=True, eq=False)
class Stream(Split):
    """A split whose images are decoded while they are needed.

    files: all pictures that there are. rows: int64 [n], which of them these are. labels: int64 [n],
    on the device on which batches are to be. loader_workers: processes that decode; None: none on a
    CPU, whose cores train; beside a GPU one a core, at most eight.

    Raises:
        InputError: while it is read: when a file is gone, has changed or cannot be decoded, or the
            workers would need more shared memory than is free.
        RunError: when a worker died.
    """

    files: Files
    rows: Tensor
    labels: Tensor
    loader_workers: int | None = None

    @property
    def source(self) -> Source:
        return self.files.source

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.source.shape
        return channels, height // self.files.pool, width // self.files.pool

    def to(self, device: torch.device | str) -> Stream:
        return replace(self, labels=self.labels.to(device))

    def chosen(self, rows: slice | Tensor) -> Stream:
        on_cpu = rows if isinstance(rows, slice) else rows.cpu()
        return replace(self, rows=self.rows[on_cpu], labels=self.labels[rows])

    def pieces(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        cuts = ([Cut(row) for row in some.tolist()] for some in self.rows.split(size))
        batches = self.read(cuts, min(size, len(self)))
        for pixels, labels in zip(batches, self.labels.split(size), strict=True):
            yield pixels.movedim(-1, 1).contiguous(), labels

    def held(self) -> Split:
        """Decoded once: `Images`, where the pixels take at most `SHARE` of the memory there."""
        if len(self) * math.prod(self.shape) > SHARE * memory_available(self.device):
            return self
        pixels = [pixels for pixels, _ in self.pieces(HELD_AT_ONCE)]
        return Images(torch.cat(pixels), self.labels, self.source)

    def read(self, cuts: Iterable[Sequence[Cut]], most: int) -> Iterator[Tensor]:
        """Batches of uint8 [batch, height, width, channels], on the device; of `most` at most."""
        workers, on_gpu = self._workers(), self.device.type == "cuda"
        if workers:
            _refuse_little_memory(workers, most * math.prod(self.shape))
        loader = DataLoader(
            self.files,
            batch_sampler=cuts,
            num_workers=workers,
            prefetch_factor=PREFETCHED if workers else None,
            collate_fn=_as_it_is,
            pin_memory=on_gpu,
            generator=torch.Generator(),  # else it draws from the global one
        )
        try:
            for batch in loader:
                if isinstance(batch, InputError):
                    raise batch
                yield batch.to(self.device, non_blocking=on_gpu)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(
                f"data.loader_workers = {workers}: a process that decodes images died, killed from "
                "outside or for want of memory; fewer need less"
            ) from error

    def _workers(self) -> int:
        if self.loader_workers is not None:
            return self.loader_workers
        return min(cores(), 8) if self.device.type == "cuda" else 0


class StreamedBatches:
    """Training batches of a `Stream`: the same as `Batches` makes in memory.

    Raises:
        InputError: as `Batches` does.
    """

    def __init__(
        self, images: Stream, batch_size: int, augment: bool, part: tuple[int, int] = (0, 1)
    ):
        require_a_batch(images, batch_size, part)
        self.images, self.batch_size, self.augment, self.part = images, batch_size, augment, part
        self.steps = len(images) // batch_size

    def epoch(
        self, seeds: Sequence[int], epoch: int, first: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Batches.epoch`."""
        images = self.images
        resized = self.augment and images.source.crop != "padded"
        plan = EpochPlan.draw(seeds, epoch, images.to("cpu"), self.augment and not resized)
        parts = [plan.part(step, self.batch_size, self.part) for step in range(first, self.steps)]

        def of(run: int, part: slice) -> list[Cut]:
            rows = images.rows[plan.order[run, part]].tolist()
            if resized:
                return [Cut(row, drawn=(seeds[run], epoch)) for row in rows]
            if not self.augment:
                return [Cut(row) for row in rows]
            corners, flips = plan.offsets[run, part].tolist(), plan.flips[run, part].tolist()
            cuts = zip(rows, corners, flips, strict=True)
            return [Cut(row, top, left, flip) for row, (top, left), flip in cuts]

        runs = range(len(seeds))
        cuts = ([cut for run in runs for cut in of(run, part)] for part in parts)
        batches = images.read(cuts, len(seeds) * self.batch_size)
        for part, pixels in zip(parts, batches, strict=True):
            labels = images.labels[plan.order[:, part].to(images.device)]
            pixels = pixels.view(*labels.shape, *pixels.shape[1:]).movedim(-1, 2)
            yield images.normalised(pixels if self.augment else pixels.contiguous()), labels


def _as_it_is(batch: Tensor | InputError) -> Tensor | InputError:
    return batch


def _refuse_little_memory(workers: int, batch_bytes: int) -> None:
    """Workers hand batches over in shared memory; where it ends, the system kills them."""
    if not SHARED_MEMORY.is_dir():
        return
    needed, free = workers * PREFETCHED * batch_bytes, shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise InputError(
            f"data.loader_workers = {workers}: they hand batches over in shared memory, which "
            f"takes {needed / 2**20:.0f} MiB, and {SHARED_MEMORY} has {free / 2**20:.0f} MiB free; "
            "take fewer, or 0"
        )
