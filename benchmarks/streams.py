"""How fast images are streamed, beside a loop that anyone would write, and the decoder alone.

    python benchmarks/streams.py FOLDER [--batch 128] [--repeats 3]

FOLDER is an image folder, as `data.source` takes it. Training views: the crop from the padded
image, or with `--side` a random part of the original, resized. Also says whether the stream gives
what the same split gives in memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from report import as_markdown, machine
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from rebasin_utils.nets import data
from rebasin_utils.nets.data import Reading


def plain(folder: Path, source: data.Source, batch: int, workers: int) -> Iterator:
    """torchvision's data set, transforms and a `DataLoader`, as in its own examples."""
    side = source.shape[1]
    cut = (
        v2.RandomResizedCrop(side)
        if source.crop == "resized"
        else v2.RandomCrop(side, padding=source.pad)
    )
    steps = [cut, v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    steps.append(v2.Normalize(source.mean, source.std))
    images = ImageFolder(folder / "train", transform=v2.Compose(steps))
    return iter(DataLoader(images, batch, shuffle=True, num_workers=workers, drop_last=True))


def decoded(folder: Path) -> Iterator:
    """Every file opened and decoded, one after the other."""
    for file in sorted((folder / "train").rglob("*.*")):
        if file.suffix.lower() in (".jpg", ".jpeg", ".png"):
            with Image.open(file) as image:
                image.load()
            yield torch.empty(1)


def images_per_second(made: Callable[[], Iterator], repeats: int) -> float:
    """Of the fastest of several rounds."""
    best = 0.0
    for _ in range(repeats):
        begin, n = time.perf_counter(), 0
        for batch in made():
            n += batch.shape[-4] if isinstance(batch, torch.Tensor) and batch.ndim > 3 else 1
        best = max(best, n / (time.perf_counter() - begin))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, help="random parts of the originals, this wide")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    reading = Reading(side=asked.side, crop="resized") if asked.side else Reading()
    print(f"{machine()}\n")
    rows, alone = [], images_per_second(lambda: decoded(asked.folder), asked.repeats)
    for workers in (0, 1, 2):
        images = data.load(
            str(asked.folder), "train", reading=reading, stream=True, loader_workers=workers
        )
        ours = data.training_batches(images, asked.batch, augment=True)
        rows.append(
            {
                "workers": workers,
                "stream": images_per_second(
                    lambda o=ours: (x for x, _ in o.epoch([0], 0)), asked.repeats
                ),
                "plain loop": images_per_second(
                    lambda s=images.source, w=workers: (
                        x for x, _ in plain(asked.folder, s, asked.batch, w)
                    ),
                    asked.repeats,
                ),
                "decoder alone": alone,
            }
        )
    print(f"images/s, {len(images):,} images of {images.shape}\n\n{as_markdown(rows)}\n")
    if not asked.side:
        memory = data.load(str(asked.folder), "train", stream=False)
        pairs = zip(
            data.training_batches(memory, asked.batch, True).epoch([0, 1], 3),
            data.training_batches(images, asked.batch, True).epoch([0, 1], 3),
            strict=True,
        )
        same = all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)
        print(f"an epoch of two runs, streamed and in memory, to the last digit: {same}")


if __name__ == "__main__":
    main()
