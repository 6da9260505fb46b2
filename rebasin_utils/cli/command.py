"""The `rebasin` command: run a study, print its results, execute its notebooks.

Here stands what can be said on the command line; `work` and `show` do it.
"""

from __future__ import annotations

import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rebasin_utils.cli import notebooks as cli_notebooks
from rebasin_utils.cli import store as cli_store
from rebasin_utils.cli.options import Cluster, Preset, Set, StorePath
from rebasin_utils.errors import InputError, Interrupted, RunError

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


class Part(StrEnum):
    net = "net"
    mask = "mask"
    signs = "signs"
    permutation = "permutation"


Workers = Annotated[
    int | None,
    typer.Option(help="Worker processes. [default: $REBASIN_WORKERS, or one per core, or per GPU]"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, …")]


@app.command("presets")
def list_presets(
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            help="With the settings in which each differs: a twin `…-as-released` from the "
            "preset it is a twin of, any other from the first study of pocket.",
        ),
    ] = False,
) -> None:
    """List the named studies and what they are for."""
    from rebasin_utils.cli import work

    work.list_presets(verbose)


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
    from rebasin_utils.cli import work

    work.run(preset, workers, cluster, store, device, set, quiet)


@app.command()
def plan(
    preset: Preset = "pocket",
    store: StorePath = None,
    device: Device = "auto",
    set: Set = None,
    why: Annotated[
        bool, typer.Option("--why", help="Say why what is missing is not there.")
    ] = False,
    pace: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds of an epoch of training, where no run has shown it."),
    ] = None,
) -> None:
    """Print what a study costs, without running it: artifacts, epochs, disk, estimated time."""
    from rebasin_utils.cli import work

    work.plan(preset, store, device, set, why, pace)


@app.command()
def status(
    preset: Preset = "pocket", store: StorePath = None, device: Device = "auto", set: Set = None
) -> None:
    """Print what of a study is done, running, failed, missing; what it took and what remains.

    Only looks at the store; a study that is running is not disturbed.
    """
    from rebasin_utils.cli import work

    work.status(preset, store, device, set)


@app.command()
def results(
    preset: Preset = "pocket",
    store: StorePath = None,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.table,
    set: Set = None,
) -> None:
    """Print the tidy table: one row per trained net that the store holds."""
    from rebasin_utils.cli import show

    show.results(preset, store, format, set)


@app.command()
def verdict(
    preset: Preset = "pocket",
    store: StorePath = None,
    set: Set = None,
    all: Annotated[bool, typer.Option("--all", help="With the numbers, ours and theirs.")] = False,
) -> None:
    """Hold the results against the papers' claims."""
    from rebasin_utils.cli import show

    show.verdict(preset, store, set, all)


@app.command()
def export(
    artifact: Annotated[
        str, typer.Argument(help="Which: a value of the column artifact of `rebasin results`.")
    ],
    file: Annotated[Path, typer.Argument(help="Where to: a name that ends in .safetensors.")],
    part: Annotated[
        Part | None, typer.Option(help="What of it. [default: the net, or what there is]")
    ] = None,
    store: StorePath = None,
) -> None:
    """Write a net, a mask, its signs or a permutation as a plain file, and say how to load it."""
    from rebasin_utils.cli import work

    work.export(artifact, file, part, store)


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
    from rebasin_utils.cli import show

    show.study(preset, workers, cluster, store, device, folder, figures_folder)


def run_command() -> None:
    """Entry point: whatever goes wrong is one sentence; the user's own mistakes are exit code 2."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except InputError as error:
        _stop(str(error), 2)
    except (RunError, OSError) as error:
        _stop(str(error), 1)
    except Interrupted:
        _stop("stopped; all that was finished is stored, the same command goes on from there", 130)


def _interrupt(*_: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not disturb the cleaning up
    raise Interrupted


def _stop(sentence: str, code: int) -> None:
    typer.echo(f"rebasin: {' '.join(sentence.split())}", err=True)
    raise SystemExit(code) from None
