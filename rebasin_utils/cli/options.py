"""What the commands share: options, and how a value is written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rebasin_utils.errors import InputError
from rebasin_utils.paths import default_store, named

if TYPE_CHECKING:
    import pandas as pd

    from rebasin_utils.study.store import Store

StorePath = Annotated[
    Path | None, typer.Option(help="Folder of the results. [default: $REBASIN_STORE or runs/store]")
]
Preset = Annotated[str, typer.Option(help="Named study; see `rebasin presets`.")]
Set = Annotated[
    list[str] | None,
    typer.Option(help="Change a setting, e.g. --set seeds=5 --set dense.lr=0.1", metavar="F=V"),
]
Cluster = Annotated[
    str,
    typer.Option(
        help="Where: local (worker processes), none (this process), a YAML file for local workers "
        "or Slurm, or the address of a Dask scheduler."
    ),
]


def place(cluster: str) -> str | None:
    """The runner's word for what `--cluster` says."""
    return None if cluster == "none" else cluster


def existing(store: Path | None) -> Store:
    """A store to be read. One that is named must be there; the default one may be empty yet.

    Raises:
        InputError: when there is no such folder.
    """
    from rebasin_utils.study.store import Store

    opened = Store(store or default_store())
    if (store or named("REBASIN_STORE")) and not opened.root.is_dir():
        raise InputError(f"store = {opened.root}: there is no such folder")
    return opened


def print_columns(table: pd.DataFrame) -> None:
    """Print a table whole, without its index."""
    import pandas as pd

    with pd.option_context("display.max_colwidth", None):
        typer.echo(table.to_string(index=False, na_rep=""))
