"""What the commands do that compute, or say what is there, once their options are read.

Apart from `command`, so that a help text imports none of it; what shows results, notebooks or
figures is in `show`.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pandas as pd
import typer

from rebasin_utils.cli.options import existing, place, print_columns
from rebasin_utils.files import replace_synced
from rebasin_utils.nets import checkpoints
from rebasin_utils.nets.devices import device_name, torch_device
from rebasin_utils.paths import default_store
from rebasin_utils.running import costs, crew, reasons, runner
from rebasin_utils.study import exchange, presets
from rebasin_utils.study.settings import Settings, assignments
from rebasin_utils.study.store import Store
from rebasin_utils.study.study import Study

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
    studies = opened_studies(preset, store, device, set)
    begin = time.monotonic()
    made = runner.run(studies, workers=workers, quiet=quiet, cluster=place(cluster))
    if crew.follows():
        return
    table = write_results(studies, preset, set)
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


def export(artifact: str, file: Path, part: str | None, store: Path | None) -> None:
    """Write a net, a mask, its signs or a permutation as a plain file, and say how to load it."""
    tensors, kind = exchange.part_of(existing(store), artifact, part)
    line = checkpoints.write(file, tensors, kind)
    typer.echo(f"{file}: a {kind}, {len(tensors)} tensors; load it with\n    {line}")


def opened_studies(
    preset: str, store: Store | Path | None, device: str, changes: Changes
) -> list[Study]:
    """The studies of a preset, with settings changed; the store is the default one for None."""
    chosen = presets.changed(preset, assignments(changes or []))
    return [Study(settings, store or default_store(), device) for settings in chosen]


def _costs(
    preset: str,
    store: Path | None,
    device: str,
    changes: Changes,
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


def write_results(
    studies: list[Study], preset: str, changes: Changes, folder: Path | None = None
) -> Path:
    """Beside the store; a study that was changed does not overwrite the preset's own table."""
    name = preset
    if changes:
        name += "-" + hashlib.sha256(json.dumps(sorted(changes)).encode()).hexdigest()[:8]
    path = (folder or studies[0].store.root.parent / name) / "results.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_synced(path, runner.results(studies).to_parquet(index=False))
    return path
