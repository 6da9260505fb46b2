"""Training a grid of small runs: the loops that people write against `train_many`.

    python benchmarks/training.py                  about twelve minutes on two cores
    python benchmarks/training.py --quick          the same tables from little data: three minutes
                                                   (on a GPU, (b) of two nets only)
    python benchmarks/training.py --json FILE      writes the numbers as well
    python benchmarks/training.py --device cuda    on a GPU: wider nets and more images, too

Four ways to train the same nets with the same masks on the same data, batch size and steps:

* naive: as people write it, and as the paper's released code does: a `DataLoader` with workers,
  torchvision's transforms image by image, `torch.nn.utils.prune`, `loss.item()` at every step, one
  run after another with all cores.
* careful: the same loop with the data in memory as one tensor, batches made at once, masks
  multiplied in after the step, nothing waited for; one run after another with all cores.
* careful, in processes: the same, one process of one thread per core.
* ours: `train_many`, on a CPU in one process of one thread per core. What it tries out on a GPU
  before it chooses a way is done before the clock starts.

Beside them, for residual nets, stand their convolutions alone, forward and backward on inputs of
the same shapes, in processes: a loop around PyTorch's convolutions cannot be faster.

Processes of one thread keep the memory that they free, as the workers of a study do.

Images per second are of wall-clock time and all runs together; processes are started and data are
loaded before the clock starts (the workers of a `DataLoader` are not: they start with each epoch).
The limit is the speed of a large float32 matrix product on the same cores, measured here, divided
by the operations of a training step; on a GPU in TensorFloat-32, as PyTorch's convolutions are.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from report import Row, Table, as_markdown, cores, device_argument, machine
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from training_ways import BATCH, SPARSITY, Case, careful, cases, convolutions_alone, naive, ours

from rebasin_utils.nets import data, masks
from rebasin_utils.nets.devices import KEEP_MEMORY
from rebasin_utils.study.plan import Plan
from rebasin_utils.study.presets import preset
from rebasin_utils.training.evaluate import evaluate


class Machine:
    """Runs the four ways with every core of this machine, or its GPU."""

    def __init__(self, device: str):
        self.device = device
        self.workers = cores()
        self.pools: list[Executor] = []  # of one process each, so that what it caches is known
        if device == "cpu":
            spawn = multiprocessing.get_context("spawn")
            self.pools = [
                ProcessPoolExecutor(1, spawn, torch.set_num_threads, (1,))
                for _ in range(self.workers)
            ]
            with patch.dict(os.environ, KEEP_MEMORY):  # as they are when the processes start
                for pool in self.pools:
                    pool.submit(int).result()
        torch.set_num_threads(self.workers)
        self.ways: dict[str, Callable[[Case, Sequence[int]], list[masks.State]]] = {
            "naive": lambda case, seeds: naive(case, seeds, device, self.workers),
            "careful": lambda case, seeds: careful(case, seeds, device),
            "ours": lambda case, seeds: self._in_processes(ours, case, seeds),
        }
        if self.pools:
            self.ways["careful, in processes"] = lambda case, seeds: self._in_processes(
                careful, case, seeds
            )
            self.ways["convolutions alone"] = lambda case, seeds: self._in_processes(
                convolutions_alone, case, seeds
            )

    def _in_processes(self, way: Callable, case: Case, seeds: Sequence[int]) -> list[masks.State]:
        if not self.pools:
            return way(case, seeds, self.device)
        futures = [
            pool.submit(as_arrays, way, case, seeds[i :: self.workers], self.device)
            for i, pool in enumerate(self.pools[: len(seeds)])
        ]
        arrays = [state for future in futures for state in future.result()]
        return [{name: torch.from_numpy(a) for name, a in state.items()} for state in arrays]

    def train(self, way: str, case: Case, runs: int) -> float:
        """Images per second of all runs together."""
        begin = time.perf_counter()
        self.ways[way](case, range(runs))  # its results come back, so a GPU has done its work
        return runs * case.trained / (time.perf_counter() - begin)

    def ways_for(self, case: Case) -> list[str]:
        return [way for way in self.ways if case.model != "mlp" or way != "convolutions alone"]

    def warm_up(self, case: Case, runs: int) -> None:
        """What is cached is made, in every process, and the first slow steps are done."""
        little = replace(case, epochs=0)
        for way in self.ways_for(case):
            self.ways[way](little, range(1 if way == "naive" else runs))
            self.ways[way](case, range(1 if way in ("naive", "careful") else self.workers))

    def product_speed(self) -> float:
        """Operations per second of a large float32 product on all cores at once."""
        if not self.pools:
            return product_speed(self.device)
        futures = [pool.submit(product_speed, self.device) for pool in self.pools]
        return sum(future.result() for future in futures)


def as_arrays(way: Callable, *arguments) -> list[dict[str, np.ndarray]]:
    """What a way to train returns, in a worker, as what travels between processes."""
    return [{name: t.numpy() for name, t in state.items()} for state in way(*arguments)]


def product_speed(device: str) -> float:
    size, rounds = (1024, 20) if device == "cpu" else (8192, 20)
    a, b = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(rounds):
            c = a @ b
        c[0, 0].item()  # waits for a GPU
        best = min(best, (time.perf_counter() - begin) / rounds)
    torch.backends.cuda.matmul.fp32_precision = "none"
    return 2 * size**3 / best


def flops_per_image(net: nn.Module, shape: Sequence[int]) -> float:
    """Operations of forward and backward, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(8, *shape)).sum().backward()
    return counter.get_total_flops() / 8


# -------------------------------------------------------------------------- the tables


def compare(on: Machine, case: Case, limit: float, rounds: int) -> Table:
    """(a): every way in turn, the best of several rounds; a run: 15 epochs of 10,000 images."""
    runs = {"naive": 1, "careful": 4, "careful, in processes": 4, "ours": 24}
    if case.model != "mlp":
        several = on.workers if on.pools else 16
        runs = {"naive": 1, "careful": 1, "careful, in processes": several, "ours": several}
        runs["convolutions alone"] = several
    on.warm_up(case, max(runs.values()))
    speed: dict[str, float] = dict.fromkeys(on.ways_for(case), 0.0)
    for _ in range(rounds):
        for way in speed:
            speed[way] = max(speed[way], on.train(way, case, runs[way]))
    most = limit / flops_per_image(case.net(), case.images().shape)
    pocket_run = 15 * (10_000 // BATCH) * BATCH
    return [
        {
            "net, images": case.name,
            "way": way,
            "runs": runs[way],
            "images/s": speed[way],
            "runs/hour": 3600 * speed[way] / pocket_run,
            "× naive": speed[way] / speed["naive"],
            "× careful": speed[way] / speed["careful"],
            "share of the limit (%)": 100 * speed[way] / most,
        }
        for way in runs
        if way in speed
    ]


def by_runs(on: Machine, case: Case, limit: float) -> Row:
    """(b): images per second of ours, by the number of runs."""
    speeds = {}
    for runs in (1, 4, 16, 64):
        on.ways["ours"](replace(case, epochs=0), range(runs))
        speeds[f"{runs} runs"] = on.train("ours", case, runs)
    most = limit / flops_per_image(case.net(), case.images().shape)
    return {"images/s": case.name, **speeds, "limit": most}


def by_width(on: Machine, case: Case, limit: float) -> Table:
    """(c): by the width of the net."""
    rows = []
    for width in (1, 2, 4):
        wider = replace(case, name=f"{case.name.partition(',')[0]} width {width}", width=width)
        runs = 16 if case.model == "mlp" else on.workers
        on.ways["ours"](replace(wider, epochs=0), range(runs))
        speed = on.train("ours", wider, runs)
        theirs = on.train("naive", wider, 1)
        most = limit / flops_per_image(wider.net(), wider.images().shape)
        rows.append(
            {
                "net": wider.name,
                "parameters": sum(p.numel() for p in wider.net().parameters()),
                "naive (images/s)": theirs,
                "ours (images/s)": speed,
                "× naive": speed / theirs,
                "share of the limit (%)": 100 * speed / most,
            }
        )
    return rows


def published_grid(speeds: dict[str, float], where: str) -> Table:
    """(d): hours for every run behind the published table of ResNet20×1 on CIFAR-10."""
    (settings,) = preset("paper-resnet20-w1-cifar10")
    plan = Plan(settings)
    epochs = {stage: sum(node.epochs for node in plan.nodes(stage)) for stage in plan.stages}
    images = {stage: n * (50_000 // BATCH) * BATCH for stage, n in epochs.items() if n}
    cells = len(plan.nodes("sparse")) // settings.seeds
    return [
        {
            "where": where,
            "way": way,
            "cells × seeds": f"{cells} × {settings.seeds}",
            **{f"epochs, {stage}": epochs[stage] for stage in images},
            "hours": sum(images.values()) / speed / 3600,
        }
        for way, speed in speeds.items()
    ]


def accuracies(case: Case, states: Sequence[masks.State]) -> list[float]:
    test = data.load("fashion-mnist-10k", "test", case.pool)
    return [metrics.accuracy for metrics in evaluate(case.net(), states, test)]


def agree(on: Machine, case: Case, seeds: int) -> Row:
    """(e): test accuracy of naive and ours; the same inits and masks, other data orders."""
    found = {way: accuracies(case, on.ways[way](case, range(seeds))) for way in ("naive", "ours")}
    means = {way: 100 * statistics.mean(values) for way, values in found.items()}
    noise = 100 * sum(statistics.variance(values) / seeds for values in found.values()) ** 0.5
    return {
        "net, images": case.name,
        "runs each": seeds,
        "epochs": case.epochs,
        "naive (%)": means["naive"],
        "ours (%)": means["ours"],
        "difference": means["ours"] - means["naive"],
        "standard error of the difference": noise,
    }


TITLES = {
    "a": "The same runs, four ways (runs/hour: of 15 epochs of 10,000 images)",
    "b": "Ours, by the number of runs",
    "c": "By the width of the net",
    "d": "The published grid of ResNet20×1 on CIFAR-10, projected",
    "e": "Test accuracy of naive and ours",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    parser.add_argument("--quick", action="store_true", help="little data: numbers mean less")
    parser.add_argument(
        "--device", type=device_argument, default="cpu", help="cpu (default) or cuda"
    )
    options = parser.parse_args()
    device = options.device.type
    on = Machine(device)
    rounds = 1 if options.quick else 4
    gpu = device != "cpu"
    mlp, resnet8, *larger = chosen = cases(options.quick, gpu)
    more = larger if gpu and not options.quick else []
    limit = on.product_speed()
    numbers: dict[str, object] = {
        "machine": machine(),
        "device": device,
        "quick": options.quick,
        "product (GFLOP/s)": limit / 1e9,
    }
    described = ", ".join(f"{k} {v}" for k, v in numbers["machine"].items())
    print(f"# Benchmark: training\n\n{described}; on {device}.\n")
    print(f"Batches of {BATCH}, {SPARSITY:.0%} of the weights masked. A large float32 product:")
    print(f"{limit / 1e9:.0f} GFLOP/s.")

    def grid() -> Table:
        where = numbers["machine"]["gpu" if gpu else "cpu"]
        rows = [row for row in numbers["a"] if row["net, images"] == chosen[-1].name]
        speeds = {row["way"]: row["images/s"] for row in rows}
        speeds.pop("convolutions alone", None)
        return published_grid(speeds, where)

    tables: dict[str, Callable[[], Table]] = {
        "a": lambda: [row for case in chosen for row in compare(on, case, limit, rounds)],
        "b": lambda: [by_runs(on, c, limit) for c in (mlp, resnet8, *more)],
        "c": lambda: [row for case in (mlp, resnet8) for row in by_width(on, case, limit)],
        "d": grid,
        "e": lambda: [
            agree(on, replace(case, epochs=epochs), seeds=2 if options.quick else 4)
            for case, epochs in ((mlp, 3), (resnet8, 10))
        ],
    }
    for letter, make in tables.items():
        numbers[letter] = make()
        print(f"\n## ({letter}) {TITLES[letter]}\n\n{as_markdown(numbers[letter])}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
