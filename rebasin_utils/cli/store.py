"""The `rebasin store` commands: list, verify, prune; export, import, compare."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from rebasin_utils.cli.options import Preset, Set, StorePath, existing, print_columns
from rebasin_utils.errors import InputError
from rebasin_utils.paths import default_store

app = typer.Typer(
    help="What was computed: list it, verify it, prune it; export it, import it, compare it.",
    no_args_is_help=True,
)


@app.command("list")
def list_artifacts(
    store: StorePath = None,
    all: Annotated[bool, typer.Option("--all", help="Every artifact, not sums.")] = False,
) -> None:
    """List what the store holds: artifacts, size, time they took, by study and stage."""
    import pandas as pd

    from rebasin_utils.study import inventory

    opened = existing(store)
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
    from rebasin_utils.study import inventory

    opened = existing(store)
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
    from rebasin_utils.study import inventory, presets

    opened = existing(store)
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


@app.command("export")
def export_records(
    preset: Preset,
    store: StorePath = None,
    set: Set = None,
    to: Annotated[
        Path | None, typer.Option(help="File to write. [default: the package's own shelf]")
    ] = None,
) -> None:
    """Write the records of a preset, without tensors, as one file that can be read anywhere.

    A file that is there is added to: several machines can each export their pairs.
    """
    from rebasin_utils.study import inventory, presets, shelf
    from rebasin_utils.study.settings import assignments

    changes = set or []
    chosen = presets.changed(preset, assignments(changes))
    words = ["rebasin", "run", "--preset", preset]
    words += [word for change in changes for word in ("--set", change)]
    path = to or shelf.FOLDER / f"{preset}.json.gz"
    done = shelf.export(existing(store), preset, chosen, path, shlex.join(words))
    size = inventory.megabytes(done.path)
    lacking = f"; {done.lacking} of the preset's are not computed yet" if done.lacking else ""
    typer.echo(f"{done.path}: {done.held} records, {size:.2f} MB{lacking}")


@app.command("import")
def import_artifacts(
    other: Annotated[Path, typer.Argument(help="Folder of the other store.")],
    store: StorePath = None,
) -> None:
    """Copy what another store has and this one lacks, tensors and all; nothing is overwritten."""
    from rebasin_utils.study import exchange
    from rebasin_utils.study.store import Store

    source = Store(other)
    if not source.root.is_dir():
        raise InputError(f"other = {source.root}: there is no such folder")
    target, copied, left_out = Store(store or default_store()), 0, 0
    for path, why in exchange.take_over(target, source):
        copied += not why
        left_out += bool(why)
        if why:
            typer.echo(f"left out, damaged: {path}: {why}")
    told = f", {left_out} left out" if left_out else ""
    typer.echo(f"{target.root}: {copied} artifacts copied{told}")


@app.command()
def compare(
    preset: Preset,
    other: Annotated[
        Path | None, typer.Option(help="Folder of the other store. [default: what ships]")
    ] = None,
    store: StorePath = None,
    set: Set = None,
) -> None:
    """Hold a store against another one, or against what ships: test accuracies, net by net."""
    from rebasin_utils.study import exchange, presets, shelf
    from rebasin_utils.study.settings import assignments

    chosen = presets.changed(preset, assignments(set or []))
    with_what = shelf.package_shelf().record if other is None else existing(other).record
    table = exchange.compared(chosen, with_what, existing(store).record)
    if table.empty:
        typer.echo(f"no nets of {preset} are in both")
        return
    names = {"mean": "mean, pp", "mean_absolute": "mean absolute", "largest": "largest"}
    print_columns(table.round(2).rename(columns=names))
    mean = (table["mean_absolute"] * table["nets"]).sum() / table["nets"].sum()
    verdict = "within" if mean <= exchange.TOLERANCE else "beyond"
    typer.echo(
        f"mean absolute difference {mean:.2f} pp a net: {verdict} the {exchange.TOLERANCE} pp to "
        "which two machines agree"
    )
