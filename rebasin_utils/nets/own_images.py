"""A user's own images, from a folder or an `.npz`, as a data set like those that go by a name.

All images are decoded once, to one size. Classes, shape, mean and std (of the training images, per
channel, exact from a histogram) come from the content. What was made of them is kept in
`data_root()/own`, never beside the user's files, by the fingerprint of their content; so a copy
elsewhere is not read again, and an edited file makes another data set.

The samples of a split stand in an order in which the classes take turns, so that the first n of
them hold all classes alike, as long as these last; sorted by class they would hold the first alone.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor

from rebasin_utils.errors import InputError
from rebasin_utils.files import replace_synced
from rebasin_utils.nets import arrays, fingerprints, folders
from rebasin_utils.nets.images import in_turns
from rebasin_utils.nets.pictures import Pictures, decode
from rebasin_utils.nets.sources import Source, data_root

SPLITS = ("train", "test")
Splits = dict[str, tuple[Tensor, Tensor]]
_VERSION = 1  # of what is kept: raised when the same files would make other tensors


@dataclass(frozen=True)
class Reading:
    """How a user's own images are read.

    side: pixels a side; the shorter side is resized to it and the middle cropped. None: the images
        have one size already.
    test_share: share of every class's training images that is held out as test images. None: there
        are test images. test_seed: which ones.
    flip: training images are flipped left-right when they are augmented; right for most
        photographs, wrong for digits.
    """

    side: int | None = None
    test_share: float | None = None
    test_seed: int = 0
    flip: bool = True


AS_THEY_ARE = Reading()


@dataclass(frozen=True, eq=False)
class OwnImages:
    """A data set made of a user's own images.

    classes: their names, in the order of the labels. counts: images of each split. notes: what was
    done to the images and what they lack, in sentences. splits: of "train" and "test", pixels uint8
    [n, channels, height, width] and labels int64 [n].
    """

    source: Source
    classes: tuple[str, ...]
    counts: dict[str, int]
    notes: tuple[str, ...]
    fingerprint: str
    splits: Splits


def fingerprint(path: Path) -> str:
    """Of the content of an `.npz` file, or of `train`, `val` and `test` of a folder.

    Raises:
        InputError: when it is not there, or is neither a folder nor an `.npz` file.
    """
    if not path.exists():
        raise InputError(f"data.source = {str(path)!r}: there is no such file or folder")
    if not path.is_dir() and path.suffix != ".npz":
        raise InputError(
            f"data.source = {str(path)!r}: must be a folder of images or an .npz file of arrays"
        )
    files = folders.files_of(path) if path.is_dir() else {"": str(path)}
    try:
        return fingerprints.of_files(path, files, data_root() / "own" / "fingerprints")
    except OSError as error:
        raise InputError(
            f"data.source = {str(path)!r}: {error.filename} cannot be read ({error.strerror})"
        ) from error


def read(path: Path, reading: Reading = AS_THEY_ARE) -> OwnImages:
    """The images of a folder (`folders`) or an `.npz` file (`arrays`).

    The padding of augmented images is an eighth of their side: 4 pixels for 32 × 32.

    Raises:
        InputError: when `reading` makes no sense, the files are not as `folders`, `arrays` or
            `pictures` want them, there are no test images and no `test_share`, or both.
    """
    _check(path, reading)
    return _read(path, reading, fingerprint(path))


@lru_cache(maxsize=2)
def _read(path: Path, reading: Reading, digest: str) -> OwnImages:
    how = json.dumps([reading.side, reading.test_share, reading.test_seed, _VERSION])
    kept = data_root() / "own" / f"{digest}-{fingerprints.of_bytes(how.encode())}.safetensors"
    found = _recall(kept)
    if found is None:
        found = _make(path, reading)
        _keep(kept, *found)
    facts, splits = found
    plain = {n: tuple(v) if isinstance(v, list) else v for n, v in facts["source"].items()}
    source = Source(**plain, flip=reading.flip)
    counts = {name: len(labels) for name, (_, labels) in splits.items()}
    notes, classes = tuple(facts["notes"]), tuple(facts["classes"])
    return OwnImages(source, classes, counts, notes, digest, splits)


def _make(path: Path, reading: Reading) -> tuple[dict, Splits]:
    """Decode the images; what is known of them as plain values, and the splits."""
    where = f"data.source = {str(path)!r}"
    listing = (folders if path.is_dir() else arrays).look_into(path)
    test = listing.test or Pictures([], [], [])
    if listing.test is None and reading.test_share is None:
        raise InputError(
            f"{where}: there are no test images; set data.test_share = 0.2 or another share of "
            "every class's training images, to be held out"
        )
    if listing.test is not None and reading.test_share is not None:
        raise InputError(
            f"data.test_share = {reading.test_share}: {path} has test images of its own"
        )
    pixels, done = decode(
        [*listing.train.pictures, *test.pictures],
        [*listing.train.names, *test.names],
        reading.side,
        where,
    )
    pixels, labels = torch.from_numpy(pixels), torch.tensor([*listing.train.labels, *test.labels])
    if listing.test is None:
        rows = _hold_out(labels, listing.classes, reading, where)
        notes = [f"{reading.test_share:.0%} of every class's images are held out as test images"]
    else:
        rows = torch.arange(len(labels)).split([len(listing.train.labels), len(test.labels)])
        notes = []
    splits = {}
    for name, chosen in zip(SPLITS, rows, strict=True):
        chosen = chosen[in_turns(labels[chosen])]
        splits[name] = (pixels[chosen], labels[chosen])
    mean, std = _statistics(splits["train"][0], where)
    shape = tuple(pixels.shape[1:])
    pad = (min(shape[1:]) + 4) // 8
    source = dict(classes=len(listing.classes), shape=shape, mean=mean, std=std, pad=pad)
    notes = [*listing.notes, *notes, *done]
    return {"source": source, "classes": listing.classes, "notes": notes}, splits


def _hold_out(
    labels: Tensor, classes: Sequence[str], reading: Reading, where: str
) -> tuple[Tensor, Tensor]:
    """Rows of the training and of the test images; of every class at least one in each."""
    generator = torch.Generator().manual_seed(reading.test_seed)
    kept, held_out = [], []
    for label, name in enumerate(classes):
        rows = (labels == label).nonzero().flatten()
        if len(rows) < 2:
            raise InputError(f"{where}: the class {name} has one image, and none can be held out")
        rows = rows[torch.randperm(len(rows), generator=generator)]
        n = min(max(round(reading.test_share * len(rows)), 1), len(rows) - 1)
        held_out.append(rows[:n])
        kept.append(rows[n:])
    return torch.cat(kept).sort().values, torch.cat(held_out).sort().values


def _statistics(pixels: Tensor, where: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every channel, of pixels in [0, 1]."""
    mean, std = [], []
    values = np.arange(256)
    for channel in range(pixels.shape[1]):
        counts = np.bincount(pixels[:, channel].flatten().numpy(), minlength=256)
        n, total, squares = (int(counts @ values**power) for power in (0, 1, 2))
        if n * squares == total**2:
            raise InputError(f"{where}: channel {channel} of all training images is one constant")
        mean.append(total / n / 255)
        std.append((n * squares - total**2) ** 0.5 / n / 255)
    return mean, std


def _recall(file: Path) -> tuple[dict, Splits] | None:
    """What was kept; None where there is nothing, or nothing whole."""
    try:
        with safe_open(file, framework="pt") as content:
            facts = json.loads(content.metadata()["facts"])
            splits = {
                name: (content.get_tensor(f"{name}_pixels"), content.get_tensor(f"{name}_labels"))
                for name in SPLITS
            }
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        warnings.warn(f"{file} is damaged ({error}): the images are read again", stacklevel=2)
        return None
    return facts, splits


def _keep(file: Path, facts: dict, splits: Splits) -> None:
    tensors = {f"{name}_pixels": pixels for name, (pixels, _) in splits.items()}
    tensors |= {f"{name}_labels": labels for name, (_, labels) in splits.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_synced(file, save_tensors(tensors, metadata={"facts": json.dumps(facts)}))
    except OSError as error:
        warnings.warn(
            f"{file} cannot be written ({error.strerror}): the images are read again next time",
            stacklevel=2,
        )


def _check(path: Path, reading: Reading) -> None:
    """Refuse a `Reading` that makes no sense."""
    if reading.side is not None and not 4 <= reading.side <= 1024:
        raise InputError(f"data.side = {reading.side}: must be from 4 to 1024 pixels")
    if reading.test_share is not None and not 0 < reading.test_share < 1:
        raise InputError(f"data.test_share = {reading.test_share}: must be between 0 and 1")
    if reading.test_seed < 0:
        raise InputError(f"data.test_seed = {reading.test_seed}: must be at least 0")
