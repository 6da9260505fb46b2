"""The `rebasin notebooks` commands: list, copy, run, refresh, editions, slides."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from rebasin_utils.cli.options import Cluster, place, print_columns
from rebasin_utils.errors import InputError
from rebasin_utils.paths import project_root

app = typer.Typer(help="The ordered notebooks.", no_args_is_help=True)


@app.command("list")
def list_notebooks() -> None:
    """List the notebooks, their questions and their parameters."""
    from rebasin_utils.running import notebooks

    for notebook in notebooks.all_notebooks():
        typer.echo(f"{notebook.name}: {notebook.question}")
        for name, default in notebook.parameters.items():
            typer.echo(f"    {name} = {default!r}")


@app.command("copy")
def copy_notebooks(
    folder: Annotated[Path, typer.Argument(help="Gets them below `notebooks`.")],
    names: Annotated[list[str] | None, typer.Argument(help="e.g. 02 04; none is all")] = None,
) -> None:
    """Copy the notebooks to a folder of your own; results of what runs there go below it."""
    from rebasin_utils.running import notebooks

    files = notebooks.copy(notebooks.find(names or [], notebooks.originals()), folder)
    typer.echo(f"{len(files)} notebooks in {files[0].parent}; open them: jupyter lab {folder}")


PAIRED = ("-p", "--parameter", "-g", "--grid")


class _InPairs(TyperCommand):
    """A command whose options of pairs take two words, as papermill's do: `-p NAME VALUE`.

    Typer has no such option; each pair reaches it as one JSON text.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words, left = [], iter(args)
        for word in left:
            words.append(word)
            if word in PAIRED:
                pair = list(islice(left, 2))
                if len(pair) < 2:
                    raise InputError(f"{word}: takes two words, as in {word} seeds 3")
                words.append(json.dumps(pair))
        return super().parse_args(ctx, words)


@app.command("run", cls=_InPairs)
def run_notebooks(
    names: Annotated[list[str] | None, typer.Argument(help="e.g. 02 04; none is all")] = None,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="e.g. -p preset smoke", metavar="NAME VALUE"),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            "-g",
            help="A batch of all combinations, e.g. -g seeds 2,3",
            metavar="NAME VALUE,VALUE,…",
        ),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="For the executed copies. [default: runs/notebooks]")
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="How many at the same time.")] = 2,
    cluster: Cluster = "local",
) -> None:
    """Execute notebooks with papermill and export each as a page; what was executed stays."""
    from rebasin_utils.running import batch, notebooks
    from rebasin_utils.study.settings import parsed

    values = {name: parsed(text) for name, text in _pairs(parameters)}
    columns = {name: [parsed(v) for v in text.split(",")] for name, text in _pairs(grid)}
    chosen = batch.executions(notebooks.find(names or []), values, columns)
    folder = folder or project_root() / "runs" / "notebooks"
    table = batch.run_batch(chosen, folder, at_once, place(cluster))
    print_columns(table.drop(columns="problem").round({"seconds": 1}))
    batch.refuse_failures(table, folder)
    typer.echo(f"pages: {folder / 'index.html'}")


@app.command("refresh")
def refresh_notebooks(
    names: Annotated[list[str] | None, typer.Argument(help="e.g. 02 04; none is all")] = None,
) -> None:
    """Execute notebooks with their own parameters and keep the outputs in the files."""
    from rebasin_utils.running import notebooks

    for notebook in notebooks.find(names or []):
        notebooks.refresh(notebook)
        typer.echo(notebook.path)


@app.command("editions")
def write_editions(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")],
    names: Annotated[list[str] | None, typer.Argument(help="e.g. 02 04; none is all")] = None,
) -> None:
    """Write the students' edition: no outputs, no solutions, predictions to be made."""
    from rebasin_utils.running import editions, notebooks

    for file in editions.write(notebooks.find(names or []), folder):
        typer.echo(file)


@app.command("slides")
def write_slides(
    names: Annotated[list[str] | None, typer.Argument(help="e.g. 02 04; none is all")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where to write them. [default: runs/slides]")
    ] = None,
) -> None:
    """Write notebooks as the slides of a talk, as they were executed; no network is needed."""
    from rebasin_utils.running import notebooks, slides

    for notebook in notebooks.find(names or []):
        typer.echo(slides.write(notebook, folder or project_root() / "runs" / "slides"))


def _pairs(texts: list[str] | None) -> list[tuple[str, str]]:
    """What `_InPairs` made; each name may occur once."""
    pairs = [tuple(json.loads(text)) for text in texts or []]
    for name, value in pairs:
        if sum(other == name for other, _ in pairs) > 1:
            raise InputError(f"{name} = {value!r}: given twice; several values are a --grid")
    return pairs
