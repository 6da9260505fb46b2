"""Tasks run after what they depend on, here and on Dask; a failure takes only what needs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from distributed import Client

from rebasin_utils.errors import InputError, RunError, StoreError
from rebasin_utils.running import cluster, dag
from rebasin_utils.running.dag import Noticed, Outcome, Reported, Task, execute

LOCAL = cluster.Local(workers=2, allowed_failures=1)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with cluster.connected(LOCAL, CPU, tmp_path_factory.mktemp("scratch")) as client:
        yield client


@pytest.fixture(params=["here", "there"])
def client(request: pytest.FixtureRequest) -> Client | None:
    return None if request.param == "here" else request.getfixturevalue("dask")


def ignore(event) -> None:
    pass


def write(path: Path, text: str, *needed) -> str:
    """Write a file, once all that are needed are there; `report` comes last."""
    *files, report = needed
    assert all(file.is_file() for file in files)
    report(1)
    path.write_text(text)
    return text


def fail(kind: type[Exception], sentence: str, report) -> None:
    raise kind(sentence)


def die(marker: Path, times: int, report) -> int:
    """Kill the process that this runs in, the first few times."""
    attempts = int(marker.read_text()) if marker.is_file() else 0
    marker.write_text(str(attempts + 1))
    if attempts < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return attempts


def warn(sentence: str, report) -> None:
    warnings.warn(sentence, stacklevel=1)


def sleep(seconds: float, report) -> None:
    time.sleep(seconds)


def by_name(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.task: outcome for outcome in outcomes}


def test_a_task_runs_after_those_that_it_needs(client, tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    tasks = [
        Task("x-c", write, (c, "c", a, b), after=("x-a", "x-b")),
        Task("x-b", write, (b, "b", a), after=("x-a",)),
        Task("x-a", write, (a, "a")),
    ]
    outcomes = execute(tasks, client, ignore)
    assert {o.task: (o.state, o.result) for o in outcomes} == {
        f"x-{name}": ("done", name) for name in "abc"
    }


def test_everything_that_is_reported_is_told(client, tmp_path):
    told = []
    tasks = [Task(f"x-{i}", write, (tmp_path / str(i), "")) for i in range(20)]
    outcomes = execute(tasks, client, told.append)
    assert [event for event in told if isinstance(event, Outcome)] == outcomes
    if client is None:  # on a cluster the last reports may be late: an outcome stands for them
        assert {e for e in told if isinstance(e, Reported)} == {
            Reported(task.name, 1) for task in tasks
        }


@pytest.mark.parametrize(
    ("raised", "kind", "why"),
    [(InputError, InputError, "no"), (KeyError, RunError, "KeyError: 'no'")],
)
def test_a_failure_takes_with_it_what_needs_it_and_nothing_else(
    client, tmp_path, raised, kind, why
):
    tasks = [
        Task("x-bad", fail, (raised, "no")),
        Task("x-after", write, (tmp_path / "after", ""), after=("x-bad",)),
        Task("x-later", write, (tmp_path / "later", ""), after=("x-after",)),
        Task("x-good", write, (tmp_path / "good", "")),
    ]
    ended = by_name(execute(tasks, client, ignore))
    assert {name: o.state for name, o in ended.items()} == {
        "x-bad": "failed", "x-after": "skipped", "x-later": "skipped", "x-good": "done",
    }  # fmt: skip
    assert (ended["x-bad"].kind, ended["x-bad"].why) == (kind, why)
    assert "in fail" in ended["x-bad"].traceback
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_without_a_store_nothing_more_is_begun(tmp_path):
    tasks = [
        Task("x-0", fail, (StoreError, "the disk is full")),
        Task("x-1", write, (tmp_path / "file", "")),
    ]
    with pytest.raises(StoreError, match="the disk is full"):
        execute(tasks, None, ignore)
    assert not (tmp_path / "file").exists()


def test_on_a_cluster_too_the_run_stops_without_a_store(dask, tmp_path):
    waiting = [Task(f"x-{i}", sleep, (0.2,), after=("x-bad",)) for i in range(5)]
    with pytest.raises(StoreError, match="the disk is full"):
        execute([Task("x-bad", fail, (StoreError, "the disk is full")), *waiting], dask, ignore)


def test_a_task_whose_worker_is_killed_starts_again_and_somebody_is_told(dask, tmp_path):
    told = []
    tasks = [Task("x-mortal", die, (tmp_path / "attempts", 1))]
    (outcome,) = execute(tasks, dask, told.append)
    assert (outcome.state, outcome.result) == ("done", 1)
    (notice,) = [event for event in told if isinstance(event, Noticed)]
    assert "died" in notice.sentence
    assert "\n" not in notice.sentence


def test_what_a_worker_warns_of_is_told_here(dask):
    told = []
    execute([Task("x-warn", warn, ("it is damaged",))], dask, told.append)
    assert Noticed("it is damaged") in told


def test_a_task_that_kills_every_worker_fails_alone(dask, tmp_path):
    tasks = [
        Task("x-deadly", die, (tmp_path / "attempts", 99)),
        Task("x-after", write, (tmp_path / "after", ""), after=("x-deadly",)),
        Task("x-good", write, (tmp_path / "good", "")),
    ]
    ended = by_name(execute(tasks, dask, ignore))
    assert {name: o.state for name, o in ended.items()} == {
        "x-deadly": "failed", "x-after": "skipped", "x-good": "done",
    }  # fmt: skip
    assert ended["x-deadly"].why.startswith("2 workers died while they had it")


def test_two_runs_on_one_scheduler_do_not_take_each_others_tasks(dask, tmp_path):
    results = {}

    def one(name: str) -> None:
        tasks = [Task("x-same", write, (tmp_path / name, name))]
        results[name] = execute(tasks, dask, ignore)[0].result

    threads = [threading.Thread(target=one, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {"first": "first", "second": "second"}


def test_a_scheduler_that_is_killed_ends_the_run_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(dag, "SCHEDULER_PATIENCE", 1)
    monkeypatch.setattr(cluster, "PATIENCE", 10)
    file = tmp_path / "scheduler.json"
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file]
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *options]
    scheduler = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not file.is_file() and time.monotonic() < end:
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        with cluster.connected(address, CPU, tmp_path) as client:
            threading.Timer(1, scheduler.kill).start()  # nobody works there: the task waits
            with pytest.raises(RunError, match=r"scheduler is gone; all that was finished is"):
                execute([Task("x-long", sleep, (20,))], client, ignore)
    finally:
        scheduler.kill()
        scheduler.wait()


def test_what_begins_the_longest_chain_comes_first():
    tasks = [
        Task("dense-a", sleep, cost=10),
        Task("dense-b", sleep, cost=12),
        Task("imp-a", sleep, after=("dense-a",), cost=5),
        Task("sparse", sleep, after=("imp-a", "dense-b"), cost=100),
    ]
    assert dag._longest_first(tasks) == {
        "sparse": 100, "imp-a": 105, "dense-a": 115, "dense-b": 112,
    }  # fmt: skip
