"""A user's own images, from a folder or an `.npz`, as a data set like those that go by a name.

All images are decoded once, to one size. Classes, shape, mean and std (of the training images, per
channel, exact from a histogram) come from the content. What was made of them is kept in
`data_root()/own`, never beside the user's files, by the fingerprint of their content; so a copy
elsewhere is not read again, and an edited file makes another data set.

Images that are streamed are looked at once, for what is said of them; decoded they are later, again
and again (`streams`).

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
from rebasin_utils.nets.pictures import Listing, Look, Pictures, decode, opened, shorter_side
from rebasin_utils.nets.sources import SMALLEST, Crop, Source, data_root

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
    crop, smallest: how they are cut then, as in `Source`; "resized" needs a side.
    """

    side: int | None = None
    test_share: float | None = None
    test_seed: int = 0
    flip: bool = True
    crop: Crop = "padded"
    smallest: float = SMALLEST


AS_THEY_ARE = Reading()


@dataclass(frozen=True, eq=False)
class OwnImages:
    """A data set made of a user's own images.

    classes: their names, in the order of the labels. counts: images of each split. notes: what was
    done to the images and what they lack, in sentences. splits: of "train" and "test", pixels uint8
    [n, channels, height, width] and labels int64 [n]; of images that were surveyed only, nothing.
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


def survey(path: Path, reading: Reading = AS_THEY_ARE) -> OwnImages:
    """What `read` says of the images of a folder, without keeping any of them in memory.

    Raises:
        InputError: what `read` raises.
    """
    _check(path, reading)
    return _survey(path, reading, fingerprint(path))


@lru_cache(maxsize=2)
def listed(path: Path, reading: Reading, digest: str) -> dict[str, Pictures]:
    """The pictures of both splits of a folder, in the order in which `read` has them.

    digest: its `fingerprint`; of another content another list is made.
    """
    listing, rows, _ = _arranged(path, reading)
    whole = _whole(listing)
    return {
        name: Pictures(
            *(
                [some[i] for i in chosen.tolist()]
                for some in (whole.pictures, whole.names, whole.labels)
            )
        )
        for name, chosen in rows.items()
    }


@lru_cache(maxsize=4)
def bytes_in_memory(path: Path, reading: Reading, digest: str) -> int:
    """What the pixels of a folder would take, all of the first image's size or of `side`."""
    _check(path, reading)
    listing, *_ = _arranged(path, reading)
    whole = _whole(listing)
    if reading.side is not None:
        return len(whole.names) * 3 * reading.side**2
    first = opened(whole.pictures[0], f"data.source = {str(path)!r}: {whole.names[0]}")
    return len(whole.names) * 3 * first.width * first.height


@lru_cache(maxsize=2)
def _survey(path: Path, reading: Reading, digest: str) -> OwnImages:
    how = json.dumps([reading.side, reading.test_share, reading.test_seed, reading.crop, _VERSION])
    kept = data_root() / "own" / f"{digest}-{fingerprints.of_bytes(how.encode())}.json"
    try:
        facts = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = _look_through(path, reading)
        _write(kept, json.dumps(facts).encode())
    return _own(facts, facts["counts"], reading, digest, {})


def _look_through(path: Path, reading: Reading) -> dict:
    """What is known of the images as plain values, each looked at once."""
    where = f"data.source = {str(path)!r}"
    listing, rows, notes = _arranged(path, reading)
    whole = _whole(listing)
    training = np.zeros(len(whole.names), bool)
    training[rows["train"].numpy()] = True
    shorter = shorter_side(reading.side) if reading.crop == "resized" else None
    look, counts, size = Look(reading.side, shorter), np.zeros((3, 256), np.int64), (0, 0)
    for image, counted in zip(
        look.through(whole.pictures, whole.names, where), training, strict=True
    ):
        size = image.size
        if counted:
            counts += np.array(image.histogram()).reshape(3, 256)
    shape = (1 if look.all_grey else 3, size[1], size[0])
    facts = _facts(listing, shape, counts[: shape[0]], [*notes, *look.notes()], where)
    return {**facts, "counts": {name: len(chosen) for name, chosen in rows.items()}}


@lru_cache(maxsize=2)
def _read(path: Path, reading: Reading, digest: str) -> OwnImages:
    how = json.dumps([reading.side, reading.test_share, reading.test_seed, _VERSION])
    kept = data_root() / "own" / f"{digest}-{fingerprints.of_bytes(how.encode())}.safetensors"
    found = _recall(kept)
    if found is None:
        found = _make(path, reading)
        _keep(kept, *found)
    facts, splits = found
    counts = {name: len(labels) for name, (_, labels) in splits.items()}
    return _own(facts, counts, reading, digest, splits)


def _own(
    facts: dict, counts: dict[str, int], reading: Reading, digest: str, splits: Splits
) -> OwnImages:
    plain = {n: tuple(v) if isinstance(v, list) else v for n, v in facts["source"].items()}
    source = Source(**plain, flip=reading.flip, crop=reading.crop, smallest=reading.smallest)
    return OwnImages(source, tuple(facts["classes"]), counts, tuple(facts["notes"]), digest, splits)


def _make(path: Path, reading: Reading) -> tuple[dict, Splits]:
    """Decode the images; what is known of them as plain values, and the splits."""
    where = f"data.source = {str(path)!r}"
    listing, rows, notes = _arranged(path, reading)
    whole = _whole(listing)
    pixels, done = decode(whole.pictures, whole.names, reading.side, where)
    pixels, labels = torch.from_numpy(pixels), torch.tensor(whole.labels)
    splits = {name: (pixels[chosen], labels[chosen]) for name, chosen in rows.items()}
    train = splits["train"][0]
    counts = [np.bincount(train[:, c].flatten(), minlength=256) for c in range(train.shape[1])]
    return _facts(listing, tuple(pixels.shape[1:]), counts, [*notes, *done], where), splits


def _arranged(path: Path, reading: Reading) -> tuple[Listing, dict[str, Tensor], list[str]]:
    """What there is; the rows of either split, the classes in turns; what was held out."""
    where = f"data.source = {str(path)!r}"
    listing = (folders if path.is_dir() else arrays).look_into(path)
    if listing.test is None and reading.test_share is None:
        raise InputError(
            f"{where}: there are no test images; set data.test_share = 0.2 or another share of "
            "every class's training images, to be held out"
        )
    if listing.test is not None and reading.test_share is not None:
        raise InputError(
            f"data.test_share = {reading.test_share}: {path} has test images of its own"
        )
    labels, notes = torch.tensor(_whole(listing).labels), list(listing.notes)
    if listing.test is None:
        rows = _hold_out(labels, listing.classes, reading, where)
        notes.append(
            f"{reading.test_share:.0%} of every class's images are held out as test images"
        )
    else:
        counts = [len(listing.train.labels), len(listing.test.labels)]
        rows = torch.arange(len(labels)).split(counts)
    turns = (chosen[in_turns(labels[chosen])] for chosen in rows)
    return listing, dict(zip(SPLITS, turns, strict=True)), notes


def _whole(listing: Listing) -> Pictures:
    """The training pictures, then the test pictures."""
    train, test = listing.train, listing.test or Pictures([], [], [])
    return Pictures(
        [*train.pictures, *test.pictures],
        [*train.names, *test.names],
        [*train.labels, *test.labels],
    )


def _facts(
    listing: Listing,
    shape: tuple[int, int, int],
    counts: Sequence[np.ndarray],
    notes: list[str],
    where: str,
) -> dict:
    """counts: of each channel of the training images, how often each of 256 values occurs."""
    mean, std = _statistics(counts, where)
    pad = (min(shape[1:]) + 4) // 8
    source = dict(classes=len(listing.classes), shape=shape, mean=mean, std=std, pad=pad)
    return {"source": source, "classes": listing.classes, "notes": notes}


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


def _statistics(counts: Sequence[np.ndarray], where: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every channel, of pixels in [0, 1]."""
    mean, std = [], []
    values = np.arange(256)
    for channel, found in enumerate(counts):
        n, total, squares = (int(found @ values**power) for power in (0, 1, 2))
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
    _write(file, save_tensors(tensors, metadata={"facts": json.dumps(facts)}))


def _write(file: Path, content: bytes) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_synced(file, content)
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
    if reading.crop == "resized" and reading.side is None:
        raise InputError("data.crop = 'resized': set data.side, to which the parts are resized")
    if reading.crop == "padded" and reading.smallest != SMALLEST:
        raise InputError(
            f"data.smallest = {reading.smallest}: is said of the parts that data.crop = 'resized' "
            "or 'part' cuts; 'padded' cuts none"
        )
    if reading.test_seed < 0:
        raise InputError(f"data.test_seed = {reading.test_seed}: must be at least 0")
