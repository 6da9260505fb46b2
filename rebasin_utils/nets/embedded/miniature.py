"""ImageNet in miniature: a folder of JPEGs, made of the embedded images.

What ImageNet asks of a program is in it: train/<class>/… and val/<class>/…, photographs' format,
images of many sizes and shapes, in colour. The pictures are Fashion-MNIST's, so that nets learn
them in seconds.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

_IMAGES = Path(__file__).with_name("fashion_mnist_10k.npz")
_CLASSES = (
    "tshirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
)

#: Images of a class.
TRAIN, TEST = 60, 30


def ensure(folder: Path) -> None:
    """Write the folder where it is not there; of two processes that do, one's is kept."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".miniature-", dir=folder.parent))
    try:
        write(made, TRAIN, TEST)
        made.chmod(0o755)
        os.rename(made, folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write(folder: Path, train: int, test: int) -> None:
    """Write train/<class>/ and val/<class>/ with so many images of every class each.

    Every image has a size (40 to 72 pixels a side) and a colour of its own, by its number alone.
    """
    with np.load(_IMAGES) as arrays:
        for part, split, count in (("train", "train", train), ("val", "test", test)):
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            for label, name in enumerate(_CLASSES):
                place = folder / part / name
                place.mkdir(parents=True)
                for i, grey in enumerate(images[labels == label][:count]):
                    _picture(grey, (label, i, part == "train")).save(
                        place / f"{i:04}.jpg", quality=92
                    )


def _picture(grey: np.ndarray, number: tuple[int, int, bool]) -> Image.Image:
    """uint8 [28, 28] in a colour, and of a size, that are drawn from a number."""
    drawn = np.random.default_rng(number)
    height, width = drawn.integers(40, 73, 2).tolist()
    colour = drawn.uniform(0.6, 1.0, 3)
    pixels = (grey[..., None] * colour).astype(np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
