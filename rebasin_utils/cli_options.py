"""What the commands share: options, and how a value is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

StorePath = Annotated[
    Path | None, typer.Option(help="Folder of the results. [default: $REBASIN_STORE or runs/store]")
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


def parsed(text: str) -> Any:
    """JSON where it can be, or Python's own True, False, None; else the text."""
    text = {"True": "true", "False": "false", "None": "null"}.get(text, text)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def print_columns(table: pd.DataFrame) -> None:
    """Print a table whole, without its index."""
    with pd.option_context("display.max_colwidth", None):
        typer.echo(table.to_string(index=False, na_rep=""))
