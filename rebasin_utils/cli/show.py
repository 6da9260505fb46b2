"""What the commands do that show results: as tables, as verdicts, as notebooks and figures."""

from __future__ import annotations

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
from rebasin_utils.cli.options import existing, place
from rebasin_utils.cli.work import Changes, opened_studies, write_results
from rebasin_utils.errors import InputError
from rebasin_utils.paths import project_root
from rebasin_utils.running import batch, notebooks, runner
from rebasin_utils.study import plugins
from rebasin_utils.study.stages import connectivity
from rebasin_utils.study.study import Study
from rebasin_utils.training.ranks import started


def results(preset: str, store: Path | None, format: str, set: Changes) -> None:
    """Print the tidy table: one row per trained net that the store holds."""
    opened = opened_studies(preset, existing(store), "cpu", set)
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
    _print_verdicts(opened_studies(preset, existing(store), "cpu", set), all)


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
    studies = opened_studies(preset, store, device, None)
    folder = folder or project_root() / "runs" / preset
    begin = time.monotonic()
    made = runner.run(studies, workers=workers, cluster=place(cluster))
    typer.echo(f"study: {made} artifacts computed in {time.monotonic() - begin:.0f} s")
    table = write_results(studies, preset, None, folder)
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


def _say_what_ships(studies: list[Study]) -> None:
    for study in studies:
        if said := study.said_of_shipped():
            typer.echo(f"{study.settings.name}: {said}")
