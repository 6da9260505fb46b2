"""An `.npz` file of images: `train_images`, `train_labels`, `test_images`, `test_labels`.

Images are uint8 [n, height, width] or [n, height, width, channels] with one or three channels;
labels are integers from 0, [n] or [n, 1] (as MedMNIST has them). The two test arrays may be absent.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rebasin_utils.errors import InputError
from rebasin_utils.nets.pictures import Listing, Pictures


def look_into(file: Path) -> Listing:
    """List the images of an `.npz` file; the classes are named by their labels.

    Raises:
        InputError: when the file cannot be read, an array is absent, has another shape or type than
            above or another length than its partner, there are fewer than two classes, or a label
            has no training images.
    """
    where = f"data.source = {str(file)!r}"
    try:
        with np.load(file, allow_pickle=False) as content:
            names = [n for n in content.files if n.split("_")[0] in ("train", "test")]
            arrays = {name: content[name] for name in names}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{where}: cannot be read as an .npz of plain arrays ({type(error).__name__})"
        ) from error
    train = _split(arrays, "train", where)
    test = _split(arrays, "test", where) if arrays.keys() & {"test_images", "test_labels"} else None
    classes = int(train.labels.max()) + 1
    counts = np.bincount(train.labels, minlength=classes)
    if classes < 2:
        raise InputError(f"{where}: train_labels has one class only, {classes - 1}")
    if not counts.all():
        raise InputError(
            f"{where}: train_labels goes up to {classes - 1}, and no training image has the label "
            f"{counts.argmin()}; labels are counted from 0 without a gap"
        )
    if test is not None:
        _check_against(train, test, classes, where)
    return Listing(tuple(map(str, range(classes))), train, test)


def _split(arrays: Mapping[str, np.ndarray], part: str, where: str) -> Pictures:
    for name in (f"{part}_images", f"{part}_labels"):
        if name not in arrays:
            raise InputError(f"{where}: there is no array {name}")
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if images.dtype != np.uint8:
        raise InputError(f"{where}: {part}_images is {images.dtype}; must be uint8, 0 to 255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape[1:]:
        raise InputError(
            f"{where}: {part}_images has the shape {list(arrays[f'{part}_images'].shape)}; must be "
            "[n, height, width] or [n, height, width, channels] with 1 or 3 channels"
        )
    if labels.dtype.kind not in "iu":
        raise InputError(f"{where}: {part}_labels is {labels.dtype}; must be integers")
    if labels.shape not in ((len(labels),), (len(labels), 1)):
        raise InputError(
            f"{where}: {part}_labels has the shape {list(labels.shape)}; must be [n] or [n, 1]"
        )
    if len(labels) != len(images) or not len(labels):
        raise InputError(
            f"{where}: {len(images)} {part}_images and {len(labels)} {part}_labels; must be as "
            "many, and more than none"
        )
    if labels.min() < 0:
        raise InputError(f"{where}: {part}_labels has {labels.min()}; labels are counted from 0")
    pictures = list(images[..., 0] if images.shape[-1] == 1 else images)
    names = [f"{part}_images[{i}]" for i in range(len(pictures))]
    return Pictures(pictures, names, labels.reshape(-1).astype(np.int64))


def _check_against(train: Pictures, test: Pictures, classes: int, where: str) -> None:
    if test.labels.max() >= classes:
        raise InputError(
            f"{where}: test_labels has the class {test.labels.max()}, of which there are no "
            "training images"
        )
