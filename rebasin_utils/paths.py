"""Where things are kept: the same place from a shell, a notebook, a worker or a test."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def project_root() -> Path:
    """The checkout that this package is installed from; else where the notebooks were copied to.

    That is the working directory or the nearest folder above it that has them below `notebooks`;
    where none has, the working directory.
    """
    here = Path.cwd()
    places = (_PACKAGE.parent, here, *here.parents)
    return next((place for place in places if _notebooks(place / "notebooks")), here)


def original_notebooks() -> list[Path]:
    """The checkout's notebooks in their order, else those that come with the package."""
    return _notebooks(_PACKAGE.parent / "notebooks") or _notebooks(_PACKAGE / "notebooks")


def project_notebooks() -> list[Path]:
    """Those of the project, which may be copies; without any, the original ones."""
    return _notebooks(project_root() / "notebooks") or original_notebooks()


def is_packaged(notebook: Path) -> bool:
    """Whether this notebook came with the package, and so is not the user's to change."""
    return notebook.parent == _PACKAGE / "notebooks"


def default_store() -> Path:
    """`REBASIN_STORE`, else `runs/store` in the project."""
    return named("REBASIN_STORE") or project_root() / "runs" / "store"


def named(variable: str) -> Path | None:
    """The folder that a variable of the environment names; an empty one names none."""
    folder = os.environ.get(variable)
    return Path(folder).expanduser() if folder else None


def _notebooks(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9][0-9]-*.ipynb"))
