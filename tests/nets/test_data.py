"""Data sets are read as they are, and batches are made from them sample by sample as promised."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from torchvision import datasets
from torchvision.transforms import functional as TF

from rebasin_utils.errors import InputError
from rebasin_utils.nets import data
from rebasin_utils.nets.data import SOURCES, Batches, EpochPlan, Images
from rebasin_utils.nets.embedded import make

EMBEDDED = "fashion-mnist-10k"

#: SHA-256 of the bytes of pixels [n, 28, 28] and labels [n], uint8.
CHECKSUMS = {
    "train": (
        "e1427044c614fabc29feeff0f27e6b68f88a9ee2f2cfe7d783b9157159864883",
        "2c02745d4ad8b4511333d0eca662ac5664a371860abaa4588b1670e7be59fbdf",
    ),
    "test": (
        "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
        "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
    ),
}
DIGITS = {
    "train": (
        "214ab262d78d564d71f868ed5cf102cc06ec63c56e0fb11696a72a7b3e3d0a81",
        "38718e25dbf29b9851a08be309b4e885eedc55f938a19d9e458ce5cdd16c07a3",
    ),
    "test": (
        "c472d02b59d863f010e0da4331d6b8378fd6d665b32bdad7dabd206c3343f52b",
        "19cab774765c7ba7873e2eb3cee313c084bbb20b53116334dd0e24cd06e8d4e5",
    ),
}


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.to(torch.uint8).contiguous().numpy().tobytes()).hexdigest()


def made_up(name: str, n: int, side: int | None = None) -> Images:
    """Random pixels with the source of `name`."""
    source = SOURCES[name]
    channels, height, width = source.shape
    shape = (n, channels, side or height, side or width)
    generator = torch.Generator().manual_seed(n)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(n) % source.classes, source)


# -------------------------------------------------------------------------- the embedded subset


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_embedded_subset_has_a_thousand_images_of_every_class(split):
    images = data.load(EMBEDDED, split)
    assert images.pixels.shape == (10_000, 1, 28, 28)
    assert images.pixels.dtype == torch.uint8
    assert images.labels.dtype == torch.int64
    assert images.labels.bincount().tolist() == [1000] * 10


@pytest.mark.parametrize(("split", "of_a_class"), [("train", 400), ("test", 100)])
def test_the_embedded_digits_are_five_thousand_in_all(split, of_a_class):
    images = data.load("mnist-5k", split)
    assert images.pixels.shape == (10 * of_a_class, 1, 28, 28)
    assert images.labels.bincount().tolist() == [of_a_class] * 10
    assert (sha256(images.pixels), sha256(images.labels)) == DIGITS[split]


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_embedded_subset_never_changes(split):
    images = data.load(EMBEDDED, split)
    assert (sha256(images.pixels), sha256(images.labels)) == CHECKSUMS[split]


def test_what_is_embedded_is_small_and_carries_its_licences():
    assert make.FASHION.stat().st_size < 10_000_000
    licence = make.FASHION.with_name("LICENSE.fashion-mnist").read_text()
    assert "MIT" in licence
    assert "Zalando" in licence
    assert make.DIGITS.stat().st_size < 1_000_000
    assert "Attribution-Share Alike 3.0" in make.DIGITS.with_name("LICENSE.mnist").read_text()


def test_the_digits_are_made_again_from_rows_of_pixels_and_a_label(tmp_path):
    images = torch.cat([data.load("mnist-5k", split).pixels for split in ("train", "test")])
    labels = torch.cat([data.load("mnist-5k", split).labels for split in ("train", "test")])
    rows = np.column_stack([images.flatten(1).numpy(), labels.numpy()])
    np.savetxt(tmp_path / "rows.csv.gz", rows, fmt="%d", delimiter=",")
    for name, array in make.digits(tmp_path / "rows.csv.gz").items():
        split, kind = name.split("_")
        assert sha256(torch.from_numpy(array.copy())) == DIGITS[split][kind == "labels"]


@pytest.mark.parametrize("name", [EMBEDDED, "mnist-5k"])
def test_the_normalisation_constants_fit_the_embedded_pixels(name):
    images = data.load(name, "train")
    normal = images.normalised(images.pixels)
    assert abs(normal.mean().item()) < 0.02
    assert abs(normal.std().item() - 1) < 0.02


def original_fashion_mnist() -> Path | None:
    """The folder of the four original files, where there is one."""
    candidates = [data.DEBIAN_FASHION_MNIST, data.data_root() / "FashionMNIST" / "raw"]
    names = ("train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    found = (f for f in candidates if all((f / name).is_file() for name in names))
    return next(found, None)


@pytest.mark.skipif(original_fashion_mnist() is None, reason="no original Fashion-MNIST here")
def test_the_original_files_give_the_embedded_subset_again():
    for name, array in make.fashion(original_fashion_mnist()).items():
        split, kind = name.split("_")
        assert sha256(torch.from_numpy(array.copy())) == CHECKSUMS[split][kind == "labels"]


def write_idx(path: Path, array: np.ndarray) -> None:
    """The MNIST file format: two zero bytes, type 8 (uint8), the number of dimensions, big-endian
    sizes, the bytes; gzipped where the name says so."""
    sizes = np.asarray(array.shape, ">u4").tobytes()
    raw = bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_fashion_mnist(folder: Path, suffix: str, train_labels: np.ndarray, side: int) -> dict:
    """The four files; every image is filled with its own position, low byte and high byte."""
    made = {}
    for split, labels in (("train", train_labels), ("t10k", np.array([3, 1, 4]))):
        number = np.arange(len(labels))
        pixels = np.zeros((len(labels), side, side), np.uint8)
        pixels[:, 0, 0], pixels[:, 0, 1] = number % 256, number // 256
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", pixels)
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", labels)
        made[split] = pixels, labels
    return made


def test_the_subset_takes_the_first_thousand_of_every_class_in_file_order(tmp_path):
    labels = np.random.default_rng(0).integers(0, 10, 12_000)
    write_fashion_mnist(tmp_path, ".gz", labels, side=2)
    chosen = make.fashion(tmp_path)
    number = chosen["train_images"][:, 0, 0] + 256 * chosen["train_images"][:, 0, 1].astype(int)
    assert (np.diff(number) > 0).all()
    assert (labels[number] == chosen["train_labels"]).all()
    for c in range(10):
        assert (
            number[chosen["train_labels"] == c].tolist()
            == np.flatnonzero(labels == c)[:1000].tolist()
        )
    assert chosen["test_labels"].tolist() == [3, 1, 4]


def test_making_the_subset_from_other_files_is_noticed(tmp_path, capsys):
    write_fashion_mnist(tmp_path, ".gz", np.arange(12_000) % 10, side=2)
    assert make.main([str(tmp_path)]) == 1
    assert "DIFFERENT" in capsys.readouterr().out


# -------------------------------------------------------------------------- files on disk


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty data folder that `REBASIN_DATA` points to."""
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path))
    data._read.cache_clear()
    yield tmp_path
    data._read.cache_clear()


def write_pickle(path: Path, content: dict) -> list[str]:
    """Returns [name, md5], the entry of torchvision's integrity list."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return [path.name, hashlib.md5(path.read_bytes()).hexdigest()]


def test_cifar10_files_are_read_value_by_value_with_red_first(folder, monkeypatch):
    rows = np.random.default_rng(0).integers(0, 256, (12, 3 * 32 * 32), dtype=np.uint8)
    labels = [int(y) for y in np.random.default_rng(1).integers(0, 10, 12)]
    base = folder / "cifar-10-batches-py"
    parts = [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8), slice(8, 10), slice(10, 12)]
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    lists = [
        write_pickle(base / name, {"data": rows[part], "labels": labels[part]})
        for name, part in zip(names, parts, strict=True)
    ]
    meta = write_pickle(base / "batches.meta", {"label_names": [str(i) for i in range(10)]})
    monkeypatch.setattr(datasets.CIFAR10, "train_list", lists[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", lists[5:])
    monkeypatch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": meta[1]})
    for split, part in (("train", slice(0, 10)), ("test", slice(10, 12))):
        images = data.load("cifar10", split)
        # One row of the file is the red plane, then green, then blue, each 32 rows of 32.
        assert torch.equal(images.pixels, torch.from_numpy(rows[part].reshape(-1, 3, 32, 32)))
        assert images.labels.tolist() == labels[part]


def test_cifar100_files_are_read_with_their_fine_labels(folder, monkeypatch):
    rows = np.random.default_rng(0).integers(0, 256, (5, 3 * 32 * 32), dtype=np.uint8)
    fine, coarse = [99, 0, 42, 7, 63], [19, 0, 8, 1, 12]
    base, lists = folder / "cifar-100-python", {}
    for name, part in (("train", slice(0, 3)), ("test", slice(3, 5))):
        content = {
            "data": rows[part],
            "fine_labels": fine[part],
            "coarse_labels": coarse[part],
        }
        lists[name] = [write_pickle(base / name, content)]
        monkeypatch.setattr(datasets.CIFAR100, f"{name}_list", lists[name])
    meta = write_pickle(base / "meta", {"fine_label_names": [str(i) for i in range(100)]})
    monkeypatch.setattr(datasets.CIFAR100, "meta", datasets.CIFAR100.meta | {"md5": meta[1]})
    for split, part in (("train", slice(0, 3)), ("test", slice(3, 5))):
        images = data.load("cifar100", split)
        assert torch.equal(images.pixels, torch.from_numpy(rows[part].reshape(-1, 3, 32, 32)))
        assert images.labels.tolist() == fine[part]


def test_svhn_files_are_read_with_ten_meaning_zero(folder, monkeypatch):
    rng, made = np.random.default_rng(0), {}
    lists = dict(datasets.SVHN.split_list)
    for split in ("train", "test"):
        x = rng.integers(0, 256, (32, 32, 3, 11), dtype=np.uint8)  # row, column, colour, image
        y = np.array([10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], np.uint8)[:, None]
        file = folder / f"{split}_32x32.mat"
        scipy.io.savemat(file, {"X": x, "y": y})
        digest = hashlib.md5(file.read_bytes()).hexdigest()
        lists[split] = [lists[split][0], file.name, digest]
        made[split] = x
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    for split, x in made.items():
        images = data.load("svhn", split)
        for i in range(11):
            assert torch.equal(images.pixels[i].movedim(0, -1), torch.from_numpy(x[..., i]))
        assert images.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_fashion_mnist_files_are_read_from_the_folder_that_torchvision_uses(folder):
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    made = write_fashion_mnist(raw, "", np.arange(300) % 10, side=28)
    for split, name in (("train", "train"), ("test", "t10k")):
        images = data.load("fashion-mnist", split)
        pixels, labels = made[name]
        assert torch.equal(images.pixels[:, 0], torch.from_numpy(pixels))
        assert images.labels.tolist() == labels.tolist()


def test_debians_fashion_mnist_is_found_without_being_named(tmp_path, monkeypatch):
    made = write_fashion_mnist(tmp_path, ".gz", np.arange(300) % 10, side=28)
    monkeypatch.delenv("REBASIN_DATA", raising=False)
    monkeypatch.setattr(data, "DEBIAN_FASHION_MNIST", tmp_path)
    data._read.cache_clear()
    try:
        images = data.load("fashion-mnist", "train")
    finally:
        data._read.cache_clear()
    assert torch.equal(images.pixels[:, 0], torch.from_numpy(made["train"][0]))
    assert images.labels.tolist() == made["train"][1].tolist()


FILES = {
    "fashion-mnist": "FashionMNIST/raw",
    "cifar10": "cifar-10-batches-py",
    "cifar100": "cifar-100-python",
    "svhn": "",
}


@pytest.mark.parametrize("name", FILES)
def test_a_missing_data_set_is_refused_in_one_sentence_that_says_where_to_put_it(
    name, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("no folder can be made below a file, so nothing is downloaded")
    root = tmp_path / "file" / "data"
    monkeypatch.setenv("REBASIN_DATA", str(root))
    with pytest.raises(InputError) as raised:
        data.load(name, "train")
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert sentence.startswith(f"data.source = {name!r}: ")
    assert str(root / FILES[name]) in sentence
    assert "REBASIN_DATA" in sentence
    assert SOURCES[name].get in sentence


def test_a_failed_download_is_refused_in_the_same_way(folder, monkeypatch):
    nobody_listens = "http://127.0.0.1:9/cifar-10-python.tar.gz"
    monkeypatch.setattr(datasets.CIFAR10, "url", nobody_listens)
    with pytest.raises(InputError, match="REBASIN_DATA"):
        data.load("cifar10", "train")
    assert not any(folder.rglob("*.tar.gz"))


def test_the_data_folder_is_the_named_one_or_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data.data_root() == tmp_path / "named"
    monkeypatch.setenv("REBASIN_DATA", "")
    assert data.data_root() == tmp_path / "cache" / "rebasin" / "data"
    monkeypatch.delenv("REBASIN_DATA")
    assert data.data_root() == tmp_path / "cache" / "rebasin" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert data.data_root() == Path("~/.cache/rebasin/data").expanduser()


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: data.load("mnist", "train"), ["data.source", "'mnist'", *SOURCES]),
        (lambda: data.load(EMBEDDED, "valid"), ["split", "'valid'", "train", "test"]),
        (lambda: data.load(EMBEDDED, "train", pool=3), ["pool", "3", "28"]),
        (lambda: data.load(EMBEDDED, "train", pool=0), ["pool", "0", "28"]),
        (lambda: Batches(made_up("cifar10", 4), 5, False), ["batch_size", "5", "4"]),
        (lambda: Batches(made_up("cifar10", 4), 0, False), ["batch_size", "0", "4"]),
    ],
)
def test_bad_input_is_refused_with_the_field_the_value_and_what_is_allowed(call, names):
    with pytest.raises(InputError) as raised:
        call()
    for name in names:
        assert name in str(raised.value)


# -------------------------------------------------------------------------- constants


@pytest.mark.parametrize(
    ("name", "classes", "shape", "mean", "std", "pad", "flip"),
    [
        # Section 1.2 of the protocol: CIFAR-10 takes ImageNet's constants, SVHN is not flipped.
        ("cifar10", 10, (3, 32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 4, True),
        ("cifar100", 100, (3, 32, 32), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 4, True),
        ("svhn", 10, (3, 32, 32), (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), 4, False),
    ],
)
def test_the_papers_data_sets_have_the_papers_constants(name, classes, shape, mean, std, pad, flip):
    source = SOURCES[name]
    assert (source.classes, source.shape) == (classes, shape)
    assert (source.mean, source.std) == (mean, std)
    assert (source.pad, source.flip) == (pad, flip)


def test_images_are_normalised_by_other_numbers_where_that_is_said():
    own, other = (
        data.load("mnist-5k", "test", limit=8, mean=mean, std=std)
        for mean, std in ((None, None), ((0.5,), (0.25,)))
    )
    x = other.pixels / 255
    torch.testing.assert_close(other.normalised(other.pixels), (x - 0.5) / 0.25)
    assert torch.equal(own.pixels, other.pixels)
    assert not torch.equal(own.normalised(own.pixels), other.normalised(own.pixels))
    with pytest.raises(
        InputError, match=r"data.std = \[1.0, 1.0, 1.0\]: must be one number for each of the 1"
    ):
        data.load("mnist-5k", "test", std=(1.0, 1.0, 1.0))


# -------------------------------------------------------------------------- pooling


def test_pooling_averages_squares_of_pixels():
    for pool in (2, 4, 7):
        whole = data.load(EMBEDDED, "test", limit=50).pixels.numpy()
        pooled = data.load(EMBEDDED, "test", pool=pool, limit=50)
        side = 28 // pool
        blocks = whole.reshape(50, 1, side, pool, side, pool)
        average = blocks.transpose(0, 1, 2, 4, 3, 5).reshape(50, 1, side, side, -1).mean(-1)
        assert pooled.shape == (1, side, side)
        assert pooled.pixels.dtype == torch.uint8
        assert np.abs(pooled.pixels.numpy() - average).max() <= 0.5


def test_a_limit_keeps_the_first_images():
    whole, few = data.load(EMBEDDED, "train"), data.load(EMBEDDED, "train", limit=7)
    assert len(few) == 7
    assert torch.equal(few.pixels, whole.pixels[:7])
    assert torch.equal(few.labels, whole.labels[:7])


def test_a_balanced_subset_has_the_first_of_every_class_in_turns():
    whole = data.load(EMBEDDED, "train")
    few = whole.balanced(34)
    assert few.labels.tolist() == [i % 10 for i in range(34)]
    for label in range(10):
        of_class = whole.pixels[whole.labels == label]
        chosen = few.pixels[few.labels == label]
        assert torch.equal(chosen, of_class[: len(chosen)])
    assert torch.equal(whole.balanced(100).pixels[:34], few.pixels)


@pytest.mark.parametrize(
    ("n", "names"),
    [(0, ["at least 1"]), (21, ["takes 3 samples of class 0", "has 2", "at most 20"])],
)
def test_a_balanced_subset_that_cannot_be_had_is_refused(n, names):
    with pytest.raises(InputError) as raised:
        made_up("cifar10", 20).balanced(n)
    assert str(raised.value).startswith(f"data.limit = {n}: ")
    for name in names:
        assert name in str(raised.value)


def test_the_padding_of_a_named_data_set_shrinks_with_its_images_only_where_asked(monkeypatch):
    one = made_up("cifar10", 1)
    monkeypatch.setattr(data, "_read", lambda name, split: (one.pixels, one.labels))
    pads = [
        data.load("cifar10", "train", pool=pool, scale_pad=scale_pad).source.pad
        for scale_pad in (False, True)
        for pool in (1, 2, 4)
    ]
    assert pads == [4, 4, 4, 4, 2, 1]


# -------------------------------------------------------------------------- the plan of an epoch


def same_plan(a: EpochPlan, b: EpochPlan) -> bool:
    pairs = ((a.order, b.order), (a.offsets, b.offsets), (a.flips, b.flips))
    return all(x is y is None or torch.equal(x, y) for x, y in pairs)


def only(plan: EpochPlan, run: int) -> EpochPlan:
    return EpochPlan(
        *(x if x is None else x[run : run + 1] for x in (plan.order, plan.offsets, plan.flips))
    )


@pytest.mark.parametrize("augment", [False, True])
def test_a_plan_depends_on_its_own_seed_and_epoch_alone(augment):
    images = made_up("cifar10", 50)
    alone = EpochPlan.draw([7], 3, images, augment)
    torch.rand(17)  # nor on the global random state
    for company in ([7, 1], [1, 7], [9, 7, 7], [0, 1, 2, 3, 7]):
        among = EpochPlan.draw(company, 3, images, augment)
        for run, seed in enumerate(company):
            assert same_plan(only(among, run), alone) == (seed == 7)


@pytest.mark.parametrize("augment", [False, True])
def test_plans_of_different_seeds_and_epochs_differ(augment):
    images = made_up("cifar10", 50)
    drawn = {
        (seed, epoch): EpochPlan.draw([seed], epoch, images, augment)
        for seed in (0, 1, 2, 2**31)
        for epoch in (0, 1, 2, 200)
    }
    orders = {tuple(plan.order[0].tolist()) for plan in drawn.values()}
    assert len(orders) == len(drawn)
    if augment:
        assert len({tuple(p.offsets.flatten().tolist()) for p in drawn.values()}) == len(drawn)


def test_an_epoch_is_a_permutation_of_the_samples():
    plan = EpochPlan.draw([0, 5], 1, made_up("cifar10", 40), augment=True)
    for order in plan.order:
        assert sorted(order.tolist()) == list(range(40))


def test_crops_reach_every_offset_and_half_of_the_images_are_flipped():
    plan = EpochPlan.draw([0], 0, made_up("cifar10", 20_000, side=1), augment=True)
    for axis in (0, 1):
        counts = plan.offsets[0, :, axis].bincount(minlength=9)
        assert len(counts) == 9
        assert (counts - 20_000 / 9).abs().max() < 5 * (20_000 / 9) ** 0.5
    assert abs(plan.flips.float().mean().item() - 0.5) < 0.02
    offsets = plan.offsets[0].float()
    assert abs(torch.corrcoef(offsets.T)[0, 1].item()) < 0.03


def test_svhn_is_never_flipped():
    assert not EpochPlan.draw([0, 1], 0, made_up("svhn", 500, side=1), augment=True).flips.any()


# -------------------------------------------------------------------------- batches


@pytest.mark.parametrize("name", ["cifar10", "svhn", "fashion-mnist"])
def test_augmentation_equals_torchvisions_pad_crop_and_flip_sample_by_sample(name):
    images, size = made_up(name, 40), 16
    source = images.source
    batches = Batches(images, size, augment=True)
    plan = batches.plan([3, 4], epoch=1)
    _, height, width = images.shape
    for step in range(batches.steps):
        x, y = batches.at(plan, step)
        assert x.shape == (2, size, *images.shape)
        for run in range(2):
            for j in range(size):
                at = step * size + j
                sample = int(plan.order[run, at])
                top, left = plan.offsets[run, at].tolist()
                picture = TF.pad(images.pixels[sample], [source.pad] * 4)
                picture = TF.crop(picture, top, left, height, width)
                if plan.flips[run, at]:
                    picture = TF.hflip(picture)
                expected = TF.normalize(picture / 255, source.mean, source.std)
                torch.testing.assert_close(x[run, j], expected, atol=1e-5, rtol=0)
                assert y[run, j] == images.labels[sample]


def test_without_augmentation_a_batch_is_the_samples_normalised():
    images = made_up("cifar10", 30)
    batches = Batches(images, 8, augment=False)
    plan = batches.plan([0, 1], epoch=0)
    assert plan.offsets is None
    assert plan.flips is None
    for step in range(batches.steps):
        x, y = batches.at(plan, step)
        for run in range(2):
            chosen = plan.order[run, step * 8 : step * 8 + 8]
            expected = TF.normalize(
                images.pixels[chosen] / 255, images.source.mean, images.source.std
            )
            torch.testing.assert_close(x[run], expected, atol=1e-5, rtol=0)
            assert torch.equal(y[run], images.labels[chosen])


@pytest.mark.parametrize("augment", [False, True])
def test_an_epoch_sees_no_sample_twice_and_drops_the_incomplete_batch(augment):
    images = made_up("cifar10", 30)
    images = Images(images.pixels, torch.arange(30), images.source)  # a label names its sample
    batches = Batches(images, 8, augment)
    assert batches.steps == 3
    plan = batches.plan([5], epoch=2)
    seen = [y for step in range(batches.steps) for y in batches.at(plan, step)[1][0].tolist()]
    assert len(seen) == len(set(seen)) == 24


def test_reading_in_order_keeps_the_incomplete_batch():
    images = made_up("cifar10", 30)
    read = list(data.in_order(images, 8))
    assert [len(y) for _, y in read] == [8, 8, 8, 6]
    assert torch.equal(torch.cat([y for _, y in read]), images.labels)
    together = torch.cat([x for x, _ in read])
    torch.testing.assert_close(together, images.normalised(images.pixels))
