"""Image classification data as one uint8 tensor on the device, and batches made from it there.

A data set small enough for memory is kept whole as `Images`: uint8 pixels, int64 labels. Batches
are gathered, augmented and normalised for all samples at once on the device; nothing is done image
by image in Python. The order of an epoch and the augmentation of every sample come from a stateless
`EpochPlan` of (seed, epoch), so that a run can be stopped and resumed at any epoch and does not
depend on what runs beside it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rebasin_utils.embedded import make as embedded
from rebasin_utils.errors import InputError


@dataclass(frozen=True)
class Source:
    """What is known of a data set before it is read.

    `mean` and `std` are per channel, of pixels in [0, 1]; those of CIFAR-10, CIFAR-100 and SVHN are
    the ones the paper uses (CIFAR-10 is normalised with ImageNet's). `pad` and `flip` say how the
    training images are augmented: crop from an image zero-padded by `pad` pixels, flip left-right.
    """

    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    torchvision: str | None  # class name in torchvision.datasets; None: embedded
    folder: str  # where torchvision keeps the files, below the data root
    get: str  # how a user gets the files


_FASHION = dict(classes=10, shape=(1, 28, 28), mean=(0.2860,), std=(0.3530,))
_IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

SOURCES = {
    "fashion-mnist-10k": Source(
        **_FASHION, pad=0, flip=False, torchvision=None, folder="", get="it is in the package"
    ),
    "fashion-mnist": Source(
        **_FASHION,
        pad=2,
        flip=True,
        torchvision="FashionMNIST",
        folder="FashionMNIST/raw",
        get="on Debian `apt-get install dataset-fashion-mnist`",
    ),
    "cifar10": Source(
        classes=10,
        shape=(3, 32, 32),
        **_IMAGENET,
        pad=4,
        flip=True,
        torchvision="CIFAR10",
        folder="cifar-10-batches-py",
        get="unpack cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html there",
    ),
    "cifar100": Source(
        classes=100,
        shape=(3, 32, 32),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
        pad=4,
        flip=True,
        torchvision="CIFAR100",
        folder="cifar-100-python",
        get="unpack cifar-100-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html there",
    ),
    "svhn": Source(
        classes=10,
        shape=(3, 32, 32),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        pad=4,
        flip=False,
        torchvision="SVHN",
        folder="",
        get="put train_32x32.mat and test_32x32.mat from http://ufldl.stanford.edu/housenumbers "
        "there",
    ),
}

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Images:
    """One split of a data set.

    pixels: uint8 [n, channels, height, width]; labels: int64 [n], on the same device.
    """

    pixels: Tensor
    labels: Tensor
    source: Source

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width), after pooling if any."""
        return tuple(self.pixels.shape[1:])

    def to(self, device: torch.device | str) -> Images:
        """The same split with its tensors on `device`."""
        return Images(self.pixels.to(device), self.labels.to(device), self.source)

    def head(self, n: int) -> Images:
        """The first `n` samples."""
        return Images(self.pixels[:n], self.labels[:n], self.source)

    def normalised(self, pixels: Tensor) -> Tensor:
        """uint8 [..., channels, height, width] -> float32 with the source's mean and std."""
        mean, std = _mean_and_std(self.source, pixels.device)
        return (pixels.to(torch.float32) - mean) / std


@cache
def _mean_and_std(source: Source, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of pixels in [0, 255], [channels, 1, 1] each; a GPU waits for numbers that are sent to it."""
    return tuple(
        torch.tensor(values, device=device).view(-1, 1, 1) * 255
        for values in (source.mean, source.std)
    )


def data_root() -> Path:
    """`REBASIN_DATA`, else the platform's cache folder for this project."""
    if "REBASIN_DATA" in os.environ:
        return Path(os.environ["REBASIN_DATA"]).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return cache / "rebasin" / "data"


def load(name: str, split: str, pool: int = 1, limit: int | None = None) -> Images:
    """One split of a data set, from the package or from `data_root()` through torchvision.

    Args:
        name: one of `SOURCES`.
        split: "train" or "test".
        pool: average every pool x pool pixels into one (rounded to uint8).
        limit: keep the first `limit` samples only.

    Raises:
        InputError: unknown name or split, a pool that does not divide the image side, or files
            that are not there and could not be downloaded; says where they are looked for and how
            to get them.
    """
    source = source_of(name)
    if split not in ("train", "test"):
        raise InputError(f"split = {split!r}: choose train or test")
    if pool < 1 or source.shape[1] % pool:
        raise InputError(f"pool = {pool}: must divide the image side, {source.shape[1]} pixels")
    pixels, labels = _read(name, split)
    if pool > 1:
        pixels = F.avg_pool2d(pixels.to(torch.float32), pool).round().to(torch.uint8)
    images = Images(pixels, labels, source)
    return images if limit is None else images.head(limit)


def source_of(name: str) -> Source:
    """The `Source` called `name`; InputError when there is none."""
    if name not in SOURCES:
        raise InputError(f"dataset = {name!r}: choose one of {', '.join(SOURCES)}")
    return SOURCES[name]


@lru_cache(maxsize=4)
def _read(name: str, split: str) -> tuple[Tensor, Tensor]:
    source = SOURCES[name]
    if source.torchvision is None:
        with np.load(embedded.FILE) as arrays:
            pixels = torch.from_numpy(arrays[f"{split}_images"])[:, None]
            return pixels, torch.from_numpy(arrays[f"{split}_labels"]).long()
    on_debian = name == "fashion-mnist" and DEBIAN_FASHION_MNIST.is_dir()
    if on_debian and "REBASIN_DATA" not in os.environ:
        return _read_debian_fashion_mnist(split)
    pixels, labels = _read_torchvision(name, split)
    pixels = np.asarray(pixels)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels)), torch.as_tensor(labels).long()


def _read_torchvision(name: str, split: str):
    from torchvision import datasets

    source, root = SOURCES[name], data_root()
    kind = getattr(datasets, source.torchvision)
    which = {"split": split} if name == "svhn" else {"train": split == "train"}
    try:
        data = kind(root, download=False, **which)
    except (RuntimeError, OSError):
        try:
            root.mkdir(parents=True, exist_ok=True)
            data = kind(root, download=True, **which)
        except Exception as error:
            raise InputError(
                f"dataset = {name!r}: no files in {root / source.folder} and the download failed "
                f"({type(error).__name__}); {source.get}, or set REBASIN_DATA to the folder that "
                "holds it"
            ) from error
    except Exception as error:
        raise InputError(
            f"dataset = {name!r}: the files in {root / source.folder} cannot be read "
            f"({type(error).__name__}); remove them and {source.get}, or set REBASIN_DATA to the "
            "folder that holds it"
        ) from error
    return data.data, getattr(data, "targets", None) if name != "svhn" else data.labels


def _read_debian_fashion_mnist(split: str) -> tuple[Tensor, Tensor]:
    prefix = DEBIAN_FASHION_MNIST / ("train" if split == "train" else "t10k")
    pixels = embedded.read_idx(Path(f"{prefix}-images-idx3-ubyte.gz"))
    labels = embedded.read_idx(Path(f"{prefix}-labels-idx1-ubyte.gz"))
    return torch.from_numpy(pixels.copy())[:, None], torch.from_numpy(labels.copy()).long()


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
    def draw(cls, seeds: Sequence[int], epoch: int, images: Images, augment: bool) -> EpochPlan:
        """The plan of the 0-based `epoch` of the runs with these data seeds."""
        n, device = len(images), images.pixels.device
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


class Batches:
    """Normalised, optionally augmented training batches of one split, made on its device.

    Without augmentation the whole split is normalised once. The last, incomplete batch is dropped,
    as in the paper.

    Raises:
        InputError: when the split has less than one batch.
    """

    def __init__(self, images: Images, batch_size: int, augment: bool):
        if not 1 <= batch_size <= len(images):
            raise InputError(f"batch_size = {batch_size}: the split has {len(images)} samples")
        self.images, self.batch_size, self.augment = images, batch_size, augment
        self.steps = len(images) // batch_size
        if augment:
            self._padded = F.pad(images.pixels, (images.source.pad,) * 4)
        else:
            self._floats = images.normalised(images.pixels)

    def plan(self, seeds: Sequence[int], epoch: int) -> EpochPlan:
        """The `EpochPlan` of the runs with these data seeds, for this split."""
        return EpochPlan.draw(seeds, epoch, self.images, self.augment)

    def at(self, plan: EpochPlan, step: int) -> tuple[Tensor, Tensor]:
        """Batch number `step` of every run.

        Returns:
            float32 [runs, batch, channels, height, width] and int64 labels [runs, batch].
        """
        chosen = slice(step * self.batch_size, (step + 1) * self.batch_size)
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


def in_order(images: Images, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All samples in file order as (float32 batch, labels), the last batch smaller if need be."""
    for start in range(0, len(images), batch_size):
        chosen = slice(start, start + batch_size)
        yield images.normalised(images.pixels[chosen]), images.labels[chosen]
