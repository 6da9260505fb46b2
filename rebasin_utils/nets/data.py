"""Image classification data sets by name, folder or file.

A data set is one that goes by a name (in the package, or through torchvision), or the user's own:
a folder of images or an `.npz` file of arrays (`own_images`). What is small is read whole as
`Images`: uint8 pixels, int64 labels. A large folder is a `Stream` of files that are decoded while
they are needed. `training_batches` makes training batches of either.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn import functional as F

from rebasin_utils.errors import InputError
from rebasin_utils.nets import folders, own_images
from rebasin_utils.nets.batches import Batches, EpochPlan, in_order
from rebasin_utils.nets.embedded import make as embedded
from rebasin_utils.nets.embedded import miniature
from rebasin_utils.nets.images import Images, Split
from rebasin_utils.nets.own_images import AS_THEY_ARE, OwnImages, Reading
from rebasin_utils.nets.pictures import Pictures
from rebasin_utils.nets.sources import SOURCES, Source, data_root
from rebasin_utils.nets.streams import SHARE, Files, Stream, StreamedBatches
from rebasin_utils.paths import named

__all__ = [
    "AS_THEY_ARE",
    "SOURCES",
    "Batches",
    "EpochPlan",
    "Images",
    "OwnImages",
    "Reading",
    "Source",
    "Split",
    "Stream",
    "data_root",
    "fingerprint",
    "in_order",
    "load",
    "own",
    "source_of",
    "training_batches",
]

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def load(
    name: str,
    split: str,
    pool: int = 1,
    limit: int | None = None,
    *,
    scale_pad: bool = False,
    reading: Reading = AS_THEY_ARE,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    expected: str | None = None,
    stream: bool | None = None,
    loader_workers: int | None = None,
) -> Images | Stream:
    """One split of a data set: its samples in file order, or of own images the classes in turns.

    Args:
        name: one of `SOURCES`; or the path of a folder of images or of an `.npz` file.
        split: "train" or "test".
        pool: average every pool x pool pixels into one (rounded to uint8).
        limit: keep the first `limit` samples only; `Images.balanced` takes equally many of a class.
        scale_pad: whether the padding of augmented images becomes smaller with them, as that of own
            images always does; that of a named data set stays as it is otherwise.
        reading: how own images are read; of a folder that goes by a name, whether parts are cut.
        mean, std: by which pixels in [0, 1] are normalised, a number a channel; None: the data
            set's own.
        expected: the `fingerprint` that own images had when something was planned for them.
        stream: decode the files of a folder while they are needed, instead of keeping all in
            memory; None: where they would take more than `SHARE` of the free memory. What is cut
            from originals always is.
        loader_workers: of a stream, see there.

    Raises:
        InputError: unknown name or split, a pool that does not divide the image side, or files
            that are not there and could not be downloaded; says where they are looked for and how
            to get them. Of own images, what `own_images.read` refuses, and that they have changed.
            A `stream` of what is no folder, or none where parts of the originals are wanted. A
            `mean` or `std` of another number of channels.
    """
    streamed = is_streamed(name, reading, stream)
    mine = None if name in SOURCES else own(name, reading, streamed)
    source = source_of(name, reading) if mine is None else mine.source
    if mine is not None and expected not in (None, mine.fingerprint):
        raise InputError(f"data.source = {name!r}: its content has changed since it was first read")
    if split not in ("train", "test"):
        raise InputError(f"split = {split!r}: choose train or test")
    _, height, width = source.shape
    if pool < 1 or height % pool or width % pool:
        sides = f"side, {height}" if height == width else f"sides, {height} and {width}"
        raise InputError(f"pool = {pool}: must divide the image {sides} pixels")
    if scale_pad or mine is not None:
        source = replace(source, pad=(source.pad + pool // 2) // pool)
    source = _normalised_by(source, mean=mean, std=std)
    if streamed:
        images = _stream(name, split, pool, source, reading, loader_workers)
    else:
        pixels, labels = _read(name, split) if mine is None else mine.splits[split]
        if pool > 1:
            pixels = F.avg_pool2d(pixels.to(torch.float32), pool).round().to(torch.uint8)
        images = Images(pixels, labels, source)
    return images if limit is None else images.head(limit)


def _normalised_by(source: Source, **given: Sequence[float] | None) -> Source:
    given = {name: tuple(numbers) for name, numbers in given.items() if numbers is not None}
    for name, numbers in given.items():
        if len(numbers) != source.shape[0]:
            raise InputError(
                f"data.{name} = {list(numbers)}: must be one number for each of the "
                f"{source.shape[0]} channels of the images"
            )
    return replace(source, **given)


def training_batches(
    images: Split, batch_size: int, augment: bool, part: tuple[int, int] = (0, 1)
) -> Batches | StreamedBatches:
    """Training batches of a split: `Batches` in memory, `StreamedBatches` of a stream."""
    kind = StreamedBatches if isinstance(images, Stream) else Batches
    return kind(images, batch_size, augment, part)


def is_streamed(name: str, reading: Reading = AS_THEY_ARE, stream: bool | None = None) -> bool:
    """Whether `load` decodes files while they are needed, as its argument `stream` says.

    Raises:
        InputError: as `load` for `stream`, or where files are not there.
    """
    named = SOURCES.get(name)
    folder = named.torchvision == "ImageFolder" if named else not path_of(name).is_file()
    if not folder:
        if stream:
            raise InputError(
                f"data.stream = True: {name} is no folder of images, it is read into memory whole"
            )
        return False
    if (_named(name, reading) if named else reading).crop != "padded":
        if stream is False:
            raise InputError(
                f"data.stream = False: the random parts of {name} are cut from its files"
            )
        return True
    if stream is None:
        return _pixels(name, reading) > SHARE * psutil.virtual_memory().available
    return stream


def source_of(name: str, reading: Reading = AS_THEY_ARE, stream: bool | None = None) -> Source:
    """What is known of a data set; own images are read for it, unless they have been before.

    Raises:
        InputError: when there is no such data set, or own images cannot be read.
    """
    if name not in SOURCES:
        return own(name, reading, is_streamed(name, reading, stream)).source
    return _named(name, reading)


def _named(name: str, reading: Reading) -> Source:
    """A data set that goes by a name, parts of its images cut as `reading` says."""
    source, allowed = SOURCES[name], ()
    if source.torchvision == "ImageFolder" and reading.crop == "part" and source.crop == "padded":
        source, allowed = replace(source, crop="part"), ("crop",)
    if source.crop != "padded":
        allowed += ("smallest",)
    for field in fields(reading):
        value = getattr(reading, field.name)
        if value != field.default and field.name not in allowed:
            raise InputError(
                f"data.{field.name} = {value}: says how own images are read, and {name} is a data "
                "set that goes by a name"
            )
    return replace(source, smallest=reading.smallest)


def own(name: str, reading: Reading = AS_THEY_ARE, streamed: bool = False) -> OwnImages:
    """The user's own images at the path `name`; says what was made of them.

    Raises:
        InputError: what `own_images.read` refuses.
    """
    return (own_images.survey if streamed else own_images.read)(path_of(name), reading)


def fingerprint(name: str) -> str | None:
    """Of the content of own images; None of a data set that goes by a name, which never changes.

    Raises:
        InputError: when there is no such data set.
    """
    return None if name in SOURCES else own_images.fingerprint(path_of(name))


def path_of(name: str) -> Path:
    """A bare word that is no folder here is a misspelt name rather than a path."""
    path = Path(name).expanduser()
    if not {os.sep, "/"} & set(name) and path.suffix != ".npz" and not path.is_dir():
        raise InputError(
            f"data.source = {name!r}: choose one of {', '.join(SOURCES)}, or give the path of a "
            "folder of images or of an .npz file"
        )
    return path


@lru_cache(maxsize=4)
def _read(name: str, split: str) -> tuple[Tensor, Tensor]:
    source = SOURCES[name]
    if source.torchvision is None:
        with np.load(Path(embedded.__file__).with_name(source.folder)) as arrays:
            pixels = torch.from_numpy(arrays[f"{split}_images"])[:, None]
            return pixels, torch.from_numpy(arrays[f"{split}_labels"]).long()
    if source.torchvision == "ImageFolder":
        return _read_folder(name, split)
    on_debian = name == "fashion-mnist" and DEBIAN_FASHION_MNIST.is_dir()
    if on_debian and not named("REBASIN_DATA"):
        return _read_debian_fashion_mnist(split)
    pixels, labels = _read_torchvision(name, split)
    pixels = np.asarray(pixels)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.shape[-1] == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels)), torch.as_tensor(labels).long()


def _stream(
    name: str,
    split: str,
    pool: int,
    source: Source,
    reading: Reading,
    loader_workers: int | None,
) -> Stream:
    pictures = _listed(name, reading)[split]
    named = name in SOURCES
    root, side = _folder(name), None if named else reading.side
    names = np.array([os.fsencode(file) for file in pictures.names])
    files = Files(str(root), names, source, side, pool, f"data.source = {name!r}")
    labels = torch.as_tensor(pictures.labels, dtype=torch.int64)
    return Stream(files, torch.arange(len(labels)), labels, loader_workers)


def _listed(name: str, reading: Reading) -> dict[str, Pictures]:
    """The files of a folder, by split, in the order in which `own_images.read` has them.

    What goes by a name never changes; to read a million files for their fingerprint takes hours.
    """
    digest = "" if name in SOURCES else fingerprint(name)
    return own_images.listed(_folder(name), reading, digest)


def _folder(name: str) -> Path:
    """Where the files of a folder are; the miniature is written where it is not there."""
    if name not in SOURCES:
        return path_of(name)
    path = data_root() / SOURCES[name].folder
    if name == "imagenet-miniature":
        miniature.ensure(path)
    if not path.is_dir():
        raise InputError(f"data.source = {name!r}: no folder {path}; {SOURCES[name].get}")
    return path


def _pixels(name: str, reading: Reading) -> int:
    """Bytes that a folder's pixels would take in memory."""
    folder = _folder(name)
    if name in SOURCES:
        channels, height, width = SOURCES[name].shape
        return channels * height * width * len(folders.files_of(folder))
    return own_images.bytes_in_memory(folder, reading, fingerprint(name))


def _read_folder(name: str, split: str) -> tuple[Tensor, Tensor]:
    """As own images are read, the classes in turns."""
    return own_images.read(_folder(name)).splits[split]


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
                f"data.source = {name!r}: no files in {root / source.folder} and the download "
                f"failed ({type(error).__name__}); {source.get}, or set REBASIN_DATA to the folder "
                "that holds it"
            ) from error
    except Exception as error:
        raise InputError(
            f"data.source = {name!r}: the files in {root / source.folder} cannot be read "
            f"({type(error).__name__}); remove them and {source.get}, or set REBASIN_DATA to the "
            "folder that holds it"
        ) from error
    return data.data, getattr(data, "targets", None) if name != "svhn" else data.labels


def _read_debian_fashion_mnist(split: str) -> tuple[Tensor, Tensor]:
    prefix = DEBIAN_FASHION_MNIST / ("train" if split == "train" else "t10k")
    pixels = embedded.read_idx(Path(f"{prefix}-images-idx3-ubyte.gz"))
    labels = embedded.read_idx(Path(f"{prefix}-labels-idx1-ubyte.gz"))
    return torch.from_numpy(pixels.copy())[:, None], torch.from_numpy(labels.copy()).long()
