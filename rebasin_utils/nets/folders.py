"""Folders of images: which files there are, in which split, of which class.

Three layouts are understood, told apart by what lies there:

    train/<class>/…                       val/<class>/… or test/<class>/…  torchvision, ImageNet
    train/<class>/images/…                val/val_annotations.txt, val/images/…      Tiny-ImageNet
    train/<class>/…                       nothing: test images are to be held out

The classes are the folders in `train`, sorted, as torchvision's `ImageFolder` has them. Where both
`val` and `test` have classes, the test images are those of `test`; the `test` of ImageNet and of
Tiny-ImageNet has none. Names that begin with a dot are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rebasin_utils.errors import InputError
from rebasin_utils.nets.pictures import Listing, Pictures

PARTS = ("train", "val", "test")
ANNOTATIONS = "val_annotations.txt"
_LAYOUT = "what is read is train/<class>/… with val/<class>/… or test/<class>/… beside it"
_LEFT_BY_SYSTEMS = ("thumbs.db", "desktop.ini")


def look_into(root: Path) -> Listing:
    """List a folder of images; no image is opened.

    Raises:
        InputError: when the layout is none of those above, there are fewer than two classes, a
            class has no training images or is among the test images only, or a file in a class's
            folder is no image.
    """
    where = f"data.source = {str(root)!r}"
    if not (root / "train").is_dir():
        raise InputError(f"{where}: there is no folder train in it; {_LAYOUT}")
    stray = [f.name for f in _visible(root / "train") if f.is_file() and _is_image(f.name)]
    if stray:
        raise InputError(f"{where}: train/{stray[0]} lies in no class's folder; {_LAYOUT}")
    classes = tuple(sorted(f.name for f in _visible(root / "train") if f.is_dir()))
    if len(classes) < 2:
        there = f"one class only, {classes[0]}" if classes else f"no class; {_LAYOUT}"
        raise InputError(f"{where}: in train there is {there}")
    train = _of_classes(root, "train", classes, where)
    for name in _without(train, classes):
        raise InputError(f"{where}: the class {name} has no images in train/{name}")
    test, notes = _test_files(root, classes, where)
    untested = _without(test, classes) if test is not None else []
    if len(untested) == len(classes):
        raise InputError(f"{where}: there are no images in the folders of the test images")
    if untested:
        more = f" and {len(untested) - 3} more" if len(untested) > 3 else ""
        notes.append(f"no test images of {', '.join(untested[:3])}{more}")
    return Listing(classes, train, test, tuple(notes))


def files_of(root: Path) -> dict[str, str]:
    """The paths of all files of the three splits, by their names relative to `root`."""
    names = [name for part in PARTS for name in _below(root, part)]
    return dict(zip(names, _paths(root, names), strict=True))


def _test_files(
    root: Path, classes: Sequence[str], where: str
) -> tuple[Pictures | None, list[str]]:
    """The test images, and what is worth saying of them; None where there are none."""
    there = {
        part: {f.name for f in _visible(root / part) if f.is_dir()} for part in ("test", "val")
    }
    annotated = (root / "val" / ANNOTATIONS).is_file()
    labelled = [part for part, names in there.items() if names & set(classes)]
    if annotated and "val" not in labelled:
        labelled.append("val")
    if not labelled:
        for part, names in there.items():
            if names - {"images"}:
                raise InputError(
                    f"{where}: {part} has folders, as {min(names)}, and none of them is called "
                    f"like a class in train, as {classes[0]}"
                )
        return None, []
    part, *unused = labelled
    notes = [f"the test images are those in {part}; those in val are not used"] if unused else []
    if part == "val" and annotated:
        return _annotated(root, classes, where), notes
    unknown = there[part] - set(classes)
    if unknown:
        raise InputError(
            f"{where}: the class {min(unknown)} is in {part} only; a net cannot learn a class of "
            "which there are no training images"
        )
    return _of_classes(root, part, classes, where), notes


def _of_classes(root: Path, part: str, classes: Sequence[str], where: str) -> Pictures:
    names, labels = [], []
    for label, folder in enumerate(classes):
        boxes = f"{part}/{folder}/{folder}_boxes.txt"  # Tiny-ImageNet's
        found = [name for name in _below(root, f"{part}/{folder}") if name != boxes]
        for name in found:
            if not _is_image(name):
                raise InputError(f"{where}: {name} is no image file")
        names += found
        labels += [label] * len(found)
    return Pictures(_paths(root, names), names, labels)


def _without(files: Pictures, classes: Sequence[str]) -> list[str]:
    """The classes of which there are no files."""
    there = set(files.labels)
    return [name for label, name in enumerate(classes) if label not in there]


def _below(root: Path, folder: str) -> Iterator[str]:
    """Names, relative to `root`, of all files below a folder, in the order of `ImageFolder`.

    Strings rather than paths: of 60,000 files, `pathlib` would take longer than the disk.
    """
    for place, _, names in sorted(os.walk(root / folder, followlinks=True)):
        inside = Path(place).relative_to(root).as_posix()
        yield from (f"{inside}/{name}" for name in sorted(names) if not _is_passed_over(name))


def _paths(root: Path, names: Sequence[str]) -> list[str]:
    return [f"{root}/{name}" for name in names]


def _annotated(root: Path, classes: Sequence[str], where: str) -> Pictures:
    """Tiny-ImageNet's validation images: `file`, tab, `class`, tab, … on every line."""
    number = {name: label for label, name in enumerate(classes)}
    labelled = {}
    for i, line in enumerate((root / "val" / ANNOTATIONS).read_text().splitlines(), 1):
        file, _, rest = line.partition("\t")
        name = rest.partition("\t")[0]
        if name not in number:
            raise InputError(
                f"{where}: line {i} of val/{ANNOTATIONS} says {name!r}, and train has no such class"
            )
        labelled[file] = number[name]
    there = {file.name for file in _visible(root / "val" / "images") if file.is_file()}
    for names, what in (
        (there - labelled.keys(), f"has no line in val/{ANNOTATIONS}"),
        (labelled.keys() - there, f"is not there, but has a line in val/{ANNOTATIONS}"),
    ):
        if names:
            raise InputError(f"{where}: val/images/{min(names)} {what}")
    ordered = sorted(labelled.items(), key=lambda item: (item[1], item[0]))
    names = [f"val/images/{file}" for file, _ in ordered]
    return Pictures(_paths(root, names), names, [label for _, label in ordered])


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [file for file in folder.iterdir() if not _is_passed_over(file.name)]


def _is_passed_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def _is_image(name: str) -> bool:
    from torchvision.datasets.folder import is_image_file

    return is_image_file(name)
