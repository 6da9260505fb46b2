"""What is computed on a GPU stays there, seen on one that is pretended."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretended_gpu import CUDA, prefer_graphs, pretended_gpu
from torch import nn

from rebasin_utils.nets import models
from rebasin_utils.nets.data import SOURCES
from rebasin_utils.nets.masks import count, dense_mask, global_magnitude, prunable
from rebasin_utils.running import runner
from rebasin_utils.study.study import Study
from rebasin_utils.training import graphs
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.stacking import Single
from rebasin_utils.training.train import Job, Trained, train_many


@pytest.fixture(autouse=True)
def _graphed(monkeypatch):
    prefer_graphs(monkeypatch)


def test_the_pretended_gpu_minds_what_a_real_one_does():
    with pretended_gpu() as gpu:
        there = torch.ones(3, device="cuda")
        assert (there + 1).device.type == "cuda"
        with pytest.raises(RuntimeError, match="two devices"):
            there + torch.ones(3)
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        before = gpu.crossed
        there.sum().item(), there.tolist(), there.cpu(), there.copy_(torch.ones(3))
        assert gpu.crossed == before + 4


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
def test_a_study_on_a_gpu_leaves_nothing_on_the_cpu(model, tiny, tmp_path):
    """All stages; the pretended GPU computes what the CPU does."""
    less = {"data.pool": 4, "data.test_limit": 100, "sparse.rewind_epochs": (1,)}
    less |= {"paths.alphas": (0.0, 0.5, 1.0), "paths.to_every_round": False}
    less["sparse.methods"] = ("lth", "permuted")
    settings = tiny.with_values(**less, **{"model.name": model})
    tables = []
    for device, entered in (("cpu", nullcontext()), ("cuda", pretended_gpu())):
        with entered:
            study = Study(settings, tmp_path / device, device)
            runner.run(study, cluster=None, quiet=True)
            assert study.missing() == []
            tables.append(study.results())
    here, there = (table.drop(columns=["seconds", "device"]) for table in tables)
    assert here.equals(there)
    assert set(tables[1]["device"]) == {"pretended"}
    assert all(kind is graphs.Graphed for kind, _ in graphs._chosen.values())
    assert bool(graphs._chosen) == (model == "resnet8")


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
@pytest.mark.parametrize("augment", [False, True])
def test_a_step_of_training_waits_for_nothing(model, augment, images):
    """Twice as many steps send no more to the GPU, and ask no more of it."""
    net = models.build(model, images.shape, 10)
    job = Job(net.state_dict(), 0, dense_mask(net.state_dict(), prunable(net)))
    recipe = Recipe(epochs=1, lr=0.05, batch_size=32)
    crossed = []
    for samples in (64, 128, 256):
        some = replace(images.head(samples), source=SOURCES["fashion-mnist"])
        with pretended_gpu() as gpu:
            before = gpu.crossed
            train_many(net, [job], recipe, some.to("cuda"), augment=augment)
            crossed.append(gpu.crossed - before)
    assert crossed[1] == crossed[2] > 0  # the first has to look at the machine, too


# -------------------------------------------------------------------------- graphs


def resnet(seed: int = 0) -> nn.Module:
    return models.build("resnet8", (1, 14, 14), 10, seed=seed)


def some_jobs(folder: Path | None = None) -> list[Job]:
    """Three, of which no two are alike; the second has a mask."""
    jobs = []
    for i in range(3):
        state = resnet(i).state_dict()
        dense = dense_mask(state, prunable(resnet()))
        mask = global_magnitude(state, dense, keep=count(dense) // 5) if i == 1 else None
        jobs.append(Job(state, 100 + i, mask, (0, 1), folder / str(i) if folder else None))
    return jobs


def assert_same(first: Sequence[Trained], second: Sequence[Trained]) -> None:
    """Bit for bit."""
    for a, b in zip(first, second, strict=True):
        assert a.losses == b.losses
        for x, y in ((a.state, b.state), *((a.snapshots[e], b.snapshots[e]) for e in (0, 1))):
            assert x.keys() == y.keys()
            assert all(torch.equal(x[name], y[name]) for name in x)


def are_graphed(runs: int) -> bool:
    return list(graphs._chosen.values()) == [(graphs.Graphed, runs)]


@pytest.mark.parametrize("augment", [False, True])
def test_graphs_train_what_one_net_after_the_other_does(augment, images):
    """Weights, masks, statistics, snapshots and losses."""
    images = replace(images, source=SOURCES["fashion-mnist"])
    recipe = Recipe(epochs=2, lr=0.05, batch_size=64)
    expected = train_many(resnet(), some_jobs(), recipe, images, augment=augment)
    with pretended_gpu():
        found = train_many(resnet(), some_jobs(), recipe, images.to("cuda"), augment=augment)
    assert are_graphed(3)
    assert_same(found, expected)


def test_graphed_runs_resume_to_the_same_bytes(images, tmp_path):
    def stop(epochs: int) -> None:
        if list(tmp_path.iterdir()):  # after the first epoch, of which the last step is not kept
            raise KeyboardInterrupt

    recipe, kept = Recipe(epochs=3, lr=0.05, batch_size=64), some_jobs(tmp_path)
    with pretended_gpu():
        there = images.to("cuda")
        expected = train_many(resnet(), some_jobs(), recipe, there)
        options = dict(progress=stop, checkpoint_seconds=0)
        with pytest.raises(KeyboardInterrupt):
            train_many(resnet(), kept, recipe, there, **options)
        epochs = []
        found = train_many(resnet(), kept, recipe, there, progress=epochs.append)
    assert are_graphed(3)
    assert epochs == [3, 3, 3]
    assert_same(found, expected)


def chosen(net: nn.Module, runs: int = 3) -> tuple[type, int]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(runs, 16, 1, 14, 14, generator=generator)
    y = torch.randint(0, 10, (runs, 16), generator=generator)
    with pretended_gpu():
        return graphs.choose(net, net.state_dict(), x.to("cuda"), y.to("cuda"))


def test_the_faster_way_is_chosen(monkeypatch):
    assert chosen(resnet()) == (graphs.Graphed, 3)
    graphs._chosen.clear()
    monkeypatch.setattr(graphs, "_seconds", lambda net, x, y: 1 + 3 * (net.runs > 1))
    assert chosen(resnet()) == (Single, 1)


def test_no_more_runs_are_taken_than_half_of_the_memory_holds(monkeypatch):
    reserved = iter([100, 110])
    monkeypatch.setitem(CUDA, "memory_reserved", lambda device: next(reserved))
    monkeypatch.setattr(graphs, "memory_available", lambda device: 45)
    assert chosen(resnet()) == (graphs.Graphed, 2)


class Wilful(nn.Module):
    """A net that a graph cannot hold, for one of three reasons."""

    def __init__(self, way: str):
        super().__init__()
        self.way, self.net, self.other = way, resnet(), nn.Linear(14, 10)
        self.other.requires_grad_(way != "is frozen")

    def forward(self, images):
        if self.way == "asks":
            self.other.weight.sum().item()
        return self.net(images) + (0 if self.way == "leaves out" else self.other(images[0, 0, :1]))


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("asks", "capturing"),
        ("leaves out", "not have been used"),
        ("is frozen", "not require grad"),
    ],
)
def test_a_net_that_cannot_be_recorded_is_trained_as_it_is(way, why):
    with pytest.warns(UserWarning, match=f"without CUDA graphs: .*{why}"):
        assert chosen(Wilful(way)) == (Single, 1)


@pytest.mark.parametrize(
    "mistake", ["another run's images", "old images", "old labels", "old weights"]
)
def test_graphs_that_give_other_numbers_are_not_taken(mistake, monkeypatch):
    step, record = graphs.Graphed._step, graphs.Graphed._record

    def wrong_step(self, run):
        images = self._x
        if mistake == "another run's images":
            self._x = images.roll(1, 0)
        step(self, run)
        self._x = images

    def wrong_record(self, x, y):
        record(self, x, y)
        if mistake == "old images":
            self._x = self._x.clone()
        if mistake == "old labels":
            self._y = self._y.clone()
        if mistake == "old weights":
            for i, tensor in enumerate(self.trained):
                self.trained[i] = tensor.clone()
                self.trained[i].grad = tensor.grad

    monkeypatch.setattr(graphs.Graphed, "_step", wrong_step)
    monkeypatch.setattr(graphs.Graphed, "_record", wrong_record)
    with pytest.warns(UserWarning, match="not those of a run alone"):
        assert chosen(resnet()) == (Single, 1)
