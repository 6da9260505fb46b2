"""The `rebasin` command: run a study, print its results, execute its notebooks."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from rebasin_utils import (
    batch,
    cli_notebooks,
    cli_store,
    costs,
    gallery,
    notebooks,
    presets,
    runner,
    tables,
    verdicts,
)
from rebasin_utils.cli_options import Cluster, StorePath, parsed, place, print_columns
from rebasin_utils.devices import device_name, torch_device
from rebasin_utils.errors import InputError, RunError
from rebasin_utils.paths import default_store, project_root
from rebasin_utils.settings import Settings
from rebasin_utils.store import Store, replace_synced
from rebasin_utils.study import Study

app = typer.Typer(
    help="Why does a lottery-ticket mask not work for another random initialisation, and can it be "
    "made to? Run the study, print its tables, execute its notebooks.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(cli_notebooks.app, name="notebooks", rich_help_panel=None)
app.add_typer(cli_store.app, name="store", rich_help_panel=None)


class Format(StrEnum):
    table = "table"
    csv = "csv"
    parquet = "parquet"


Preset = Annotated[str, typer.Option(help="Named study; see `rebasin presets`.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Worker processes. [default: $REBASIN_WORKERS, or one per core, or per GPU]"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]
Set = Annotated[
    list[str] | None,
    typer.Option(help="Change a setting, e.g. --set seeds=5 --set dense.lr=0.1", metavar="F=V"),
]


@app.command("presets")
def list_presets() -> None:
    """List the named studies and what they are for."""
    for name, studies in presets.PRESETS.items():
        models = ", ".join(f"{s.model}×{s.width} on {s.dataset}" for s in studies[:2])
        more = f" and {len(studies) - 2} more" if len(studies) > 2 else ""
        typer.echo(f"{name:44} {presets.PURPOSE.get(name, models + more)}")


@app.command()
def run(
    preset: Preset = "pocket",
    workers: Workers = None,
    cluster: Cluster = "local",
    store: StorePath = None,
    device: Device = "auto",
    set: Set = None,
    quiet: Annotated[bool, typer.Option(help="No progress bar.")] = False,
) -> None:
    """Compute what the store lacks of a study, and write its table."""
    studies = _studies(preset, store, device, set)
    begin = time.monotonic()
    made = runner.run(studies, workers=workers, quiet=quiet, cluster=place(cluster))
    table = _write_results(studies, preset)
    typer.echo(f"{made} artifacts computed in {time.monotonic() - begin:.0f} s; table: {table}")


@app.command()
def plan(
    preset: Preset = "pocket", store: StorePath = None, device: Device = "auto", set: Set = None
) -> None:
    """Print what a study costs, without running it: artifacts, epochs, estimated time."""
    for settings, stages in _costs(preset, store, device, set):
        rows = [
            (
                c.stage,
                f"{c.artifacts:,}",
                f"{c.epochs:,}",
                f"{c.epochs_left:,}",
                _duration(c.seconds_left),
            )
            for c in stages
        ]
        _print_study(settings)
        head = ["stage", "artifacts", "epochs", "epochs left", "time left"]
        print_columns(pd.DataFrame(rows, columns=head))
        _print_total(stages)


@app.command()
def status(
    preset: Preset = "pocket", store: StorePath = None, device: Device = "auto", set: Set = None
) -> None:
    """Print what of a study is done, running, failed, missing; what it took and what remains.

    Only looks at the store; a study that is running is not disturbed.
    """
    for settings, stages in _costs(preset, store, device, set):
        rows = [
            (
                c.stage,
                c.done,
                c.running,
                c.failed,
                c.missing,
                _duration(c.seconds),
                f"{c.epochs_left:,}",
                _duration(c.seconds_left),
            )
            for c in stages
        ]
        _print_study(settings)
        states = ["done", "running", "failed", "missing"]
        head = ["stage", *states, "took", "epochs left", "time left"]
        print_columns(pd.DataFrame(rows, columns=head))
        _print_total(stages)
        for line in costs.failures(settings, _looked_at(store)):
            typer.echo(f"failed: {line}")


@app.command()
def results(
    preset: Preset = "pocket",
    store: StorePath = None,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
    set: Set = None,
) -> None:
    """Print the tidy table: one row per trained net that the store holds."""
    table = runner.results(_studies(preset, store, "cpu", set))
    if format is Format.csv:
        typer.echo(table.to_csv(index=False), nl=False)
    elif format is Format.parquet:
        sys.stdout.buffer.write(table.to_parquet(index=False))
    else:
        typer.echo(table.drop(columns="artifact").to_string(index=False))


@app.command()
def verdict(preset: Preset = "pocket", store: StorePath = None, set: Set = None) -> None:
    """Hold the results against the paper's claims."""
    _print_verdicts(_studies(preset, store, "auto", set))


@app.command()
def study(
    preset: Preset = "pocket",
    workers: Workers = None,
    cluster: Cluster = "local",
    store: StorePath = None,
    device: Device = "auto",
    folder: Annotated[
        Path | None, typer.Option(help="For notebooks and table. [default: runs/PRESET]")
    ] = None,
    figures_folder: Annotated[
        Path | None, typer.Option("--figures", help="For the figures. [default: figures]")
    ] = None,
) -> None:
    """The whole argument: run the study, execute the notebooks, draw the figures, give verdicts."""
    studies = _studies(preset, store, device, None)
    folder = folder or project_root() / "runs" / preset
    begin = time.monotonic()
    made = runner.run(studies, workers=workers, cluster=place(cluster))
    typer.echo(f"study: {made} artifacts computed in {time.monotonic() - begin:.0f} s")
    table = _write_results(studies, preset, folder)
    begin = time.monotonic()
    values = {"preset": preset, "store": str(studies[0].store.root), "device": device}
    with ThreadPoolExecutor(1) as beside:
        figures_folder = figures_folder or project_root() / "figures"
        drawn = beside.submit(gallery.draw_all, studies, figures_folder)
        done = batch.run_batch(batch.executions(notebooks.find([]), values), folder)
    batch.refuse_failures(done, folder)
    drawn.result()
    executed = (done["state"] == "executed").sum()
    typer.echo(f"notebooks: {executed} executed, figures drawn in {time.monotonic() - begin:.0f} s")
    _print_verdicts(studies)
    typer.echo(f"\ntable: {table}\npages: {folder / 'index.html'}")


def main() -> None:
    """Entry point: whatever goes wrong is one sentence; the user's own mistakes are exit code 2."""
    try:
        app()
    except InputError as error:
        _stop(str(error), 2)
    except (RunError, OSError) as error:
        _stop(str(error), 1)


def _stop(sentence: str, code: int) -> None:
    typer.echo(f"rebasin: {' '.join(sentence.split())}", err=True)
    raise SystemExit(code) from None


def _studies(
    preset: str, store: Path | None, device: str, changes: list[str] | None
) -> list[Study]:
    values = _assignments(changes)
    chosen = [settings.with_values(**values) for settings in presets.preset(preset)]
    return [Study(settings, store or default_store(), device) for settings in chosen]


def _looked_at(store: Path | None) -> Store:
    return Store(store or default_store(), read_only=True)


def _costs(
    preset: str, store: Path | None, device: str, changes: list[str] | None
) -> list[tuple[Settings, list[costs.StageCost]]]:
    values, name = _assignments(changes), device_name(torch_device(device))
    chosen = [settings.with_values(**values) for settings in presets.preset(preset)]
    return [(s, costs.of_study(s, _looked_at(store), name)) for s in chosen]


def _print_study(settings: Settings) -> None:
    s = settings
    typer.echo(f"{s.name}: {s.model}×{s.width} on {s.dataset}, {s.seeds} pairs")


def _print_total(stages: list[costs.StageCost]) -> None:
    epochs, left = sum(c.epochs for c in stages), sum(c.epochs_left for c in stages)
    known = sum(c.seconds_left or 0 for c in stages)
    unknown = [c.stage for c in stages if c.seconds_left is None]
    needs = f"one worker needs {_duration(known)}"
    if unknown:
        needs = needs if known else "the time is unknown"
        needs += f"; never run on this device: {', '.join(unknown)}"
    typer.echo(f"total: {epochs:,} epochs, {left:,} of them left; {needs}\n")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _assignments(texts: list[str] | None) -> dict[str, Any]:
    """`name=value` texts as a dict; values are JSON where they can be, else strings."""
    values = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{text!r}: write it as name=value")
        values[name] = parsed(value)
    return values


def _write_results(studies: list[Study], preset: str, folder: Path | None = None) -> Path:
    path = (folder or project_root() / "runs" / preset) / "results.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_synced(path, runner.results(studies).to_parquet(index=False))
    return path


def _print_verdicts(studies: list[Study]) -> None:
    with pd.option_context("display.max_colwidth", None, "display.width", 200):
        middle = pd.concat([tables.midpoints(study) for study in studies], ignore_index=True)
        typer.echo("\nAccuracy halfway between A and B, %:")
        typer.echo(middle.round(1).to_string(index=False))
        for study in studies:
            if study.settings.methods and study.settings.sparsities:
                typer.echo(f"\n{study.settings.name}: mean test accuracy, %")
                typer.echo(tables.accuracy_grid(study.results()).round(1).to_string())
    for heading, table in verdicts.of_all(studies):
        typer.echo(f"\nVerdicts: {heading}")
        for row in table.itertuples():
            typer.echo(f"[{row.verdict}] {row.claim}\n    paper: {row.paper}")
            typer.echo(f"    ours (n = {row.n}): {row.ours}")


if __name__ == "__main__":
    main()
