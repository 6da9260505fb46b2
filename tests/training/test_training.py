"""A run depends on its own state, mask and seed alone, and is plain masked SGD.

`pytest --device cuda` trains on a GPU. There the kernel of a product is chosen by how many runs are
stacked, so that company changes a run by `ROUNDING_ON_A_GPU`; on a CPU it changes not a bit.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from rebasin_utils.errors import InputError
from rebasin_utils.nets import masks, models
from rebasin_utils.nets.data import SOURCES, Batches, Images, in_order
from rebasin_utils.nets.devices import KEEP_MEMORY
from rebasin_utils.training import stacking
from rebasin_utils.training.evaluate import evaluate
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.stacking import Single, Stacked, bytes_of_a_run, stackable
from rebasin_utils.training.train import Job, train, train_many

RECIPE = Recipe(epochs=3, lr=0.08, batch_size=64)
#: Of a weight or a loss, absolute and relative, after a run of a few dozen steps.
ROUNDING_ON_A_GPU = 1e-3


@pytest.fixture(scope="session")
def images(images, device) -> Images:
    return images.to(device)


@pytest.fixture(scope="session")
def rounding(device) -> float:
    """By how much company may change a run."""
    return ROUNDING_ON_A_GPU if device.type == "cuda" else 0.0


def net_of(name: str, seed: int = 0) -> nn.Module:
    return models.build(name, (1, 14, 14), 10, seed=seed)


NETS = {n: functools.partial(net_of, n) for n in ("mlp", "mlp_bn", "mlp_ln", "resnet8")}
STACKED = ("mlp", "mlp_bn", "mlp_ln")
mlp = NETS["mlp"]


def ticket(model: nn.Module, sparsity: float = 0.8) -> masks.Mask:
    """The largest weights of the model as it is."""
    state = model.state_dict()
    mask = masks.dense_mask(state, masks.prunable(model))
    return masks.global_magnitude(state, mask, keep=round((1 - sparsity) * masks.count(mask)))


def some_jobs(build, n: int) -> list[Job]:
    """Jobs of which no two are alike; every other one has a mask."""
    jobs = []
    for i in range(n):
        net = build(seed=i)
        mask = ticket(net, 0.3 + 0.05 * i) if i % 2 else None
        jobs.append(Job(net.state_dict(), seed=100 + i, mask=mask, snapshots=(0, 1 + i % 3)))
    return jobs


def same_state(first: masks.State, second: masks.State, rounding: float = 0.0) -> bool:
    def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
        return torch.allclose(a, b, rounding, rounding) if rounding else torch.equal(a, b)

    return first.keys() == second.keys() and all(alike(first[n], second[n]) for n in first)


def same(first, second, rounding: float = 0.0) -> bool:
    """Everything but the clock, bit for bit unless rounding is allowed."""
    return (
        same_state(first.state, second.state, rounding)
        and first.snapshots.keys() == second.snapshots.keys()
        and all(
            same_state(first.snapshots[e], second.snapshots[e], rounding) for e in first.snapshots
        )
        and first.losses == pytest.approx(second.losses, rel=rounding, abs=rounding)
        and first.diverged == second.diverged
    )


def assert_same_metrics(first, second, rounding: float) -> None:
    pair = [torch.tensor(metrics, dtype=torch.float64) for metrics in (first, second)]
    torch.testing.assert_close(*pair, rtol=rounding, atol=rounding)


# -------------------------------------------------------------------------- company


@pytest.mark.parametrize(
    ("name", "n"),
    [
        *(("mlp", 2), ("mlp", 5), ("mlp", 14)),
        *(("mlp_bn", 2), ("mlp_bn", 14), ("mlp_ln", 5), ("resnet8", 2)),
    ],
)
def test_training_runs_together_equals_training_them_one_by_one(name, n, images, rounding):
    build = NETS[name]
    jobs = some_jobs(build, n)
    together = train_many(build(), jobs, RECIPE, images)
    for job, trained in zip(jobs, together, strict=True):
        assert same(trained, train(build(), job, RECIPE, images), rounding)


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
def test_company_changes_nothing_where_no_size_fills_a_cache_line(norm, images, rounding):
    nets = [models.MLP((1, 14, 14), 7, hidden=(37, 11), norm=norm) for _ in range(5)]
    images = replace(images, labels=images.labels % 7)
    recipe = Recipe(epochs=2, lr=0.05, batch_size=51)
    jobs = [Job(net.state_dict(), i, ticket(net)) for i, net in enumerate(nets)]
    together = train_many(nets[0], jobs, recipe, images)
    for job, trained in zip(jobs, together, strict=True):
        assert same(trained, train(nets[0], job, recipe, images), rounding)


def test_a_run_does_not_depend_on_its_place_among_others(images, rounding):
    jobs = some_jobs(mlp, 5)
    forwards = train_many(mlp(), jobs, RECIPE, images)
    backwards = train_many(mlp(), jobs[::-1], RECIPE, images)[::-1]
    assert all(same(a, b, rounding) for a, b in zip(forwards, backwards, strict=True))


def test_company_changes_nothing_under_augmentation_either(images, rounding):
    images = replace(images, source=SOURCES["fashion-mnist"])
    jobs = some_jobs(mlp, 3)
    together = train_many(mlp(), jobs, RECIPE, images, augment=True)
    alone = [train(mlp(), job, RECIPE, images, augment=True) for job in jobs]
    plain = [train(mlp(), job, RECIPE, images) for job in jobs]
    assert all(same(a, b, rounding) for a, b in zip(together, alone, strict=True))
    assert not any(same(a, b, rounding) for a, b in zip(together, plain, strict=True))


def test_a_run_depends_on_its_seed_and_not_on_the_global_one(images):
    job = some_jobs(mlp, 1)[0]
    first = train(mlp(), job, RECIPE, images)
    torch.manual_seed(12345)
    assert same(first, train(mlp(seed=9), job, RECIPE, images))
    other = Job(job.state, job.seed + 1, job.mask, job.snapshots)
    assert not same_state(first.state, train(mlp(), other, RECIPE, images).state)


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverging_run_is_recorded_and_does_not_touch_its_neighbours(name, bad, images, rounding):
    jobs = some_jobs(NETS[name], 4)
    spoilt = {n: t.clone() for n, t in jobs[2].state.items()}
    spoilt["layers.linear1.weight"][3, 5] = bad
    jobs[2] = Job(spoilt, jobs[2].seed, jobs[2].mask, jobs[2].snapshots)
    together = train_many(NETS[name](), jobs, RECIPE, images)
    assert [trained.diverged for trained in together] == [False, False, True, False]
    for i in (0, 1, 3):
        assert same(together[i], train(NETS[name](), jobs[i], RECIPE, images), rounding)


# -------------------------------------------------------------------------- memory


@pytest.mark.parametrize(("fit", "sizes"), [(0, [1] * 5), (1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_runs_are_split_to_fit_the_memory_and_do_not_change(
    fit, sizes, images, rounding, monkeypatch
):
    jobs = some_jobs(mlp, 5)
    expected = train_many(mlp(), jobs, RECIPE, images)
    tested = evaluate(mlp(), [job.state for job in jobs], images, RECIPE.batch_size)
    made, of_a_run = [], bytes_of_a_run(mlp(), 196, RECIPE.batch_size)
    begin = Stacked.__init__

    def noted(self, model, states, device):
        made.append(len(states))
        begin(self, model, states, device)

    monkeypatch.setattr(Stacked, "__init__", noted)
    monkeypatch.setattr(stacking, "memory_available", lambda device: 2 * fit * of_a_run + 10)
    found = train_many(mlp(), jobs, RECIPE, images)
    assert made == sizes
    assert all(same(a, b, rounding) for a, b in zip(found, expected, strict=True))
    again = evaluate(mlp(), [job.state for job in jobs], images, RECIPE.batch_size)
    assert_same_metrics(again, tested, rounding)
    assert made == 2 * sizes


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads its memory in /proc")
@pytest.mark.parametrize(
    ("norm", "hidden", "batch"),
    [("none", 1024, 512), ("none", 256, 2048), ("batch", 256, 2048)],
)
def test_a_run_takes_no_more_memory_than_is_reckoned_with(norm, hidden, batch, device):
    """In a process of its own, whose high-water mark says what three more runs take."""
    work = """
import sys
from pathlib import Path
import torch
from rebasin_utils.nets import models
from rebasin_utils.nets.data import SOURCES, Images
from rebasin_utils.nets.devices import KEEP_MEMORY
from rebasin_utils.training.stacking import bytes_of_a_run
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, train_many

device, norm, hidden, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
pixels = torch.zeros(2 * batch, 1, 14, 14, dtype=torch.uint8)
images = Images(pixels, torch.zeros(2 * batch, dtype=torch.long), SOURCES["fashion-mnist-10k"])
images = images.to(device)
net = models.MLP(images.shape, 10, hidden=3 * [hidden], norm=None if norm == "none" else norm)
mask = {n: torch.ones_like(t, dtype=torch.bool) for n, t in net.named_parameters()}

def peak(runs):
    jobs = [Job(net.state_dict(), seed, mask) for seed in range(runs)]
    train_many(net, jobs, Recipe(epochs=1, lr=0.01, batch_size=batch), images)
    if images.pixels.is_cuda:
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])

fewer = peak(3)
print((peak(6) - fewer) / 3, bytes_of_a_run(net, 196, batch))
"""
    command = [sys.executable, "-c", work, str(device), norm, str(hidden), str(batch)]
    as_a_worker = os.environ | KEEP_MEMORY
    for _ in range(3):  # what else an allocator does at the time only adds
        done = subprocess.run(command, env=as_a_worker, capture_output=True, text=True, check=True)
        taken, reckoned = map(float, done.stdout.split())
        if taken < reckoned:
            break
    assert 0.2 * reckoned < taken < reckoned


# -------------------------------------------------------------------------- what training is


def plain_training(net: nn.Module, job: Job, recipe: Recipe, images: Images):
    """torch.nn.utils.prune, torch.optim's SGD or Adam and torch's cosine, in a loop."""
    net.load_state_dict(job.state)
    device = images.pixels.device
    net.to(device)
    for name, kept in (job.mask or {}).items():
        module = net.get_submodule(name.removesuffix(".weight"))
        prune.custom_from_mask(module, "weight", kept.to(device))
    common = dict(lr=recipe.lr, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(net.parameters(), **common)
    else:
        optimizer = torch.optim.SGD(net.parameters(), momentum=recipe.momentum, **common)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    batches = Batches(images, recipe.batch_size, augment=False)
    losses = []
    net.train()
    for epoch in range(recipe.epochs):
        plan, total = batches.plan([job.seed], epoch), 0.0
        for step in range(batches.steps):
            x, y = batches.at(plan, step)
            loss = F.cross_entropy(net(x[0]), y[0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        if recipe.schedule == "cosine":
            cosine.step()
        losses.append(total / batches.steps)
    for name in job.mask or {}:
        prune.remove(net.get_submodule(name.removesuffix(".weight")), "weight")
    return net.cpu().state_dict(), losses


class Precise(Images):
    """Images whose pixels are normalised in float64, so that rounding hides nothing."""

    def normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().normalised(pixels).double()


def check_against_plain_training(
    net: nn.Module, recipe: Recipe, images: Images, masked: bool = False
):
    """In float64; in float32 the two differ by rounding, which flips a ReLU now and then."""
    images = Precise(images.pixels, images.labels, images.source)
    net = copy.deepcopy(net).double()
    job = Job(copy.deepcopy(net.state_dict()), seed=11, mask=ticket(net) if masked else None)
    expected, losses = plain_training(copy.deepcopy(net), job, recipe, images)
    trained = train(net, job, recipe, images)
    assert trained.state.keys() == expected.keys()
    for tensor_name, tensor in expected.items():
        assert trained.state[tensor_name].dtype == tensor.dtype
        torch.testing.assert_close(trained.state[tensor_name], tensor, atol=1e-9, rtol=1e-9)
    assert trained.losses == pytest.approx(losses, rel=1e-6)  # summed in float32
    assert not trained.diverged


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("masked", "momentum"), [(False, 0.9), (True, 0.9), (True, 0.0)])
def test_training_is_torchs_sgd_with_torchs_pruning(name, masked, momentum, images):
    recipe = Recipe(epochs=3, lr=0.05, momentum=momentum, weight_decay=5e-3, batch_size=64)
    check_against_plain_training(NETS[name](seed=4), recipe, images, masked)


@pytest.mark.parametrize("name", ["mlp", "mlp_bn", "resnet8"])
def test_training_with_adam_is_torchs(name, images):
    recipe = Recipe(epochs=3, lr=0.002, weight_decay=5e-3, batch_size=64, optimizer="adam")
    check_against_plain_training(NETS[name](seed=4), recipe, images, masked=True)


def test_training_at_a_constant_rate_is_torchs_sgd_without_a_schedule(images):
    recipe = Recipe(epochs=3, lr=0.05, batch_size=64, schedule="constant")
    check_against_plain_training(mlp(seed=4), recipe, images, masked=True)


@pytest.mark.parametrize("name", NETS)
def test_a_masked_weight_is_zero_at_every_snapshot_and_a_kept_one_is_trained(name, images):
    net = NETS[name]()
    mask = ticket(net)
    job = Job(net.state_dict(), seed=0, mask=mask, snapshots=(0, 1, 2, 3))
    trained = train(net, job, RECIPE, images)
    for state in (trained.state, *trained.snapshots.values()):
        assert not any(state[n][~kept].any() for n, kept in mask.items())
    for n, kept in mask.items():
        moved = trained.state[n][kept] != job.state[n][kept]
        assert moved.float().mean() > 0.9


def test_training_learns(images):
    job = Job(mlp().state_dict(), seed=0)
    trained = train(mlp(), job, Recipe(epochs=10, lr=0.08, batch_size=32), images)
    assert trained.losses[-1] < 0.5 * trained.losses[0]
    assert evaluate(mlp(), [trained.state], images)[0].accuracy > 0.8


@pytest.mark.parametrize("name", NETS)
def test_training_leaves_its_inputs_alone(name, images):
    net = NETS[name]()
    net.eval()
    job = some_jobs(NETS[name], 2)[1]
    before = copy.deepcopy((net.state_dict(), job.state, job.mask, images.pixels, images.labels))
    train(net, job, RECIPE, images)
    evaluate(net, [job.state], images)
    after = (net.state_dict(), job.state, job.mask, images.pixels, images.labels)
    for a, b in zip(before, after, strict=True):
        assert same_state(a, b) if isinstance(a, dict) else torch.equal(a, b)
    assert not net.training
    assert not any(p.requires_grad and p.grad is not None for p in net.parameters())


# -------------------------------------------------------------------------- snapshots


@pytest.mark.parametrize("name", NETS)
def test_snapshot_zero_is_the_start_and_the_last_one_is_the_end(name, images):
    net = NETS[name](seed=3)
    job = Job(net.state_dict(), seed=0, snapshots=(0, RECIPE.epochs))
    trained = train(net, job, RECIPE, images)
    assert trained.snapshots.keys() == {0, RECIPE.epochs}
    assert same_state(trained.snapshots[0], job.state)
    assert same_state(trained.snapshots[RECIPE.epochs], trained.state)
    assert not same_state(trained.state, job.state)


@pytest.mark.parametrize("name", NETS)
def test_the_snapshot_of_an_epoch_is_where_a_run_stopped_there_ends(name, images):
    job = Job(NETS[name]().state_dict(), seed=0, snapshots=(0, 1, 2, 3))
    whole = train(NETS[name](), job, RECIPE, images)
    for epoch in range(4):
        stopped = train(NETS[name](), job, RECIPE, images, until=epoch)
        assert same_state(stopped.state, whole.snapshots[epoch])
        assert stopped.losses == whole.losses[:epoch]


def test_a_recipe_of_no_epochs_gives_the_start_back(images):
    job = Job(mlp().state_dict(), seed=0, mask=ticket(mlp()))
    trained = train(mlp(), job, Recipe(epochs=0, lr=0.1), images)
    assert same_state(trained.state, masks.apply(job.mask, job.state))
    assert trained.losses == []


# -------------------------------------------------------------------------- resuming


class Interrupted(Exception):
    """What stops a run in these tests."""


def interrupt_at(epoch: int, runs: int):
    """A progress function that raises when `runs` runs have done this epoch."""
    done = 0

    def progress(epochs: int) -> None:
        nonlocal done
        done += epochs
        if done >= epoch * runs:
            raise Interrupted

    return progress


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("mlp", {}),
        ("mlp", {"momentum": 0.0}),
        ("mlp", {"optimizer": "adam"}),
        ("mlp_bn", {}),
        ("resnet8", {}),
        ("resnet8", {"optimizer": "adam"}),
    ],
)
def test_a_run_interrupted_at_any_epoch_ends_in_the_same_bytes(name, how, images, tmp_path):
    build = NETS[name]
    recipe = Recipe(epochs=4, lr=0.005, batch_size=64, **how)
    net = build(seed=2)
    job = Job(net.state_dict(), 7, ticket(net), snapshots=(0, 1, 3))
    expected = train(net, job, recipe, images)
    for epoch in range(1, 5):
        file = tmp_path / f"{epoch}.safetensors"
        kept = Job(job.state, job.seed, job.mask, job.snapshots, checkpoint=file)
        options = dict(progress=interrupt_at(epoch, 1), checkpoint_seconds=0)
        with pytest.raises(Interrupted):
            train(net, kept, recipe, images, **options)
        epochs = []
        resumed = train(net, kept, recipe, images, progress=epochs.append)
        assert same(resumed, expected)
        assert sum(epochs) == 4 - (epoch - 1)  # what was saved is not done again


def test_a_run_can_be_resumed_in_other_company(images, rounding, tmp_path):
    recipe = Recipe(epochs=4, lr=0.08, batch_size=64)
    plain = some_jobs(mlp, 4)
    expected = train_many(mlp(), plain, recipe, images)
    jobs = [
        Job(j.state, j.seed, j.mask, j.snapshots, tmp_path / f"{i}") for i, j in enumerate(plain)
    ]
    for some, epoch in ((jobs[:2], 3), (jobs[2:3], 2)):
        options = dict(progress=interrupt_at(epoch, len(some)), checkpoint_seconds=0)
        with pytest.raises(Interrupted):
            train_many(mlp(), some, recipe, images, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "1", "2"]
    resumed = train_many(mlp(), jobs, recipe, images)  # in epochs 2, 2, 1 and 0
    assert all(same(a, b, rounding) for a, b in zip(resumed, expected, strict=True))


def test_a_damaged_checkpoint_is_reported_and_the_run_starts_again(images, tmp_path):
    job = some_jobs(mlp, 1)[0]
    expected = train(mlp(), job, RECIPE, images)
    file = tmp_path / "checkpoint"
    kept = Job(job.state, job.seed, job.mask, job.snapshots, file)
    options = dict(progress=interrupt_at(3, 1), checkpoint_seconds=0)
    with pytest.raises(Interrupted):
        train(mlp(), kept, RECIPE, images, **options)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="damaged"):
        assert same(train(mlp(), kept, RECIPE, images), expected)


# -------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("name", NETS)
def test_evaluation_is_the_mean_over_samples_in_eval_mode(name, images, rounding):
    """Also where the last batch is smaller than the others."""
    images = images.head(250)
    states, expected = [], []
    for seed in range(2):
        net = NETS[name](seed).to(images.pixels.device)
        net.train()
        with torch.no_grad():
            for x, _ in in_order(images, 125):
                net(x)  # non-trivial running statistics
        states.append(copy.deepcopy(net.state_dict()))
        net.eval()
        with torch.no_grad():
            logits = net(images.normalised(images.pixels)).double()
        loss = F.cross_entropy(logits, images.labels).item()
        expected.append(((logits.argmax(-1) == images.labels).double().mean().item(), loss))
    for batch_size in (100, 1000):
        found = evaluate(NETS[name]().train(), states, images, batch_size)
        for metrics, (accuracy, loss) in zip(found, expected, strict=True):
            one = 1.1 / len(images) if rounding else 1e-12  # image that is told otherwise
            assert metrics.accuracy == pytest.approx(accuracy, abs=one)
            assert metrics.loss == pytest.approx(loss, rel=max(1e-5, rounding))


def test_evaluating_states_together_equals_one_by_one(images, rounding):
    states = [mlp(seed=i).state_dict() for i in range(14)]
    together = evaluate(mlp(), states, images)
    alone = [evaluate(mlp(), [state], images)[0] for state in states]
    assert_same_metrics(together, alone, rounding)


def test_only_nets_of_linear_layers_are_stacked():
    assert [stackable(models.build(n, (3, 32, 32), 10)) for n in models.MODELS] == [
        n in STACKED for n in models.MODELS
    ]


class Residual(nn.Module):
    """Made of linear layers, but no chain."""

    def __init__(self):
        super().__init__()
        self.flatten, self.relu = nn.Flatten(), nn.ReLU()
        self.first, self.second, self.last = (
            nn.Linear(196, 32),
            nn.Linear(32, 32),
            nn.Linear(32, 10),
        )

    def forward(self, images):
        h = self.relu(self.first(self.flatten(images)))
        return self.last(h + self.second(h))


class Aside(Residual):
    """Computes something of which nothing comes."""

    def forward(self, images):
        h = self.first(self.flatten(images))
        self.relu(self.second(h))
        return self.last(h)


def chain(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), *layers)


_SHARED, _SHARED_NORM = nn.Linear(196, 196), nn.BatchNorm1d(196)
NO_PLAIN_CHAINS = {
    "a residual": Residual(),
    "layers of no use": Aside(),
    "a ReLU at the end": chain(nn.Linear(196, 10), nn.ReLU()),
    "a ReLU at the start": chain(nn.ReLU(), nn.Linear(196, 10)),
    "a layer used twice": chain(_SHARED, _SHARED, nn.Linear(196, 10)),
    "a norm at the end": chain(nn.Linear(196, 10), nn.LayerNorm(10)),
    "a norm at the start": chain(nn.BatchNorm1d(196), nn.Linear(196, 10)),
    "a norm after a ReLU": chain(
        nn.Linear(196, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 10)
    ),
    "two norms": chain(nn.Linear(196, 32), nn.LayerNorm(32), nn.BatchNorm1d(32), nn.Linear(32, 10)),
    "a norm used twice": chain(
        nn.Linear(196, 196), _SHARED_NORM, nn.Linear(196, 196), _SHARED_NORM, nn.Linear(196, 10)
    ),
    "batch norm without γ and β": chain(
        nn.Linear(196, 32), nn.BatchNorm1d(32, affine=False), nn.Linear(32, 10)
    ),
    "batch norm's statistics of a batch, always": chain(
        nn.Linear(196, 32), nn.BatchNorm1d(32, track_running_stats=False), nn.Linear(32, 10)
    ),
    "batch norm's statistics as plain means": chain(
        nn.Linear(196, 32), nn.BatchNorm1d(32, momentum=None), nn.Linear(32, 10)
    ),
    "layer norm without β": chain(
        nn.Linear(196, 32), nn.LayerNorm(32, bias=False), nn.Linear(32, 10)
    ),
    "flattening in the middle": chain(nn.Linear(196, 32), nn.Flatten(), nn.Linear(32, 10)),
}


@pytest.mark.parametrize("what", NO_PLAIN_CHAINS)
def test_a_net_that_is_no_plain_chain_is_trained_as_it_is(what, images):
    net = NO_PLAIN_CHAINS[what]
    assert not stackable(net)
    check_against_plain_training(net, Recipe(epochs=1, lr=0.05, batch_size=64), images)


PLAIN_CHAINS = {
    "no ReLU between": chain(
        nn.Linear(196, 32), nn.Linear(32, 32), nn.ReLU(), nn.ReLU(), nn.Linear(32, 10)
    ),
    "no biases": chain(
        nn.Linear(196, 32, bias=False), nn.ReLU(), nn.Linear(32, 10, bias=False)
    ),
    "norms of both kinds, after biases": chain(
        nn.Linear(196, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 24), nn.LayerNorm(24),
        nn.Linear(24, 10),
    ),
    "norms with numbers of their own": chain(
        nn.Linear(196, 32), nn.BatchNorm1d(32, eps=0.1, momentum=0.3), nn.ReLU(),
        nn.Linear(32, 32), nn.LayerNorm(32, eps=0.2), nn.ReLU(), nn.Linear(32, 10),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PLAIN_CHAINS)
def test_other_chains_are_stacked_as_they_are(what, images):
    net = PLAIN_CHAINS[what]
    assert stackable(net)
    check_against_plain_training(net, Recipe(epochs=2, lr=0.05, batch_size=64), images)


def test_batch_norm_of_one_sample_is_refused_and_layer_norm_is_not(images):
    recipe = Recipe(epochs=1, lr=0.01, batch_size=1)
    for name in ("mlp", "mlp_ln"):
        train(NETS[name](), Job(NETS[name]().state_dict(), 0), recipe, images.head(2))
    with pytest.raises(InputError, match=r"batch_size = 1: batch norm .* at least 2"):
        train(NETS["mlp_bn"](), Job(NETS["mlp_bn"]().state_dict(), 0), recipe, images.head(2))


def test_top5_counts_the_five_largest_logits(images):
    net = mlp(seed=1)
    (found,) = evaluate(net, [net.state_dict()], images, batch_size=100)
    x = images.normalised(images.pixels)
    order = net.to(x.device)(x).argsort(1, descending=True)
    ranks = order.argsort(1).gather(1, images.labels[:, None])
    assert found.top5 == pytest.approx((ranks < 5).double().mean().item())
    assert found.accuracy < found.top5 < 1


class Answering(nn.Module):
    """Gives every sample the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x):
        return self.logits.expand(len(x), -1)


@pytest.mark.parametrize(
    ("logits", "among"),
    [
        ([0.0] * 10, range(5)),  # of equals the first, as argmax takes them
        ([1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], (0, 1, 2, 3, 9)),
        ([math.nan] * 10, ()),
    ],
)
def test_top5_of_equal_logits_and_of_none(logits, among, images):
    net = Answering(logits)
    (found,) = evaluate(net, [net.state_dict()], images, batch_size=100)
    shares = [(images.labels == label).double().mean().item() for label in among]
    assert found.top5 == pytest.approx(sum(shares))


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_a_state_that_is_there_twice_is_measured_once(name, images, monkeypatch):
    nets = [NETS[name](seed=seed) for seed in (0, 1)]
    first, second = (net.state_dict() for net in nets)
    looked_at = []
    for kind in (Stacked, Single):
        logits = kind.logits
        monkeypatch.setattr(
            kind, "logits", lambda net, x, f=logits: looked_at.append(net.runs) or f(net, x)
        )
    found = evaluate(nets[0], [first, second, first], images, batch_size=len(images))
    assert sum(looked_at) == 2
    assert found[0] == found[2] != found[1]
    assert found[:2] == evaluate(nets[0], [first, second], images, batch_size=len(images))
