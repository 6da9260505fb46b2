"""What the runner costs: where the seconds of workers go, and the price of a task.

    python benchmarks/runner.py                      minutes on two cores
    python benchmarks/runner.py --preset pocket      where a larger study's seconds go

(a) is the wall time of the smoke study in an empty store, in this process and on Dask workers,
which cost seconds to start: each imports torch. (b) divides the time that workers had for a study,
from the call to its return: the seconds in the records of artifacts, what else the tasks took that
made them, and what passed without a task. `--picture FILE` draws the tasks of (b): which worker did
what and when. (c) is the time of a task that does nothing, from submission to outcome.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import matplotlib
import torch
from distributed import Client
from matplotlib.figure import Figure
from report import Table, as_markdown, machine

from rebasin_utils.running import cluster
from rebasin_utils.running.dag import Report, Task, execute
from rebasin_utils.running.runner import run
from rebasin_utils.study import presets
from rebasin_utils.study.study import Study

WORKERS, TASKS = 2, 1000


class Ran(NamedTuple):
    """A task on a worker, in seconds since the call that ran the study."""

    worker: str
    stage: str
    begin: float
    end: float


def studies_of(preset: str, folder: str) -> list[Study]:
    return [Study(settings, folder, "cpu") for settings in presets.preset(preset)]


def seconds_of_study(workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        studies = studies_of("smoke", folder)
        begin = time.perf_counter()
        run(studies, workers=workers, quiet=True)
        return time.perf_counter() - begin


@contextmanager
def watched(kept: list[dict[str, Any]]) -> Iterator[None]:
    """While it is entered, what Dask knows of a cluster's tasks is kept when that is stopped."""
    connected = cluster.connected

    @contextmanager
    def watching(*where: Any) -> Iterator[Client]:
        with connected(*where) as client:
            client.get_task_stream()  # from now on it is recorded
            yield client
            kept.extend(client.get_task_stream())

    with patch.object(cluster, "connected", watching):
        yield


def watched_study(preset: str) -> tuple[Table, list[Ran]]:
    """Where the seconds of the workers went, and the tasks."""
    stream: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, watched(stream):
        studies = studies_of(preset, folder)
        begin = time.time()  # as the workers' clocks
        run(studies, workers=WORKERS, quiet=True)
        wall = time.time() - begin
        keys = {n.key: s for s in studies for n in s.plan.all_nodes()}
        artifacts = sum(s.store.record(key)["seconds"] or 0.0 for key, s in keys.items())
    ran = [
        Ran(task["worker"], task["key"].partition("-")[0], part["start"], part["stop"])
        for task in stream
        for part in task["startstops"]
        if part["action"] == "compute"
    ]
    ran = [r._replace(begin=r.begin - begin, end=r.end - begin) for r in ran]
    ran.sort(key=lambda r: r.begin)
    by_worker = [[r for r in ran if r.worker == worker] for worker in {r.worker for r in ran}]
    tasks = sum(r.end - r.begin for r in ran)
    before = sum(theirs[0].begin for theirs in by_worker)
    after = sum(wall - theirs[-1].end for theirs in by_worker)
    whole = wall * WORKERS
    parts = {
        "in artifacts": artifacts,
        "in tasks, beside their artifacts": tasks - artifacts,
        "before a worker's first task": before,
        "between tasks": whole - tasks - before - after,
        "after a worker's last task": after,
        f"all: {WORKERS} workers × {wall:.0f} s": whole,
    }
    return [
        {"seconds of workers": name, "s": part, "%": 100 * part / whole}
        for name, part in parts.items()
    ], ran


def draw(ran: list[Ran], preset: str, path: Path) -> None:
    """Which worker did what and when."""
    workers = sorted({r.worker for r in ran})
    stages = list(dict.fromkeys(r.stage for r in ran))
    figure = Figure(figsize=(11, 1.8 + 0.7 * len(workers)), layout="constrained")
    axes = figure.add_subplot()
    for i, stage in enumerate(stages):
        for row, worker in enumerate(workers):
            bars = [
                (r.begin, r.end - r.begin) for r in ran if (r.worker, r.stage) == (worker, stage)
            ]
            how = {"color": matplotlib.colormaps["tab20"](i), "linewidth": 0}
            axes.broken_barh(bars, (row - 0.4, 0.8), label="_" * row + stage, **how)
    axes.set_xlim(left=0)
    axes.set_yticks(range(len(workers)), [f"worker {i + 1}" for i in range(len(workers))])
    axes.set_xlabel("seconds since the study was begun")
    axes.set_title(f"The tasks of the {preset} study")
    figure.legend(loc="outside lower center", ncols=8, frameon=False, fontsize="small")
    figure.savefig(path)


def nothing(report: Report) -> None:
    pass


def milliseconds_of_task(client: Client | None) -> float:
    tasks = [Task(f"nothing-{i}", nothing) for i in range(TASKS)]
    begin = time.perf_counter()
    execute(tasks, client, lambda event: None)
    return (time.perf_counter() - begin) / TASKS * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="smoke", help="the study of (b)")
    parser.add_argument("--picture", type=Path, help="of its tasks, as .png or .svg")
    asked = parser.parse_args()
    print(", ".join(f"{k} {v}" for k, v in machine().items()))
    here, there = seconds_of_study(1), seconds_of_study(WORKERS)
    begin = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as scratch,
        cluster.connected(
            cluster.Local(workers=WORKERS), torch.device("cpu"), Path(scratch)
        ) as client,
    ):
        started = time.perf_counter() - begin
        on_a_worker = milliseconds_of_task(client)
        begin = time.perf_counter()
    stopped = time.perf_counter() - begin
    seconds = {
        "in this process": here,
        f"on {WORKERS} Dask workers": there,
        "starting them": started,
        "stopping them": stopped,
    }
    print("\n(a) The smoke study\n")
    print(as_markdown([{"where": name, "seconds": found} for name, found in seconds.items()]))
    table, ran = watched_study(asked.preset)
    print(f"\n(b) Where the seconds of workers go: {asked.preset}\n\n{as_markdown(table)}")
    if asked.picture:
        draw(ran, asked.preset, asked.picture)
    costs = {"in this process": milliseconds_of_task(None), "on a Dask worker": on_a_worker}
    print("\n(c) A task that does nothing\n")
    print(as_markdown([{"where": name, "ms": found} for name, found in costs.items()]))


if __name__ == "__main__":
    main()
