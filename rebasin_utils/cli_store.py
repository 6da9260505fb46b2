"""The `rebasin store` commands: list, verify, prune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from rebasin_utils import inventory, presets
from rebasin_utils.cli_options import StorePath, print_columns
from rebasin_utils.errors import InputError
from rebasin_utils.paths import default_store
from rebasin_utils.store import Store

app = typer.Typer(help="What was computed: list it, verify it, prune it.", no_args_is_help=True)


@app.command("list")
def list_artifacts(
    store: StorePath = None,
    all: Annotated[bool, typer.Option("--all", help="Every artifact, not sums.")] = False,
) -> None:
    """List what the store holds: artifacts, size, time they took, by study and stage."""
    opened = _existing(store)
    table = pd.DataFrame([vars(entry) for entry in inventory.entries(opened)])
    if table.empty:
        typer.echo(f"{opened.root}: no artifacts")
        return
    if not all:
        by_stage = table.groupby(["study", "stage"], sort=False)
        table = by_stage.agg(
            artifacts=("path", "size"),
            megabytes=("megabytes", "sum"),
            seconds=("seconds", "sum"),
            made=("made", "max"),
        ).reset_index()
    print_columns(table.round({"megabytes": 1, "seconds": 1}))


@app.command()
def verify(store: StorePath = None) -> None:
    """Check the checksums of everything. Changes nothing; exit code 1 when something is damaged."""
    opened = _existing(store)
    count = sum(1 for _ in inventory.entries(opened))
    found = list(inventory.damaged(opened))
    for path, why in found:
        typer.echo(f"damaged: {path}: {why}")
    told = "; the next run sets them aside and computes them again" if found else ""
    typer.echo(f"{count} artifacts checked, {len(found)} damaged{told}")
    if found:
        raise SystemExit(1)


@app.command()
def prune(
    store: StorePath = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Delete what is part of none of these presets, too; repeatable."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete what killed and mended runs left behind, after saying what, and asking."""
    opened = _existing(store)
    chosen = [settings for name in keep or [] for settings in presets.preset(name)]
    paths = inventory.leftovers(opened)
    if chosen:
        paths += inventory.unneeded(opened, chosen)
    for path in paths:
        typer.echo(f"{inventory.megabytes(path):8.1f} MB  {path.relative_to(opened.root)}")
    if not paths:
        typer.echo("nothing to delete")
        return
    size = sum(map(inventory.megabytes, paths))
    question = f"delete these {len(paths)} ({size:.1f} MB) for good?"
    if not (yes or typer.confirm(question, default=False)):
        typer.echo("nothing was deleted")
        return
    inventory.remove(opened, paths)
    typer.echo(f"{len(paths)} deleted, {size:.1f} MB")


def _existing(store: Path | None) -> Store:
    opened = Store(store or default_store(), read_only=True)
    if not opened.root.is_dir():
        raise InputError(f"store = {opened.root}: there is no such folder")
    return opened
