"""What is known of a data set before it is read, and the data sets that go by a name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rebasin_utils.paths import named

#: How training images are cut when they are augmented.
Crop = Literal["padded", "resized", "part"]

#: `RandomResizedCrop`'s default.
SMALLEST = 0.08


@dataclass(frozen=True)
class Source:
    """What training needs to know of a data set beside its pixels.

    shape: (channels, height, width). mean, std: per channel, of pixels in [0, 1]. pad, flip: how
    training images are augmented: crop from an image zero-padded by `pad` pixels, flip left-right.
    crop: "resized" cuts a random part of the original image instead and resizes it, as is usual for
    ImageNet (Szegedy et al. 2015, Section 6; torchvision's `RandomResizedCrop` with its defaults);
    otherwise the shorter side is resized to 8/7 of `shape` and the middle cropped. "part" cuts and
    resizes it alike, of images that have one size and are otherwise taken whole. smallest: share of
    the image that such a part has at least.
    """

    classes: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    crop: Crop = field(default="padded", kw_only=True)
    smallest: float = field(default=SMALLEST, kw_only=True)


@dataclass(frozen=True)
class Named(Source):
    """A data set that goes by a name, and where its files are."""

    torchvision: str | None  # class name in torchvision.datasets; None: embedded
    folder: str  # where torchvision keeps the files, below the data root; or the embedded file
    get: str  # how a user gets the files


_FASHION = dict(classes=10, shape=(1, 28, 28), mean=(0.2860,), std=(0.3530,))
_IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

#: The mean and std of CIFAR-10, CIFAR-100 and SVHN are the ones the paper uses: CIFAR-10 is
#: normalised with ImageNet's.
SOURCES = {
    "fashion-mnist-10k": Named(
        **_FASHION,
        pad=0,
        flip=False,
        torchvision=None,
        folder="fashion_mnist_10k.npz",
        get="it is in the package",
    ),
    "mnist-5k": Named(
        classes=10,
        shape=(1, 28, 28),
        mean=(0.1307,),
        std=(0.3081,),
        pad=0,
        flip=False,
        torchvision=None,
        folder="mnist_5k.npz",
        get="it is in the package",
    ),
    "fashion-mnist": Named(
        **_FASHION,
        pad=2,
        flip=True,
        torchvision="FashionMNIST",
        folder="FashionMNIST/raw",
        get="on Debian `apt-get install dataset-fashion-mnist`",
    ),
    "cifar10": Named(
        classes=10,
        shape=(3, 32, 32),
        **_IMAGENET,
        pad=4,
        flip=True,
        torchvision="CIFAR10",
        folder="cifar-10-batches-py",
        get="unpack cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html there",
    ),
    "cifar10-jpeg": Named(
        classes=10,
        shape=(3, 32, 32),
        **_IMAGENET,
        pad=4,
        flip=True,
        torchvision="ImageFolder",
        folder="cifar10",
        get="save the images of CIFAR-10 there as JPEGs, train/<class>/ and test/<class>/, or take "
        "the original ones, data.source=cifar10",
    ),
    "cifar100": Named(
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
    "tiny-imagenet": Named(
        classes=200,
        shape=(3, 64, 64),
        **_IMAGENET,
        pad=8,
        flip=True,
        torchvision="ImageFolder",
        folder="tiny-imagenet-200",
        get="unpack http://cs231n.stanford.edu/tiny-imagenet-200.zip there",
    ),
    "imagenet": Named(
        classes=1000,
        shape=(3, 224, 224),
        **_IMAGENET,
        pad=28,
        flip=True,
        crop="resized",
        torchvision="ImageFolder",
        folder="imagenet",
        get="unpack ILSVRC 2012 there as train/<wnid>/… and val/<wnid>/…",
    ),
    "imagenet-miniature": Named(
        classes=10,
        shape=(3, 32, 32),
        **_IMAGENET,
        pad=4,
        flip=True,
        crop="resized",
        torchvision="ImageFolder",
        folder="imagenet-miniature",
        get="it is written there when it is first used",
    ),
    "svhn": Named(
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


def data_root() -> Path:
    """`REBASIN_DATA`, else the platform's cache folder for this project."""
    cache = named("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return named("REBASIN_DATA") or cache / "rebasin" / "data"
