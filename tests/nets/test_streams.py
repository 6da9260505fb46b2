"""Streams: the numbers of the same split in memory, whoever decodes."""

from __future__ import annotations

import multiprocessing
import os
import time
from types import SimpleNamespace

import distributed  # noqa: F401 (has exceptions pickled with their tracebacks)
import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from rebasin_utils.errors import InputError, RunError
from rebasin_utils.nets import data, models, streams
from rebasin_utils.nets.data import Reading
from rebasin_utils.nets.embedded import miniature
from rebasin_utils.training.evaluate import evaluate
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, train

RECIPE = Recipe(epochs=2, lr=0.08, batch_size=8)

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of 20 and 12 training images of one size, one of them grey; six test images."""
    root = tmp_path_factory.mktemp("images")
    drawn = np.random.default_rng(0)
    for part, counts in (("train", (20, 12)), ("test", (4, 2))):
        for label, count in zip("ab", counts, strict=True):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = drawn.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                image = image.convert("L") if (label, i) == ("b", 3) else image
                image.save(root / part / label / f"{i:02}.png")
    return root


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Images of many sizes, as ImageNet's."""
    root = tmp_path_factory.mktemp("photographs") / "folder"
    miniature.write(root, 6, 3)
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path_factory.mktemp("data")))


def both(folder, split="train", workers=0, **how):
    """The split in memory and as a stream."""
    return (
        data.load(str(folder), split, stream=False, **how),
        data.load(str(folder), split, stream=True, loader_workers=workers, **how),
    )


def same_batches(a, b) -> bool:
    pairs = list(zip(a, b, strict=True))
    assert pairs
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


@pytest.mark.parametrize(
    "how", [{}, {"pool": 2}, {"limit": 11}, {"reading": Reading(side=8)}, {"scale_pad": True}]
)
@pytest.mark.parametrize("augment", [True, False])
def test_a_stream_gives_what_memory_gives(folder, how, augment):
    memory, stream = both(folder, **how)
    assert stream.source == memory.source
    assert (len(stream), stream.shape) == (len(memory), memory.shape)
    assert same_batches(data.in_order(memory, 5), data.in_order(stream, 5))
    made = [data.training_batches(split, 4, augment) for split in (memory, stream)]
    for epoch in (0, 3):
        assert same_batches(*(batches.epoch([3, 1, 3], epoch) for batches in made))
        assert same_batches(*(batches.epoch([3, 1, 3], epoch, first=1) for batches in made))


def test_subsets_of_a_stream_are_those_in_memory(folder):
    memory, stream = both(folder)
    for take in (lambda s: s.head(7), lambda s: s.balanced(10), lambda s: s.balanced(10).head(3)):
        assert same_batches(data.in_order(take(memory), 4), data.in_order(take(stream), 4))


def test_ranks_share_a_batch(folder):
    for split in both(folder):
        whole = data.training_batches(split, 8, True).epoch([1], 0)
        parts = [
            data.training_batches(split, 8, True, (rank, 4)).epoch([1], 0) for rank in range(4)
        ]
        for (x, y), *shares in zip(whole, *parts, strict=True):
            assert torch.equal(torch.cat([share[0] for share in shares], 1), x)
            assert torch.equal(torch.cat([share[1] for share in shares], 1), y)


@pytest.mark.parametrize("workers", [1, 3])
def test_who_decodes_changes_nothing(photographs, workers):
    reading = Reading(side=24, crop="resized")
    alone, shared = (
        data.load(str(photographs), "train", reading=reading, loader_workers=n)
        for n in (0, workers)
    )
    state = torch.get_rng_state()
    made = [data.training_batches(split, 8, True) for split in (alone, shared)]
    assert same_batches(*(batches.epoch([5], 1) for batches in made))
    assert same_batches(*(data.in_order(split, 7) for split in (alone, shared)))
    assert torch.equal(torch.get_rng_state(), state)


def test_parts_of_originals_differ_by_seed_epoch_and_sample(photographs):
    stream = data.load(str(photographs), "train", reading=Reading(side=24, crop="resized"))
    batches = data.training_batches(stream.head(1), 1, True)
    views = [next(batches.epoch([seed], epoch))[0] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert not any(torch.equal(views[i], views[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(next(batches.epoch([0], 1))[0], views[1])


def test_a_stream_is_tested_on_the_middle_of_a_larger_image(photographs):
    from torchvision.transforms import functional as transforms

    stream = data.load(str(photographs), "test", reading=Reading(side=28, crop="resized"))
    first = Image.open(photographs / "val" / "bag" / "0000.jpg")
    expected = transforms.center_crop(transforms.resize(first, 32), 28)
    pixels, _ = next(stream.pieces(1))
    assert np.array_equal(pixels[0].movedim(0, -1), np.array(expected))


def test_parts_are_cut_of_images_of_one_size_which_are_tested_whole(folder):
    reading = Reading(crop="part", smallest=0.5)
    whole = data.load(str(folder), "test", stream=False)
    parts = data.load(str(folder), "test", reading=reading)
    assert torch.equal(next(parts.pieces(99))[0], whole.pixels)
    (x, _), *_ = data.training_batches(parts, len(parts), True).epoch([1], 0)
    assert x.shape[2:] == whole.pixels.shape[1:]
    assert not torch.equal(x[0], whole.normalised(whole.pixels))


def test_no_part_is_smaller_than_is_said(folder, monkeypatch):
    from torchvision.transforms import functional as transforms

    cut, shares = transforms.resized_crop, []

    def noted(image, top, left, height, width, size):
        shares.append(height * width / (image.width * image.height))
        return cut(image, top, left, height, width, size)

    monkeypatch.setattr(transforms, "resized_crop", noted)
    for smallest in (0.08, 0.5):
        reading = Reading(crop="part", smallest=smallest)
        stream = data.load(str(folder), "train", reading=reading, loader_workers=0)
        batches = data.training_batches(stream, 8, True)
        for epoch in range(8):
            list(batches.epoch([1], epoch))
        assert min(shares) > smallest - 0.05  # whole pixels
        assert (min(shares) < 0.3) == (smallest < 0.3)
        shares.clear()


def test_parts_are_cut_of_tiny_imagenet_where_that_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path))
    for split in ("train", "val"):
        for label in ("n1", "n2"):
            place = tmp_path / "tiny-imagenet-200" / split / label
            place.mkdir(parents=True)
            Image.effect_noise((64, 64), 50).convert("RGB").save(place / "0.jpg")
    reading = Reading(crop="part", smallest=0.5)
    assert data.is_streamed("tiny-imagenet", reading)
    stream = data.load("tiny-imagenet", "train", reading=reading)
    assert (stream.source.crop, stream.source.smallest) == ("part", 0.5)
    assert isinstance(data.load("tiny-imagenet", "train"), data.Images)


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_training_on_a_stream_ends_in_the_same_bytes(folder, name):
    net = models.build(name, (3, 16, 16), 2, seed=3)
    ends = []
    for split, test in zip(both(folder), both(folder, "test"), strict=True):
        trained = train(net, Job(net.state_dict(), 4), RECIPE, split, augment=True)
        ends.append((trained.state, trained.losses, evaluate(net, [trained.state], test)))
    (a, *said), (b, *other) = ends
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert said == other


def test_a_killed_stream_resumes_in_the_middle_of_an_epoch(folder, tmp_path, monkeypatch):
    _, stream = both(folder)
    net = models.build("resnet8", (3, 16, 16), 2, seed=3)
    expected = train(net, Job(net.state_dict(), 4), RECIPE, stream, augment=True)
    read, file = streams.Files.__getitems__, tmp_path / "checkpoint"
    left = 7  # batches: two that the net is tried on, four of the first epoch, one of the second

    def killed(files, cuts):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return read(files, cuts)

    monkeypatch.setattr(streams.Files, "__getitems__", killed)
    job = Job(net.state_dict(), 4, checkpoint=file)
    with pytest.raises(KeyboardInterrupt):
        train(net, job, RECIPE, stream, augment=True, checkpoint_seconds=0)
    left = 5  # two that the net is tried on, and what is left of the second epoch
    resumed = train(net, job, RECIPE, stream, augment=True)
    assert left == 0
    assert resumed.losses == expected.losses
    assert all(torch.equal(resumed.state[n], t) for n, t in expected.state.items())


def test_what_does_not_fit_is_streamed(folder, monkeypatch):
    pixels = 38 * 16 * 16 * 3
    free = {"available": int(pixels / streams.SHARE) - 1}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(**free))
    assert isinstance(data.load(str(folder), "train"), data.Stream)
    free["available"] += 2
    assert not data.is_streamed(str(folder))


def test_a_held_stream_has_the_same_images_without_opening_a_file_again(folder, monkeypatch):
    stream = data.load(str(folder), "test", stream=True).head(7)
    expected = [pixels for pixels, _ in stream.pieces(3)]
    monkeypatch.setattr(streams, "memory_available", lambda device: 0)
    assert stream.held() is stream
    monkeypatch.undo()
    held = stream.held()
    monkeypatch.setattr(streams.Files, "__getitems__", None)
    found = [pixels for pixels, _ in held.pieces(3)]
    assert torch.equal(torch.cat(found), torch.cat(expected))
    assert torch.equal(held.labels, stream.labels)
    assert held.source == stream.source
    assert held.held() is held


def test_the_miniature_is_written_when_it_is_first_used():
    stream = data.load("imagenet-miniature", "train", loader_workers=0)
    assert (len(stream), stream.shape) == (10 * miniature.TRAIN, (3, 32, 32))
    assert stream.labels[:10].tolist() == list(range(10))
    sizes = {Image.open(f).size for f in (data.data_root() / "imagenet-miniature").rglob("*.jpg")}
    assert len(sizes) > 100


# ---------------------------------------------------------------------- bad input


def refused(call, *parts):
    with pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    assert all(part in said for part in parts), said


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("what", ["changed", "gone", "broken"])
def test_a_folder_that_changes_while_it_is_streamed_is_refused(
    photographs, tmp_path, what, workers
):
    import shutil

    folder = tmp_path / "mine"
    shutil.copytree(photographs, folder)
    victim = folder / "train" / "coat" / "0002.jpg"
    if what == "broken":
        victim.write_bytes(victim.read_bytes()[:100])
    time.sleep(0.05)  # a file system's clock ticks slower
    reading = Reading(side=24, crop="resized")
    if what == "broken":
        refused(lambda: data.load(str(folder), "train", reading=reading), "0002.jpg cannot be read")
        return
    stream = data.load(str(folder), "train", reading=reading, loader_workers=workers)
    time.sleep(0.05)
    if what == "changed":
        newer = tmp_path / "newer.jpg"
        shutil.copy2(folder / "train" / "coat" / "0001.jpg", newer)  # keeps its old date
        os.replace(newer, victim)
    else:
        victim.unlink()
    refused(lambda: list(stream.pieces(4)), "train/coat/0002.jpg", what, "data.source = ")
    assert not multiprocessing.active_children()


def test_too_little_shared_memory_is_refused(folder, monkeypatch):
    _, stream = both(folder, workers=2)
    monkeypatch.setattr(streams.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    refused(lambda: list(stream.pieces(4)), "data.loader_workers = 2", "shared memory", "or 0")


def test_a_worker_that_dies_is_said(folder, monkeypatch):
    _, stream = both(folder, workers=1)
    monkeypatch.setattr(streams.Files, "__getitems__", lambda files, cuts: os._exit(9))
    with pytest.raises(RunError, match=r"data.loader_workers = 1: .* died"):
        list(stream.pieces(4))


def test_what_cannot_be_streamed_says_so(folder, photographs):
    refused(lambda: data.load("mnist-5k", "train", stream=True), "data.stream = True", "mnist-5k")
    cut = Reading(side=24, crop="resized")
    refused(
        lambda: data.load(str(photographs), "train", reading=cut, stream=False),
        "data.stream = False",
        "cut from its files",
    )
    no_side = Reading(crop="resized")
    refused(lambda: data.load(str(photographs), "train", reading=no_side), "set data.side")
    none = Reading(smallest=0.5)
    refused(
        lambda: data.load(str(folder), "train", reading=none), "data.smallest = 0.5", "cuts none"
    )
    refused(lambda: data.load("mnist-5k", "train", reading=none), "data.smallest = 0.5", "mnist-5k")
    part = Reading(crop="part")
    refused(lambda: data.load("mnist-5k", "train", reading=part), "data.crop = part", "mnist-5k")
    _, stream = both(folder)
    refused(lambda: data.training_batches(stream, 8, True, (0, 3)), "batch_size = 8", "3 ranks")
    refused(lambda: data.training_batches(stream, 99, True), "batch_size = 99", "32 samples")
