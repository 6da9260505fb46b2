"""The loops that the training benchmark compares do the same work and end alike."""

from __future__ import annotations

import importlib
import statistics
import sys
from pathlib import Path

import pytest
import torch
from pretended_gpu import pretended_gpu

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def benchmark(benchmarks):
    return benchmarks("training")


def test_naive_and_ours_agree_within_the_noise_of_seeds(benchmark):
    """Other data orders, so the means of five runs each: within four standard errors."""
    case = benchmark.Case("", "mlp", samples=2000, epochs=5)
    naive = benchmark.accuracies(case, benchmark.naive(case, range(5), "cpu", workers=0))
    ours = benchmark.accuracies(case, benchmark.ours(case, range(5), "cpu"))
    error = (statistics.variance(naive) / 5 + statistics.variance(ours) / 5) ** 0.5
    assert statistics.mean(ours) > 0.5
    assert abs(statistics.mean(naive) - statistics.mean(ours)) < 4 * error


@pytest.mark.parametrize(
    ("model", "options"),
    [("mlp", {"samples": 1280, "epochs": 2}), ("resnet8", {"samples": 256, "rgb": True})],
)
def test_careful_and_ours_train_the_same_net(model, options, benchmark):
    """The same batches, so the same weights to rounding."""
    case = benchmark.Case("", model, **options)
    pairs = zip(
        benchmark.careful(case, range(2), "cpu"), benchmark.ours(case, range(2), "cpu"), strict=True
    )
    for careful, ours in pairs:
        assert careful.keys() == ours.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(careful[name], tensor, atol=2e-4, rtol=1e-3)


def test_a_naive_run_keeps_the_mask_of_its_job(benchmark):
    case = benchmark.Case("", "mlp", samples=128)
    (state,) = benchmark.naive(case, [3], "cpu", workers=0)
    for name, kept in case.job(3).mask.items():
        assert not state[name][~kept].any()
        assert (state[name][kept] != case.job(3).state[name][kept]).float().mean() > 0.9


def test_the_published_grid_is_all_of_its_runs(benchmark):
    """6 dense nets of 200 epochs, 3 trajectories of 19 rounds of 50, 108 cells of 3 seeds."""
    (row,) = benchmark.published_grid({"ours": 1000.0}, "here")
    assert row["cells × seeds"] == "108 × 3"
    epochs = {key: value for key, value in row.items() if key.startswith("epochs")}
    assert epochs["epochs, dense"] == 6 * 200
    assert epochs["epochs, imp"] == 3 * 19 * 50
    assert row["hours"] == pytest.approx(sum(epochs.values()) * 390 * 128 / 1000 / 3600)


@pytest.fixture
def ways_end_alike(benchmarks):
    """Checks that ways to train two nets on a device do the same."""
    candidates = benchmarks("gpu_candidates")

    def check(names, device: str) -> None:
        task = candidates.Task("resnet8", 1, (1, 8, 8), 2, torch.device(device))
        ends = []
        for name in names:
            way = task.begin(name)
            for batch in task.batches:
                way.step(*batch)
            ends.append([{n: t.cpu() for n, t in state.items()} for state in way.states()])
        start = task.net().state_dict()
        for others in ends[1:]:
            for alone, other in zip(ends[0], others, strict=True):
                assert not torch.equal(alone["stem.bn.running_mean"], start["stem.bn.running_mean"])
                for name, tensor in alone.items():
                    torch.testing.assert_close(other[name], tensor, atol=1e-4, rtol=1e-3)

    return check


def test_nets_stacked_by_vmap_train_as_each_alone(ways_end_alike):
    """Weights, masks and batch norm's running statistics, after a few steps."""
    ways_end_alike(["one after the other", "vmap"], "cpu")


def test_nets_whose_steps_are_played_again_train_as_each_alone(ways_end_alike):
    """Recorded once, nothing of it may wait for the CPU or be new at every step."""
    with pretended_gpu():
        names = ["one after the other", "one graph", "side by side (taken)"]
        ways_end_alike(names, "cuda")
