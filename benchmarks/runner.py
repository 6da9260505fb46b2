"""What the runner costs: the smoke study here and on Dask workers, and the price of a task.

    python benchmarks/runner.py [--preset smoke]      about a minute on two cores

The first table is the wall time of a whole study in an empty store. Workers cost seconds to start,
each imports torch; that is what a study must be longer than to gain by them. The second is the time
of a task that does nothing, from submission to outcome.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from pathlib import Path

import distributed
import torch

from rebasin_utils.running import cluster
from rebasin_utils.running.dag import Report, Task, execute
from rebasin_utils.running.runner import run
from rebasin_utils.study import presets
from rebasin_utils.study.study import Study

TASKS = 1000


def nothing(report: Report) -> None:
    pass


def seconds_of_study(preset: str, workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        studies = [Study(settings, folder) for settings in presets.preset(preset)]
        begin = time.perf_counter()
        run(studies, workers=workers, quiet=True)
        return time.perf_counter() - begin


def milliseconds_of_task(client: distributed.Client | None) -> float:
    tasks = [Task(f"nothing-{i}", nothing) for i in range(TASKS)]
    begin = time.perf_counter()
    execute(tasks, client, lambda event: None)
    return (time.perf_counter() - begin) / TASKS * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="smoke")
    options = parser.parse_args()
    print(
        f"{len(os.sched_getaffinity(0))} cores of {platform.machine()}, Python "
        f"{platform.python_version()}, torch {torch.__version__}, distributed "
        f"{distributed.__version__}\n"
    )
    print(f"| the {options.preset} study | seconds |\n|---|---|")
    for workers, name in ((1, "in this process"), (2, "two Dask workers")):
        print(f"| {name} | {seconds_of_study(options.preset, workers):.1f} |", flush=True)
    begin = time.perf_counter()
    where = cluster.Local(workers=2)
    with (
        tempfile.TemporaryDirectory() as scratch,
        cluster.connected(where, torch.device("cpu"), Path(scratch)) as client,
    ):
        started = time.perf_counter() - begin
        there = milliseconds_of_task(client)
        begin = time.perf_counter()
    stopped = time.perf_counter() - begin
    print(f"| of which starting, and stopping, the workers | {started:.1f}, {stopped:.1f} |\n")
    print("| a task that does nothing | ms |\n|---|---|")
    print(f"| in this process | {milliseconds_of_task(None):.3f} |")
    print(f"| on a Dask worker | {there:.2f} |")


if __name__ == "__main__":
    main()
