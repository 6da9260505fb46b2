"""Kill a study at random moments, many times over, and count what is lost. Nothing may be.

    python benchmarks/kill_drill.py --kills 50 [--seed 0] [--set SETTING=VALUE …]

Three kinds of victims take turns: a run in one process; one of two Dask workers, after which the
run must go on to its end; a driver, after which its two workers must end. After every kill, what
was finished before must still be there and everything that is there must be sound. A run that is
let live must complete the study, with the artifacts and the table of an undisturbed one; then it
begins anew. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from rebasin_utils.running.runner import run
from rebasin_utils.study import inventory
from rebasin_utils.study.presets import changed
from rebasin_utils.study.settings import Settings, assignments
from rebasin_utils.study.store import Store
from rebasin_utils.study.study import Study

#: Workers need seconds to start, so there are fewer of them.
VICTIMS = ("process", "worker", "process", "driver", "process", "driver", "process")


def forked(work: Callable[[], object]) -> int:
    """Do `work` in a child process; returns its id. Nothing is imported again."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    os.setpgid(0, 0)
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG)[0] == pid


def workers_of(driver: int) -> list[int]:
    """The ids of a driver's Dask workers."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
                command = (folder / "cmdline").read_text()
            except OSError:
                continue
            if int(fields[1]) == driver and fields[0] != "Z" and "spawn_main" in command:
                found.append(int(folder.name))
    return found


def alive(pid: int) -> bool:
    """A process that has ended and that nobody has asked about, as in some containers, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def stored(settings: Settings, root: Path) -> dict[str, dict]:
    """What is finished: the records of the study's artifacts, with the tensors' checksums."""
    study = Study(settings, root)
    found = {node.key.path: study.store.record(node.key) for node in study.plan.all_nodes()}
    return {path: record for path, record in found.items() if record is not None}


class Drill:
    """Kills, and what came of them."""

    def __init__(self, settings: Settings, folder: Path, generator: random.Random):
        self.settings, self.folder, self.random = settings, folder, generator
        self.kills: Counter[str] = Counter()
        self.corrupt = self.lost = self.finished = self.unequal = 0
        self.config = folder / "two.yaml"
        self.config.write_text("kind: local\nworkers: 2\nallowed_failures: 100\n")
        self.expected = self._undisturbed()

    def _study(self, root: Path, cluster: str | None) -> int:
        def work() -> None:
            torch.set_num_threads(1)
            os.dup2(os.open(self.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
            run(Study(self.settings, root), cluster=cluster, quiet=True)

        return forked(work)

    def _log(self) -> str:
        return (self.folder / "log").read_text()[-5000:]

    def _undisturbed(self) -> dict[str, dict]:
        pid = self._study(self.folder / "undisturbed", None)
        assert os.waitpid(pid, 0)[1] == 0
        return stored(self.settings, self.folder / "undisturbed")

    def go(self, kills: int) -> None:
        """Kill that many times, over as many studies as it takes."""
        root = self.folder / "killed"
        while sum(self.kills.values()) < kills:
            if self._kill_one(root):
                self._compare(root)
                shutil.rmtree(root)
        if os.waitpid(self._study(root, None), 0)[1]:
            raise SystemExit("the next call did not complete the study:\n" + self._log())
        self._compare(root)

    def _kill_one(self, root: Path) -> bool:
        """One run that is killed at a random moment; True if it came to its end all the same."""
        victim = VICTIMS[sum(self.kills.values()) % len(VICTIMS)]
        before = stored(self.settings, root)
        pid = self._study(root, None if victim == "process" else str(self.config))
        moment = time.monotonic() + self.random.uniform(0.1, 3.0 if victim == "process" else 9.0)
        while time.monotonic() < moment or (victim == "worker" and not workers_of(pid)):
            if ended(pid):
                return True
            time.sleep(0.02)
        workers = workers_of(pid)
        os.kill(self.random.choice(workers) if victim == "worker" else pid, signal.SIGKILL)
        self.kills[victim] += 1
        status = os.waitpid(pid, 0)[1]
        if victim == "worker" and status:
            raise SystemExit("a run did not outlive its worker:\n" + self._log())
        self._wait_for_the_end_of(workers)
        now = stored(self.settings, root)
        self.lost += sum(now.get(path) != record for path, record in before.items())
        self.corrupt += len(list(inventory.damaged(Store(root))))
        print(self, flush=True)
        return victim == "worker"

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} × {kind}" for kind, count in sorted(self.kills.items()))
        return (
            f"{sum(self.kills.values())} kills ({kinds}): {self.corrupt} corrupt artifacts, "
            f"{self.lost} lost runs, {self.finished} studies completed by the next call, "
            f"{self.unequal} of their artifacts or tables unequal to the undisturbed ones"
        )

    def _wait_for_the_end_of(self, workers: list[int]) -> None:
        end = time.monotonic() + 30
        while any(map(alive, workers)):
            assert time.monotonic() < end, "workers outlive their driver"
            time.sleep(0.05)

    def _compare(self, root: Path) -> None:
        self.finished += 1
        now = stored(self.settings, root)
        assert now.keys() == self.expected.keys()
        for path, record in self.expected.items():
            same = [now[path].get(field) == record.get(field) for field in ("sha256", "metrics")]
            self.unequal += not all(same)
        tables = [
            Study(self.settings, where).results().drop(columns="seconds")
            for where in (root, self.folder / "undisturbed")
        ]
        self.unequal += not tables[0].equals(tables[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="of the preset smoke")
    options = parser.parse_args()
    (settings,) = changed("smoke", assignments(options.set))
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        drill = Drill(settings, Path(folder), random.Random(options.seed))
        drill.go(options.kills)
    print(f"{drill}; {time.monotonic() - begin:.0f} s")
    sys.exit(bool(drill.corrupt or drill.lost or drill.unequal))


if __name__ == "__main__":
    main()
