"""Image files of any kind and size as one uint8 array.

Decoded by Pillow, resized and cropped by torchvision, so that what is read is what torchvision's
`ImageFolder` with `Resize(side)` and `CenterCrop(side)` gives. Channels of more than eight bits are
refused: how to round them is the user's to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import psutil
from PIL import Image
from tqdm import tqdm

from rebasin_utils.errors import InputError

_GREY, _ALPHA = ("1", "L", "LA"), ("LA", "PA", "RGBA")
_READ = (*_GREY, "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_PNG, _PNG_DEPTH = b"\x89PNG\r\n\x1a\n", 24  # where its header says the bits of a channel


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of one split, not decoded, and the label of each.

    pictures: paths, or uint8 arrays [height, width] or [height, width, 3]. names: what the pictures
    are called in what is said of them.
    """

    pictures: Sequence[str | np.ndarray]
    names: Sequence[str]
    labels: Sequence[int] | np.ndarray


@dataclass(frozen=True, eq=False)
class Listing:
    """A data set that is not decoded.

    classes: their names, in the order of the labels. test: None where there are no test images.
    notes: what a reader should know of it, in sentences.
    """

    classes: tuple[str, ...]
    train: Pictures
    test: Pictures | None
    notes: tuple[str, ...] = ()


def decode(
    pictures: Sequence[str | np.ndarray], names: Sequence[str], side: int | None, where: str
) -> tuple[np.ndarray, list[str]]:
    """Decode pictures, all to the same size and number of channels.

    Greyscale pictures among coloured ones get three equal channels; transparency is dropped.

    Args:
        pictures, names: as in `Pictures`.
        side: resize until the shorter side has this many pixels, then crop the middle; None: all
            have the same size already.
        where: what the sentences begin with.

    Returns:
        uint8 [n, channels, height, width], one channel where all are greyscale and three otherwise,
        and what was done to the pictures, in sentences.

    Raises:
        InputError: naming the first picture that cannot be read, has channels of more than eight
            bits or, without `side`, another size than the first; and when the array would not fit
            into the memory that is free.
    """
    pixels, look = np.empty(0), Look(side)
    for i, image in enumerate(look.through(pictures, names, where)):
        if i == 0:
            pixels = _room_for(len(pictures), image.size, where)
        pixels[i] = image
    pixels = pixels[..., :1] if look.all_grey else pixels
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), look.notes()


class Look:
    """Pictures looked at one by one, all to the same size, and what was done to them.

    side: as for `decode`. shorter: pixels that the shorter side is resized to before the middle of
    `side` is cropped, if not as many.
    """

    def __init__(self, side: int | None, shorter: int | None = None):
        self._side, self._shorter = side, shorter or side
        self._seen, self._done = 0, Counter()

    def through(
        self, pictures: Sequence[str | np.ndarray], names: Sequence[str], where: str
    ) -> Iterator[Image.Image]:
        """The pictures in three channels; refuses what `decode` refuses."""
        shown = dict(desc=where, unit="image", delay=2, leave=False, disable=None)
        first, target = None, (self._side, self._side)
        as_it_is = self._shorter == self._side
        for picture, name in zip(tqdm(pictures, **shown), names, strict=True):
            image = opened(picture, f"{where}: {name}")
            size = image.size
            first = first or size
            self._seen += 1
            self._done["grey"] += image.mode in _GREY
            self._done["alpha"] += image.mode in _ALPHA or "transparency" in image.info
            image = in_colour(image)
            if self._side is not None:
                if not (as_it_is and size == target):
                    self._done["resized"] += 1
                    image = fitted(image, self._side, self._shorter)
            elif size != first:
                raise InputError(
                    f"{where}: {name} is {size[0]} × {size[1]} pixels, {names[0]} {first[0]} × "
                    f"{first[1]}; set data.side = {min(first)} or another, to which all are "
                    "resized (the shorter side) and cropped (the middle)"
                )
            yield image

    @property
    def all_grey(self) -> bool:
        return self._done["grey"] == self._seen

    def notes(self) -> list[str]:
        """What was done, in sentences."""
        side = self._side
        notes = {
            f"resized and centre-cropped to {side} × {side}": self._done["resized"],
            "greyscale, given three equal channels": 0 if self.all_grey else self._done["grey"],
            "with transparency, which is dropped": self._done["alpha"],
        }
        return [f"{n} of {self._seen} images {what}" for what, n in notes.items() if n]


def opened(picture: str | np.ndarray, what: str) -> Image.Image:
    """A picture, decoded.

    Raises:
        InputError: beginning with `what`, when it cannot be, or has channels of more than eight
            bits.
    """
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture)
    try:
        with open(picture, "rb") as file:
            raw = file.read()
        with Image.open(BytesIO(raw)) as image:
            image.load()
    except Exception as error:  # what decoders raise at broken files is of many kinds
        raise InputError(f"{what} cannot be read ({_reason(error)})") from error
    deep = raw.startswith(_PNG) and raw[_PNG_DEPTH] > 8  # Pillow drops the lower bits of colours
    if deep or image.mode not in _READ:
        kind = f"{raw[_PNG_DEPTH]}-bit channels" if deep else f"pixels of mode {image.mode}"
        raise InputError(f"{what} has {kind}; save it in grey or colour of 8 bits a channel")
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image format that Pillow knows"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def in_colour(image: Image.Image) -> Image.Image:
    """A picture with three channels; transparency is dropped."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # Pillow asks for this step where a palette has transparency
    return image if image.mode == "RGB" else image.convert("RGB")


def fitted(image: Image.Image, side: int, shorter: int | None = None) -> Image.Image:
    """The shorter side resized to `shorter` pixels, or to `side`, and the middle cropped."""
    from torchvision.transforms import functional as transforms

    return transforms.center_crop(transforms.resize(image, shorter or side), side)


def shorter_side(side: int) -> int:
    """What the shorter side of a test image is resized to before its middle is cropped: 256/224."""
    return side * 8 // 7


def _room_for(count: int, size: tuple[int, int], where: str) -> np.ndarray:
    """Unwritten uint8 [count, height, width, 3]."""
    width, height = size
    needed, free = count * height * width * 3, psutil.virtual_memory().available
    if 2 * needed > free:  # once more while the channels are put first
        raise InputError(
            f"{where}: {count} images of {width} × {height} pixels take {needed / 2**30:.1f} GiB "
            f"of memory, twice while they are read, and {free / 2**30:.1f} GiB are free; choose a "
            "smaller data.side"
        )
    return np.empty((count, height, width, 3), np.uint8)
