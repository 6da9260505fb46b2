"""A user's own images are read as torchvision reads them, once, and refused where they must be."""

from __future__ import annotations

import io
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torchvision import datasets
from torchvision import transforms as T

from rebasin_utils.errors import InputError
from rebasin_utils.nets import data, own_images
from rebasin_utils.nets.data import Reading

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """The folder of data of this test's own."""
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path / "root"))
    return tmp_path / "root"


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    """Losslessly, where the name ends in .png."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def fill(folder: Path, counts: dict[str, int], seed: int = 0, side: int = 8) -> None:
    for c, (name, n) in enumerate(counts.items()):
        for i in range(n):
            save(folder / name / f"{i:03}.png", noise(seed + 100 * c + i, side, side, 3))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three classes of coloured images, of 8 x 8 pixels: 5, 3 and 4 to train on, 2 each to test."""
    fill(tmp_path / "mine" / "train", dict(zip(CLASSES, (5, 3, 4), strict=True)))
    fill(tmp_path / "mine" / "val", dict.fromkeys(CLASSES, 2), seed=1000)
    return tmp_path / "mine"


def by_class(images: data.Images, label: int) -> torch.Tensor:
    return images.pixels[images.labels == label]


def as_torchvision(folder: Path, *changes) -> dict[int, torch.Tensor]:
    """Label -> the pixels of its images, in the order of torchvision's `ImageFolder`."""
    found = datasets.ImageFolder(folder, T.Compose([*changes, T.PILToTensor()]))
    assert found.classes == list(CLASSES)
    return {
        label: torch.stack([pixels for pixels, its in found if its == label]) for label in range(3)
    }


# -------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_folder_is_read_as_torchvision_reads_it(folder, part):
    (folder / "val").rename(folder / part)
    save(folder / "train" / "bee" / "deeper" / "a.png", noise(7, 8, 8, 3))
    (folder / "train" / "bee" / ".DS_Store").write_bytes(b"left by a system")
    for split, where in (("train", "train"), ("test", part)):
        images = data.load(str(folder), split)
        for label, pixels in as_torchvision(folder / where).items():
            assert torch.equal(by_class(images, label), pixels)
    own = data.own(str(folder))
    assert own.classes == CLASSES
    assert own.counts == {"train": 13, "test": 6}
    assert own.notes == ()


def test_images_of_any_size_and_kind_are_read_as_torchvision_reads_them(folder, tmp_path):
    jpeg = save(folder / "train" / "ant" / "photo.jpg", noise(1, 40, 30, 3))
    assert Image.open(jpeg).size == (30, 40)
    save(folder / "train" / "bee" / "grey.png", noise(2, 11, 9))
    save(folder / "train" / "bee" / "bits.png", noise(3, 9, 11), "1")
    save(folder / "train" / "cat" / "palette.png", noise(4, 16, 16, 3), "P")
    save(folder / "train" / "cat" / "through.png", noise(5, 12, 9, 4))
    save(folder / "val" / "cat" / "ink.jpg", noise(6, 20, 20, 3), "CMYK")
    for split, where in (("train", "train"), ("test", "val")):
        images = data.load(str(folder), split, reading=Reading(side=8))
        expected = as_torchvision(folder / where, T.Resize(8), T.CenterCrop(8))
        for label, pixels in expected.items():
            assert torch.equal(by_class(images, label), pixels)
    assert data.own(str(folder), Reading(side=8)).notes == (
        "6 of 24 images resized and centre-cropped to 8 × 8",
        "2 of 24 images greyscale, given three equal channels",
        "1 of 24 images with transparency, which is dropped",
    )


def test_images_that_are_all_greyscale_have_one_channel(tmp_path):
    for part in ("train", "test"):
        for i, name in enumerate(CLASSES):
            save(tmp_path / "grey" / part / name / "a.png", noise(i, 8, 10))
    images = data.load(str(tmp_path / "grey"), "train")
    assert images.shape == (1, 8, 10)
    assert torch.equal(images.pixels[2, 0], torch.from_numpy(noise(2, 8, 10)))
    assert data.own(str(tmp_path / "grey")).notes == ()


def test_tiny_imagenets_own_layout_is_understood(tmp_path):
    tiny = tmp_path / "tiny"
    for c, wnid in enumerate(("n01", "n02")):
        for i in range(3):
            save(tiny / "train" / wnid / "images" / f"{wnid}_{i}.png", noise(10 * c + i, 8, 8, 3))
        (tiny / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.png\t0\t0\t3\t3\n")
    for i in range(4):
        save(tiny / "val" / "images" / f"val_{i}.png", noise(100 + i, 8, 8, 3))
        save(tiny / "test" / "images" / f"test_{i}.png", noise(200 + i, 8, 8, 3))  # unlabelled
    lines = [f"val_{i}.png\tn0{2 - i % 2}\t0\t0\t3\t3\n" for i in range(4)]
    (tiny / "val" / "val_annotations.txt").write_text("".join(lines))
    train, test = data.load(str(tiny), "train"), data.load(str(tiny), "test")
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert torch.equal(train.pixels[1].movedim(0, -1), torch.from_numpy(noise(10, 8, 8, 3)))
    assert test.labels.tolist() == [0, 1, 0, 1]
    for place, i in enumerate((1, 0, 3, 2)):  # odd ones are of the first class
        assert torch.equal(
            test.pixels[place].movedim(0, -1), torch.from_numpy(noise(100 + i, 8, 8, 3))
        )


def test_imagenets_unlabelled_test_images_are_passed_over(folder):
    save(folder / "test" / "ILSVRC_0.png", noise(0, 8, 8, 3))
    assert data.own(str(folder)).counts == {"train": 12, "test": 6}


def test_of_val_and_test_the_test_images_are_taken_and_it_is_said(folder):
    fill(folder / "test", dict.fromkeys(CLASSES, 1), seed=5)
    own = data.own(str(folder))
    assert own.counts == {"train": 12, "test": 3}
    assert own.notes == ("the test images are those in test; those in val are not used",)


def test_a_class_without_test_images_is_kept_and_said(folder):
    shutil.rmtree(folder / "val" / "bee")
    own = data.own(str(folder))
    assert own.classes == CLASSES
    assert set(own.splits["test"][1].tolist()) == {0, 2}
    assert own.notes == ("no test images of bee",)


# -------------------------------------------------------------------------- arrays


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    """The images of `folder`, class by class, as the four arrays of an .npz file."""
    arrays = {}
    for part, name in (("train", "train"), ("val", "test")):
        found = datasets.ImageFolder(folder / part)
        arrays[f"{name}_images"] = np.stack([np.asarray(image) for image, _ in found])
        arrays[f"{name}_labels"] = np.array(found.targets, np.uint8)
    return arrays


@pytest.mark.parametrize("side", [None, 6])
def test_the_same_images_from_a_folder_and_from_arrays_are_the_same_data(folder, tmp_path, side):
    np.savez(tmp_path / "mine.npz", **arrays_of(folder))
    reading = Reading(side=side)
    for split in ("train", "test"):
        one, other = (
            data.load(str(source), split, reading=reading)
            for source in (folder, tmp_path / "mine.npz")
        )
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.labels, other.labels)
        assert one.source == other.source
    assert data.fingerprint(str(folder)) != data.fingerprint(str(tmp_path / "mine.npz"))


def test_grey_arrays_may_lack_channels_and_labels_may_be_a_column(tmp_path):
    grey, labels = noise(0, 6, 8, 8), np.arange(6)[:, None] % 2
    for name, images in (("none", grey), ("one", grey[..., None])):
        file = tmp_path / f"{name}.npz"
        np.savez(file, train_images=images, train_labels=labels, test_images=images[:2],
                 test_labels=labels[:2])  # fmt: skip
        read = data.load(str(file), "train")
        assert torch.equal(read.pixels[:, 0], torch.from_numpy(grey))
        assert read.labels.tolist() == [0, 1, 0, 1, 0, 1]


# -------------------------------------------------------------------------- facts and order


def test_mean_and_std_are_those_of_the_training_pixels(folder):
    source = data.source_of(str(folder))
    pixels = data.load(str(folder), "train").pixels.numpy() / 255
    assert (source.classes, source.shape) == (3, (3, 8, 8))
    np.testing.assert_allclose(source.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(source.std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_the_classes_take_turns_so_that_every_head_holds_them_alike(folder):
    images = data.load(str(folder), "train")
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 2, 0]
    assert torch.equal(by_class(images, 0), as_torchvision(folder / "train")[0])


@pytest.mark.parametrize(("side", "pads"), [(64, [8, 4, 2]), (32, [4, 2, 1]), (28, [4, 2, 1])])
def test_padding_is_an_eighth_of_the_side_and_shrinks_with_pooling(tmp_path, side, pads):
    for part in ("train", "test"):
        fill(tmp_path / "mine" / part, dict.fromkeys(CLASSES, 1), side=side)
    for pool, pad in zip((1, 2, 4), pads, strict=True):
        images = data.load(str(tmp_path / "mine"), "train", pool=pool)
        assert images.shape == (3, side // pool, side // pool)
        assert images.source.pad == pad


@pytest.mark.parametrize("flip", [True, False])
def test_whether_own_images_are_flipped_is_the_users_to_say(folder, flip):
    images = data.load(str(folder), "train", reading=Reading(flip=flip))
    plan = data.EpochPlan.draw([0], 0, images, augment=True)
    assert plan.flips.any() == flip


# -------------------------------------------------------------------------- held out


@pytest.fixture
def untested(tmp_path) -> Path:
    """A folder without test images: 10, 20 and 2 of the three classes."""
    fill(tmp_path / "untested" / "train", dict(zip(CLASSES, (10, 20, 2), strict=True)))
    return tmp_path / "untested"


def test_a_share_of_every_class_is_held_out(untested):
    own = data.own(str(untested), Reading(test_share=0.2))
    counts = {split: labels.bincount().tolist() for split, (_, labels) in own.splits.items()}
    assert counts == {"train": [8, 16, 1], "test": [2, 4, 1]}
    assert own.notes == ("20% of every class's images are held out as test images",)
    every = datasets.ImageFolder(untested / "train", T.PILToTensor())
    together = torch.cat([own.splits["train"][0], own.splits["test"][0]])
    assert {x.numpy().tobytes() for x in together} == {x.numpy().tobytes() for x, _ in every}


def test_which_images_are_held_out_depends_on_the_seed_alone(untested):
    def held_out(seed: int, share: float = 0.2) -> bytes:
        own_images._read.cache_clear()
        reading = Reading(test_share=share, test_seed=seed)
        return data.load(str(untested), "test", reading=reading).pixels.numpy().tobytes()

    assert held_out(0) == held_out(0)
    assert len({held_out(seed) for seed in range(4)}) == 4
    assert held_out(0) != held_out(0, share=0.4)


# -------------------------------------------------------------------------- read once


def test_images_are_decoded_once_and_nothing_is_written_beside_them(folder, root, monkeypatch):
    before = sorted(folder.rglob("*"))
    first = data.load(str(folder), "train")
    own_images._read.cache_clear()
    monkeypatch.setattr(own_images, "decode", lambda *_: pytest.fail("decoded again"))
    again = data.load(str(folder), "train")
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.labels, again.labels)
    assert first.source == again.source
    assert sorted(folder.rglob("*")) == before
    assert all(root in file.parents for file in root.rglob("*"))


def test_what_is_kept_of_images_is_made_again_where_it_is_damaged(folder, root):
    first = data.load(str(folder), "train")
    own_images._read.cache_clear()
    (kept,) = (root / "own").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="is damaged"):
        again = data.load(str(folder), "train")
    assert torch.equal(first.pixels, again.pixels)


def test_where_nothing_can_be_kept_images_are_read_all_the_same(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder can be made below a file")
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path / "file" / "data"))
    with pytest.warns(UserWarning, match="cannot be written"):
        assert len(data.load(str(folder), "train")) == 12


def test_an_edited_image_is_read_again_in_the_same_process(folder):
    source = str(folder)
    planned = data.fingerprint(source)
    first = data.load(source, "train", expected=planned)
    save(folder / "train" / "ant" / "000.png", noise(999, 8, 8, 3))
    again = data.load(source, "train")
    assert not torch.equal(first.pixels[0], again.pixels[0])
    assert torch.equal(first.pixels[1:], again.pixels[1:])
    with pytest.raises(InputError, match="changed since") as raised:
        data.load(source, "train", expected=planned)
    assert str(raised.value).startswith(f"data.source = {source!r}: ")


# -------------------------------------------------------------------------- bad input


def truncated(path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(noise(0, 64, 64, 3)).save(whole, "jpeg")
    path.write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])


def sixteen_bits_of_colour(path: Path) -> None:
    """A PNG such as Pillow reads, and rounds, but does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    head = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    rows = zlib.compress(8 * (b"\0" + bytes(8 * 6)))
    parts = chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def annotate(folder: Path, text: str) -> None:
    """As in Tiny-ImageNet."""
    (folder / "val" / "val_annotations.txt").write_text(text)


def only_class(folder: Path) -> None:
    shutil.rmtree(folder / "train" / "bee")
    shutil.rmtree(folder / "train" / "cat")


FOLDERS: list[tuple[str, Callable[[Path], object], list[str]]] = [
    ("no train", lambda f: (f / "train").rename(f / "tain"), ["no folder train", "train/<class>"]),
    ("no classes", lambda f: [shutil.rmtree(f / "train" / c) for c in CLASSES], ["no class"]),
    ("one class", only_class, ["one class only, ant"]),
    ("no class's folder", lambda f: save(f / "train" / "a.png", noise(0, 8, 8, 3)),
     ["train/a.png", "no class's folder"]),
    ("an empty class", lambda f: (f / "train" / "dog").mkdir(), ["class dog", "train/dog"]),
    ("a class to test only", lambda f: save(f / "val" / "dog" / "a.png", noise(0, 8, 8, 3)),
     ["class dog", "val only"]),
    ("no class known", lambda f: [(f / "val" / c).rename(f / "val" / f"{c}s") for c in CLASSES],
     ["val has folders, as ants", "as ant"]),
    ("empty test folders", lambda f: [p.unlink() for p in (f / "val").rglob("*.png")],
     ["no images in the folders of the test images"]),
    ("text", lambda f: (f / "train" / "ant" / "notes.txt").write_text("x"),
     ["train/ant/notes.txt is no image file"]),
    ("text under another name", lambda f: (f / "train" / "ant" / "notes.png").write_text("x"),
     ["train/ant/notes.png cannot be read", "no image format"]),
    ("truncated", lambda f: truncated(f / "val" / "cat" / "half.jpg"),
     ["val/cat/half.jpg cannot be read", "truncated"]),
    ("16 bits of grey", lambda f: save(f / "train" / "ant" / "a.png", np.ones((8, 8), np.uint16)),
     ["train/ant/a.png has 16-bit channels", "8 bits"]),
    ("16 bits of colour", lambda f: sixteen_bits_of_colour(f / "train" / "ant" / "deep.png"),
     ["train/ant/deep.png has 16-bit channels", "8 bits"]),
    ("floats", lambda f: save(f / "train" / "ant" / "f.tif", np.ones((8, 8), np.float32)),
     ["train/ant/f.tif has pixels of mode F"]),
    ("other sizes", lambda f: save(f / "train" / "ant" / "wide.png", noise(0, 8, 9, 3)),
     ["train/ant/wide.png is 9 × 8", "train/ant/000.png 8 × 8", "data.side = 8"]),
    ("no test images", lambda f: shutil.rmtree(f / "val"),
     ["no test images", "data.test_share = 0.2"]),
    ("an unknown annotation", lambda f: annotate(f, "a.png\tdog\t0"),
     ["line 1 of val/val_annotations.txt", "'dog'"]),
    ("an image that is not there", lambda f: annotate(f, "a.png\tant"),
     ["val/images/a.png is not there"]),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "parts"), [f[1:] for f in FOLDERS], ids=[f[0] for f in FOLDERS])
def test_a_folder_that_cannot_be_read_is_refused_in_a_sentence(folder, spoil, parts):
    spoil(folder)
    refused(lambda: data.load(str(folder), "train"), f"data.source = {str(folder)!r}: ", parts)


def refused(call: Callable[[], object], begin: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as raised:
        call()
    sentence = str(raised.value)
    assert sentence.startswith(begin)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence


def test_an_image_without_an_annotation_is_refused(folder):
    for name in ("a.png", "b.png"):
        save(folder / "val" / "images" / name, noise(0, 8, 8, 3))
    annotate(folder, "a.png\tant\t0\t0\t1\t1\n")
    parts = ["val/images/b.png has no line in val/val_annotations.txt"]
    refused(lambda: data.own(str(folder)), "data.source = ", parts)


IMAGES, LABELS = noise(0, 4, 8, 8, 3), np.array([0, 1, 0, 1])
GOOD = dict(train_images=IMAGES, train_labels=LABELS, test_images=IMAGES, test_labels=LABELS)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train_images": IMAGES / 255}, ["train_images is float64", "uint8"]),
        ({"test_images": IMAGES.astype(int)}, ["test_images is int64", "uint8"]),
        ({"train_images": IMAGES[:3]}, ["3 train_images and 4 train_labels"]),
        ({"test_labels": LABELS[:0]}, ["4 test_images and 0 test_labels"]),
        ({"train_images": IMAGES.transpose(0, 3, 1, 2)}, ["train_images", "[4, 3, 8, 8]"]),
        ({"train_images": IMAGES[0, 0]}, ["train_images", "[8, 3]", "[n, height, width]"]),
        ({"train_labels": LABELS / 2}, ["train_labels is float64", "integers"]),
        ({"train_labels": np.eye(4, dtype=int)}, ["train_labels", "[4, 4]"]),
        ({"train_labels": LABELS - 1}, ["train_labels has -1"]),
        ({"train_labels": LABELS * 0}, ["one class only"]),
        ({"train_labels": LABELS * 2}, ["goes up to 2", "label 1"]),
        ({"test_labels": LABELS * 5}, ["test_labels has the class 5"]),
        ({"test_images": noise(0, 4, 9, 9, 3)}, ["test_images[0] is 9 × 9", "data.side = 8"]),
        ({"test_labels": None}, ["no array test_labels"]),
        ({"train_images": None}, ["no array train_images"]),
        ({"train_labels": LABELS.astype(object)}, ["cannot be read", "plain arrays"]),
        ({"train_images": IMAGES * 0}, ["channel 0 of all training images"]),
        ({"test_images": None, "test_labels": None}, ["no test images", "data.test_share"]),
    ],
)
def test_arrays_that_are_not_as_they_must_be_are_refused_in_a_sentence(tmp_path, changes, parts):
    arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    np.savez(tmp_path / "mine.npz", **arrays)
    begin = f"data.source = {str(tmp_path / 'mine.npz')!r}: "
    refused(lambda: data.load(str(tmp_path / "mine.npz"), "train"), begin, parts)


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no arrays")
    np.save(tmp_path / "one.npy", IMAGES)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    for name in ("text.npz", "one.npz"):
        refused(lambda n=name: data.own(str(tmp_path / n)), "data.source", [name, "cannot be read"])
    (tmp_path / "images.zip").write_bytes(b"")
    parts = ["images.zip", "folder of images or an .npz"]
    refused(lambda: data.own(str(tmp_path / "images.zip")), "data.source", parts)


def test_a_class_of_one_image_cannot_be_held_out(tmp_path):
    fill(tmp_path / "few" / "train", {"ant": 3, "bee": 1})
    reading = Reading(test_share=0.5)
    refused(lambda: data.own(str(tmp_path / "few"), reading), "data.source", ["bee", "one image"])


@pytest.mark.parametrize(
    ("name", "reading", "begin", "parts"),
    [
        ("{}", Reading(side=0), "data.side = 0: ", ["4 to 1024"]),
        ("{}", Reading(test_share=1.0), "data.test_share = 1.0: ", ["between 0 and 1"]),
        ("{}", Reading(test_share=0.1, test_seed=-1), "data.test_seed = -1: ", ["at least 0"]),
        ("{}", Reading(test_share=0.1), "data.test_share = 0.1: ", ["test images of its own"]),
        ("{}/nowhere", Reading(), "data.source = ", ["nowhere", "no such file or folder"]),
        ("fashion", Reading(), "data.source = 'fashion': choose one of ", ["cifar10", "folder"]),
        ("cifar10", Reading(side=16), "data.side = 16: ", ["cifar10", "goes by a name"]),
        ("cifar10", Reading(flip=False), "data.flip = False: ", ["cifar10", "goes by a name"]),
    ],
)
def test_a_reading_that_makes_no_sense_is_refused(folder, name, reading, begin, parts):
    refused(lambda: data.load(name.format(folder), "train", reading=reading), begin, parts)


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_read(folder, monkeypatch):
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(available=18 * 192 * 2 - 1)
    )
    parts = ["18 images of 8 × 8 pixels", "smaller data.side"]
    refused(lambda: data.load(str(folder), "train", stream=False), "data.source", parts)
    needed = 2 * 18 * 8 * 8 * 3
    free = {"available": needed - 1}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(**free))
    parts = ["18 images of 8 × 8 pixels", "smaller data.side"]
    refused(lambda: data.load(str(folder), "train", stream=False), "data.source", parts)
    free["available"] = needed
    assert len(data.load(str(folder), "train", stream=False)) == 12
