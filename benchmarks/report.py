"""How the benchmarks print: markdown tables, and the machine they ran on."""

from __future__ import annotations

import os
import platform
import sys
from argparse import ArgumentTypeError
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rebasin_utils.errors import InputError
from rebasin_utils.nets.devices import KEEP_MEMORY, cores, torch_device

Row = dict[str, Any]
Table = list[Row]


def as_markdown(table: Table) -> str:
    def cell(value: object) -> str:
        if isinstance(value, float | np.floating):
            return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.5g}"
        return str(value)

    rows = [list(table[0]), ["---"] * len(table[0])]
    rows += [[cell(value) for value in row.values()] for row in table]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine() -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    versions = {name: version(name) for name in ("torch", "torchvision", "numpy", "scipy")}
    return {
        "cpu": cpu,
        "cores": str(cores()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **versions,
        "date": date.today().isoformat(),
    }


def device_argument(name: str) -> torch.device:
    """For argparse: the device called `name`, or one sentence that it is not here."""
    try:
        return torch_device(name)
    except InputError as error:
        raise ArgumentTypeError(str(error)) from error


def keep_memory() -> None:
    """Begin anew as a process that keeps the memory it frees, as the workers of a study do."""
    if not os.environ.items() >= KEEP_MEMORY.items():  # it is read as a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
