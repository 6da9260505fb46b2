"""Running a study in several processes, and being killed while at it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rebasin_utils.presets import preset
from rebasin_utils.runner import run
from rebasin_utils.study import Study

PROC = Path("/proc")
needs_proc = pytest.mark.skipif(not PROC.is_dir(), reason="looks for child processes in /proc")


def start(store: Path, name: str) -> subprocess.Popen:
    command = ["-c", "from rebasin_utils.cli import main; main()", "run", "--preset", name]
    options = ["--workers", "2", "--quiet", "--store", str(store)]
    return subprocess.Popen([sys.executable, *command, *options], stdout=subprocess.DEVNULL)


def children(parent: int) -> list[int]:
    found = []
    for folder in PROC.iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def wait_for(condition, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@needs_proc
def test_workers_end_when_the_run_that_started_them_is_killed(tmp_path: Path):
    driver = start(tmp_path, "pocket")
    assert wait_for(lambda: (tmp_path / ".locks").is_dir())  # they are at work
    workers = children(driver.pid)
    assert len(workers) >= 2
    driver.kill()
    driver.wait()
    assert wait_for(lambda: not any((PROC / str(pid)).is_dir() for pid in workers), 30)


def test_a_killed_study_ends_in_the_same_table_when_it_is_run_again(tmp_path: Path):
    (smoke,) = preset("smoke")
    whole = Study(smoke, tmp_path / "whole")
    run(whole, workers=1, quiet=True)

    driver = start(tmp_path / "killed", "smoke")
    assert wait_for(lambda: any((tmp_path / "killed").glob("imp/*")))
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    again = Study(smoke, tmp_path / "killed")
    assert run(again, workers=1, quiet=True) > 0
    assert again.results().drop(columns="seconds").equals(whole.results().drop(columns="seconds"))
