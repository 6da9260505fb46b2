"""What the commands do, once their options are read.

Apart from `command`, so that a help text imports none of it.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import typer

from rebasin_utils.chapters import gallery
from rebasin_utils.chapters.chapter import whole_results
from rebasin_utils.chapters.evidence import accuracy_grid
from rebasin_utils.chapters.judgement import Outcome, outcome_of, summary
from rebasin_utils.chapters.width import nearest_cell
from rebasin_utils.cli.options import existing, place, print_columns
from rebasin_utils.errors import InputError
from rebasin_utils.files import replace_synced
from rebasin_utils.nets import checkpoints
from rebasin_utils.nets.devices import device_name, torch_device
from rebasin_utils.paths import default_store, project_root
from rebasin_utils.running import batch, costs, crew, notebooks, reasons, runner
from rebasin_utils.study import exchange, plugins, presets
from rebasin_utils.study.settings import Settings, assignments
from rebasin_utils.study.stages import connectivity
from rebasin_utils.study.store import Store
from rebasin_utils.study.study import Study
from rebasin_utils.training.ranks import started

Changes = list[str] | None


def list_presets(verbose: bool) -> None:
    """List the named studies and what they are for."""
    for name, studies in presets.PRESETS.items():
        models = ", ".join(
            f"{s.model.name}×{s.model.width} on {s.data.source}" for s in studies[:2]
        )
        more = f" and {len(studies) - 2} more" if len(studies) > 2 else ""
        typer.echo(f"{name:44} {presets.PURPOSE.get(name, models + more)}")
        if verbose:
            for field, (there, here) in presets.differences(name).items():
                typer.echo(f"    {field}: {here!r} (there {there!r})")


def run(
    preset: str,
    workers: int | None,
    cluster: str,
    store: Path | None,
    device: str,
    set: Changes,
    quiet: bool,
) -> None:
    """Compute what the store lacks of a study, and write its table."""
    studies = _studies(preset, store, device, set)
    begin = time.monotonic()
    made = runner.run(studies, workers=workers, quiet=quiet, cluster=place(cluster))
    if crew.follows():
        return
    table = _write_results(studies, preset, set)
    typer.echo(f"{made} artifacts computed in {time.monotonic() - begin:.0f} s; table: {table}")


def plan(
    preset: str,
    store: Path | None,
    device: str,
    set: Changes,
    why: bool,
    epoch_seconds: float | None,
) -> None:
    """Print what a study costs, without running it: artifacts, epochs, disk, estimated time."""
    studies = _costs(preset, store, device, set, epoch_seconds)
    for settings, stages in studies:
        rows = [
            (
                c.stage,
                f"{c.artifacts:,}",
                f"{c.epochs:,}",
                _bytes(c.megabytes),
                f"{c.epochs_left:,}",
                costs.duration(c.seconds_left),
            )
            for c in stages
        ]
        typer.echo(presets.described(settings))
        head = ["stage", "artifacts", "epochs", "disk", "epochs left", "time left"]
        print_columns(pd.DataFrame(rows, columns=head))
        _print_total(stages)
        if why:
            _print_reasons(reasons.of_study(settings, existing(store)))
    if len(studies) > 1:
        typer.echo(f"all {len(studies)} studies, what they share counted for each")
        _print_total([cost for _, stages in studies for cost in stages])


def status(preset: str, store: Path | None, device: str, set: Changes) -> None:
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
                costs.duration(c.seconds),
                f"{c.epochs_left:,}",
                costs.duration(c.seconds_left),
            )
            for c in stages
        ]
        typer.echo(presets.described(settings))
        states = ["done", "running", "failed", "missing"]
        head = ["stage", *states, "took", "epochs left", "time left"]
        print_columns(pd.DataFrame(rows, columns=head))
        _print_total(stages)
        for line in costs.failures(settings, existing(store)):
            typer.echo(f"failed: {line}")


def results(preset: str, store: Path | None, format: str, set: Changes) -> None:
    """Print the tidy table: one row per trained net that the store holds."""
    opened = _studies(preset, existing(store), "cpu", set)
    table = runner.results(opened)
    if format == "csv":
        typer.echo(table.to_csv(index=False), nl=False)
    elif format == "parquet":
        sys.stdout.buffer.write(table.to_parquet(index=False))
    else:
        typer.echo(table.drop(columns="artifact").to_string(index=False))
        _say_what_ships(opened)


def verdict(preset: str, store: Path | None, set: Changes, all: bool) -> None:
    """Hold the results against the papers' claims, with the numbers or without."""
    _print_verdicts(_studies(preset, existing(store), "cpu", set), all)


def export(artifact: str, file: Path, part: str | None, store: Path | None) -> None:
    """Write a net, a mask, its signs or a permutation as a plain file, and say how to load it."""
    tensors, kind = exchange.part_of(existing(store), artifact, part)
    line = checkpoints.write(file, tensors, kind)
    typer.echo(f"{file}: a {kind}, {len(tensors)} tensors; load it with\n    {line}")


def study(
    preset: str,
    workers: int | None,
    cluster: str,
    store: Path | None,
    device: str,
    folder: Path | None,
    figures_folder: Path | None,
) -> None:
    """The whole argument: run the study, execute the notebooks, draw the figures, give verdicts."""
    if started():
        raise InputError(
            "rebasin study does not go with torchrun: use rebasin run, then this alone"
        )
    studies = _studies(preset, store, device, None)
    folder = folder or project_root() / "runs" / preset
    begin = time.monotonic()
    made = runner.run(studies, workers=workers, cluster=place(cluster))
    typer.echo(f"study: {made} artifacts computed in {time.monotonic() - begin:.0f} s")
    table = _write_results(studies, preset, None, folder)
    begin = time.monotonic()
    values = {"preset": preset, "store": str(studies[0].store.root), "device": device}
    with ThreadPoolExecutor(1) as beside:
        figures_folder = figures_folder or project_root() / "figures"
        drawn = beside.submit(gallery.draw_all, studies, figures_folder)
        done = batch.run_batch(executions_of(studies, values), folder)
    batch.refuse_failures(done, folder)
    drawn.result()
    executed = (done["state"] == "executed").sum()
    typer.echo(f"notebooks: {executed} executed, figures drawn in {time.monotonic() - begin:.0f} s")
    _print_verdicts(studies)
    typer.echo(f"\ntable: {table}\npages: {folder / 'index.html'}")


def executions_of(studies: list[Study], values: dict[str, str]) -> list[batch.Execution]:
    """Every notebook that shows something of these studies, at a cell that they have.

    Says which others there are, and what these lack for them.
    """
    found, chapters = [], plugins.chapters(studies[0].settings.plugins)
    for notebook in notebooks.find([]):
        chapter = chapters.get(notebook.name)
        if chapter and (why := chapter.missing(studies)):
            typer.echo(f"{notebook.name} is left out: {why}")
            continue
        own = {name: v for name, v in notebook.parameters.items() if name in _CELL}
        shown = chapter.studies(studies) if chapter else studies
        cell = own and nearest_cell(shown, **own)
        found += batch.executions([notebook], _taken(notebook, values) | cell)
    return found


#: The parameters by which a notebook picks sparse runs.
_CELL = ("sparsity", "rewind_epoch")


def _taken(notebook: notebooks.Notebook, values: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if name in notebook.parameters}


def _say_what_ships(studies: list[Study]) -> None:
    for study in studies:
        if said := study.said_of_shipped():
            typer.echo(f"{study.settings.name}: {said}")


def _studies(
    preset: str, store: Store | Path | None, device: str, changes: list[str] | None
) -> list[Study]:
    chosen = presets.changed(preset, assignments(changes or []))
    return [Study(settings, store or default_store(), device) for settings in chosen]


def _costs(
    preset: str,
    store: Path | None,
    device: str,
    changes: list[str] | None,
    epoch_seconds: float | None = None,
) -> list[tuple[Settings, list[costs.StageCost]]]:
    chosen = presets.changed(preset, assignments(changes or []))
    opened, name = existing(store), device_name(torch_device(device))
    return [(s, costs.of_study(s, opened, name, epoch_seconds)) for s in chosen]


def _print_total(stages: list[costs.StageCost]) -> None:
    epochs, left = sum(c.epochs for c in stages), sum(c.epochs_left for c in stages)
    known = sum(c.seconds_left or 0 for c in stages)
    unknown = dict.fromkeys(c.stage for c in stages if c.seconds_left is None)
    needs = f"one worker needs {costs.duration(known)}"
    if unknown:
        needs = needs if known else "the time is unknown"
        needs += f"; never run on this device: {', '.join(unknown)}"
    disk = _bytes(sum(c.megabytes for c in stages))
    typer.echo(f"total: {epochs:,} epochs, {left:,} of them left; {disk} on disk; {needs}\n")


def _print_reasons(found: list[tuple[str, int, str]]) -> None:
    if not found:
        typer.echo("nothing would be computed: all of it is in the store\n")
        return
    typer.echo("what would be computed, and why:")
    for stage, count, why in found:
        typer.echo(f"{count:6,} {stage}: {why}")
    typer.echo("")


def _bytes(megabytes: float) -> str:
    for unit, size in (("TB", 1e6), ("GB", 1e3)):
        if megabytes >= size:
            return f"{megabytes / size:,.1f} {unit}"
    return f"{megabytes:,.0f} MB"


def _write_results(
    studies: list[Study], preset: str, changes: list[str] | None, folder: Path | None = None
) -> Path:
    """Beside the store; a study that was changed does not overwrite the preset's own table."""
    name = preset
    if changes:
        name += "-" + hashlib.sha256(json.dumps(sorted(changes)).encode()).hexdigest()[:8]
    path = (folder or studies[0].store.root.parent / name) / "results.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_synced(path, runner.results(studies).to_parquet(index=False))
    return path


def _print_verdicts(studies: list[Study], numbers: bool = False) -> None:
    grids = {
        study.settings.name: accuracy_grid(whole_results(study))
        for study in studies
        if study.nodes("sparse")
    }
    with pd.option_context("display.max_colwidth", None, "display.width", 200):
        measured = [study for study in studies if study.nodes("connectivity")]
        if measured:
            middle = pd.concat(map(connectivity.midpoints, measured), ignore_index=True)
            typer.echo("\nAccuracy halfway between A and B, %:")
            typer.echo(middle.round(1).to_string(index=False))
        for name, grid in grids.items():
            typer.echo(f"\n{name}: mean test accuracy, %")
            typer.echo(grid.round(1).to_string())
    outcomes: list[Outcome] = []
    for heading, table in gallery.verdicts(studies):
        typer.echo(f"\nVerdicts: {heading}")
        for row in table.itertuples():
            typer.echo(f"[{row.verdict}] {row.claim}")
            if numbers:
                typer.echo(f"    paper: {row.paper}\n    ours (n = {row.n}): {row.ours}")
            outcomes.append(outcome_of(row.verdict))
    more = "" if numbers else "; with the numbers: rebasin verdict --all"
    typer.echo(f"\n{summary(outcomes)}{more}")
    _say_what_ships(studies)
