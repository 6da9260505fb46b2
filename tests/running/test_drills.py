"""Faults that happen to long runs: nothing corrupt is served, the next call completes the study.

What a killed process leaves behind is in `benchmarks/kill_drill.py`, of which a part runs here.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dask
import pandas as pd
import pytest
from command import options_for

from rebasin_utils.errors import InputError, RunError, StoreError
from rebasin_utils.running import costs
from rebasin_utils.running.runner import run
from rebasin_utils.study import inventory
from rebasin_utils.study.store import TENSORS
from rebasin_utils.study.study import Study

DRILL = Path(__file__).parents[2] / "benchmarks" / "kill_drill.py"


def assert_equal_to(finished: Study, study: Study) -> None:
    """The table to the last digit, every artifact to the last bit, and none damaged."""
    tables = [s.results().drop(columns="seconds") for s in (finished, study)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    for node in finished.plan.all_nodes():
        records = [s.record(node) for s in (finished, study)]
        assert records[0]["sha256"] == records[1]["sha256"]
    assert list(inventory.damaged(study.store)) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def flip(path: Path, position: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << bit
    path.write_bytes(content)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for child processes in /proc")
def test_a_process_a_worker_and_a_driver_are_killed_and_nothing_is_lost():
    command = [sys.executable, str(DRILL), "--kills", "4"]
    command += ["--set=sparse.sparsities=[0.5]", "--set=closer_look.sparsity=0.5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    assert said.startswith("4 kills (1 × driver, 2 × process, 1 × worker)")
    assert ": 0 corrupt artifacts, 0 lost runs, " in said
    assert ", 0 of their artifacts or tables unequal" in said


def test_a_full_disk_stops_the_run_with_a_sentence_and_the_next_run_goes_on(finished, small_disk):
    study = Study(finished.settings, small_disk / "store")
    with pytest.raises(StoreError, match=r"store = .* cannot be written \(No space left") as said:
        run(study, workers=1, quiet=True)
    assert "\n" not in str(said.value)
    assert list(inventory.damaged(study.store)) == []
    kept = len(list(inventory.entries(study.store)))
    assert 0 < kept < len(list(inventory.entries(finished.store)))
    remount(small_disk, "size=100m")
    assert run(study, workers=1, quiet=True) > 0
    assert_equal_to(finished, study)


def test_a_disk_that_cannot_be_written_is_said_before_work_and_can_still_be_looked_at(
    finished, small_disk
):
    remount(small_disk, "size=100m")
    shutil.copytree(finished.store.root, small_disk / "store")
    shutil.rmtree(small_disk / "store" / "sparse")
    remount(small_disk, "ro")
    study = Study(finished.settings, small_disk / "store")
    for refuse in (study.check, lambda: run(study, workers=1, quiet=True)):
        with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\)"):
            refuse()
    states = {cost.stage: cost for cost in costs.of_study(finished.settings, study.store, "cpu")}
    assert states["dense"].missing == 0
    assert states["sparse"].missing == states["sparse"].artifacts
    table = finished.results()
    pd.testing.assert_frame_equal(study.results(), table[table["rewind_epoch"].isna()])
    net = study.plan.nodes("imp")[0]
    assert study.tensors(net).keys() == finished.tensors(net).keys()
    remount(small_disk, "rw")
    run(study, workers=1, quiet=True)
    assert_equal_to(finished, study)


def test_damage_on_a_disk_that_cannot_be_written_is_said_and_mended_when_it_can(
    finished, small_disk
):
    remount(small_disk, "size=100m")
    shutil.copytree(finished.store.root, small_disk / "store")
    study = Study(finished.settings, small_disk / "store")
    node = study.plan.nodes("imp")[0]
    flip(study.store.root / node.key.path / TENSORS, -1)
    remount(small_disk, "ro")
    why = r"is damaged \(.*\) and cannot be set aside \(Read-only file system\)"
    with (
        pytest.warns(UserWarning, match=why),
        pytest.raises(InputError, match="is not computed yet"),
    ):
        study.state(node)
    assert len(study.results()) == len(finished.results())  # its record is intact
    remount(small_disk, "rw")
    with pytest.warns(UserWarning, match=r"set aside in .*, it will be computed again"):
        assert study.store.get(node.key) is None
    run(study, workers=1, quiet=True)
    assert_equal_to(finished, study)


def test_a_disk_that_turns_read_only_stops_the_run_and_the_next_run_goes_on(finished, small_disk):
    remount(small_disk, "size=100m")
    study = Study(finished.settings, small_disk / "store")

    def protect() -> None:  # once something is stored, and at a moment when no file is written
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            stored = any(study.store.root.glob("sparse/*/record.json"))
            if stored and not subprocess.run(["mount", "-o", "remount,ro", small_disk]).returncode:
                return

    thread = threading.Thread(target=protect)
    thread.start()
    with pytest.raises(StoreError, match=r"cannot be written \(Read-only file system\)"):
        run(study, quiet=True, cluster=None)
    thread.join()
    remount(small_disk, "rw")
    assert list(inventory.damaged(study.store)) == []
    assert run(study, quiet=True, cluster=None) > 0
    assert_equal_to(finished, study)


def test_a_flipped_bit_in_every_stage_is_noticed_set_aside_and_mended(finished, tmp_path):
    shutil.copytree(finished.store.root, tmp_path / "copy")
    study = Study(finished.settings, tmp_path / "copy")
    flipped = [nodes[-1] for stage in study.plan.stages if (nodes := study.nodes(stage))]
    for number, node in enumerate(flipped):
        flip(study.store.root / node.key.path / TENSORS, 7919 * number, bit=number % 8)
    assert study.missing() == []  # their records are intact
    with pytest.warns(UserWarning, match=r"is damaged .* it will be computed again") as told:
        read = [study.store.get(node.key) for node in flipped]
    assert read == [None] * len(flipped)
    assert len([w for w in told if "is damaged" in str(w.message)]) == len(flipped)
    assert run(study, workers=1, quiet=True) == len(flipped)
    assert_equal_to(finished, study)


def test_two_studies_at_once_on_one_store_are_both_complete(finished, tmp_path):
    """The same study and a larger one that contains it, from two processes."""
    options = options_for(finished.settings)
    start = [sys.executable, "-m", "rebasin_utils.cli", "run", *options]
    start += ["--cluster", "none", "--quiet", "--store", str(tmp_path)]
    runs = [subprocess.Popen([*start, *more]) for more in ([], ["--set=seeds=3"])]
    assert [process.wait(200) for process in runs] == [0, 0]
    study = Study(finished.settings, tmp_path)
    assert_equal_to(finished, study)
    assert Study(finished.settings.with_values(seeds=3), tmp_path).missing() == []
    assert inventory.leftovers(study.store) == []


GREEDY = """
import numpy, pathlib, time
from rebasin_utils.study.stages.matching import Matching

compute = vars(Matching).get("modest", Matching.compute)  # Dask runs this file twice
Matching.modest = compute

def greedy(self, run, nodes):
    attempts = pathlib.Path({attempts!r})
    if nodes[0].seed == 0:
        attempts.write_text(attempts.read_text() + "x" if attempts.is_file() else "x")
        if len(attempts.read_text()) <= {times}:
            memory = [numpy.ones(10_000_000) for _ in range(30)]  # 2.4 GB
            time.sleep(30)
    yield from compute(self, run, nodes)

Matching.compute = greedy
"""


def test_a_worker_out_of_memory_is_said_and_the_next_run_completes(finished, tmp_path, capsys):
    """The first two attempts at matching pair 0 want more memory than a worker may have.

    What waits in the same two workers goes down with it and is named too.
    """
    preload = tmp_path / "greedy.py"
    preload.write_text(GREEDY.format(attempts=str(tmp_path / "attempts"), times=2))
    description = tmp_path / "two.yaml"
    description.write_text("kind: local\nworkers: 2\nmemory: 1500MB\nallowed_failures: 1\n")
    study = Study(finished.settings, tmp_path / "store")
    refused = pytest.raises(RunError, match=r"\bmatching\b.*: 2 workers died while .* memory limit")
    with dask.config.set({"distributed.worker.preload": [str(preload)]}), refused as said:
        run(study, cluster=description)
    assert "\n" not in str(said.value)
    assert "over its memory limit; its task starts again" in capsys.readouterr().out
    states = {cost.stage: cost for cost in costs.of_study(study.settings, study.store, "cpu")}
    assert states["matching"].failed > 0
    assert states["dense"].done == states["dense"].artifacts
    assert states["imp"].done == states["imp"].artifacts  # what did not need it was computed
    run(study, workers=1, quiet=True)
    assert_equal_to(finished, study)


def test_a_clock_that_goes_backwards_changes_nothing(finished, tmp_path, monkeypatch):
    """Every look at the clock shows an hour less, in the first run and in the one after it."""
    now = itertools.count(time.time(), -3600)
    monkeypatch.setattr(time, "time", lambda: next(now))
    study = Study(finished.settings, tmp_path)
    run(study, stages=["imp"], workers=1, quiet=True)
    run(study, workers=1, quiet=True)
    monkeypatch.undo()
    assert_equal_to(finished, study)
    assert (study.results()["seconds"] >= 0).all()
