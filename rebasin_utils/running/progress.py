"""How far a grid of runs is: one bar where somebody watches, a line now and then in a log."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TextIO

import psutil
from IPython import get_ipython
from tqdm.auto import tqdm
from tqdm.std import tqdm as plain_tqdm

#: Programs that execute notebooks with nobody before the screen (nbval is a plugin of pytest).
_UNWATCHED = {"papermill", "nbconvert", "jupyter-nbconvert", "jupyter-execute", "pytest"}


class Progress:
    """Runs and epochs done of a grid, images per second, and the time that is left.

    In a terminal and in a notebook it is tqdm's bar. Where nobody watches (output into a file, a
    notebook run by papermill, nbconvert or nbval) it is a whole line every `every` seconds and one
    at the end, because a log keeps every redrawing of a bar.

    Args:
        runs, epochs, images: totals of the grid; an epoch counts as its share of the images.
        quiet: show nothing.
    """

    def __init__(
        self, runs: int, epochs: int, images: int, quiet: bool = False, every: float = 30.0
    ):
        self.runs, self.epochs, self.every = runs, epochs, every
        self._images_per_epoch = images / max(epochs, 1)
        self._runs_done = self._epochs_done = 0
        self._stage = ""
        self._begin = self._said = time.monotonic()
        self._log = None if quiet else _log()
        hidden = quiet or self._log is not None
        self._bar = tqdm(
            total=epochs, unit=" epochs", disable=hidden, smoothing=0.1, mininterval=0.3
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error) -> None:
        if self._log is not None:
            self._say()
        self._bar.close()

    def stage(self, name: str) -> None:
        """What is worked at now."""
        self._bar.set_description(name, refresh=name != self._stage)
        self._stage = name

    def update(self, epochs: int, runs: int = 0) -> None:
        """So many more epochs, and whole runs, are done."""
        self._epochs_done += epochs
        self._runs_done += runs
        self._bar.set_postfix_str(f"{self._runs()}, {self._speed()}", refresh=False)
        self._bar.update(epochs)
        if self._log is not None and time.monotonic() - self._said >= self.every:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        seconds = self._said - self._begin
        share = self._epochs_done / max(self.epochs, 1)
        left = plain_tqdm.format_interval(seconds * (1 / share - 1)) if share else "?"
        stage = f"{self._stage}: " if self._stage else ""
        done = f"{self._epochs_done:,} of {self.epochs:,} epochs ({share:.0%})"
        line = f"{stage}{self._runs()}, {done}, {self._speed()}, {left} left"
        print(line, file=self._log, flush=True)

    def _runs(self) -> str:
        return f"{self._runs_done:,} of {self.runs:,} runs"

    def _speed(self) -> str:
        seconds = max(time.monotonic() - self._begin, 1e-9)
        return f"{self._epochs_done * self._images_per_epoch / seconds:,.0f} images/s"


def _log() -> TextIO | None:
    """Where lines go when nobody watches; None when somebody may."""
    shell = get_ipython()
    if shell is not None and "IPKernelApp" in shell.config:
        # A kernel knows the process that started it: a Jupyter server, or papermill.
        try:
            launcher = psutil.Process(int(os.environ["JPY_PARENT_PID"])).cmdline()
        except (KeyError, ValueError, psutil.Error):
            return None
        return sys.stdout if _UNWATCHED & {Path(part).name for part in launcher} else None
    return None if sys.stderr.isatty() else sys.stderr
