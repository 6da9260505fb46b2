"""Where things are kept: the same place from a shell, a notebook, a worker or a test."""

from __future__ import annotations

import os
from pathlib import Path


def project_root() -> Path:
    """The checkout that this package is installed from, else the working directory."""
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def default_store() -> Path:
    """`REBASIN_STORE`, else `runs/store` in the project."""
    if "REBASIN_STORE" in os.environ:
        return Path(os.environ["REBASIN_STORE"]).expanduser()
    return project_root() / "runs" / "store"
