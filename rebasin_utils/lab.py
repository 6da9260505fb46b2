"""What every notebook begins and ends with: studies from checked parameters, tables, provenance."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from IPython.display import HTML, display

from rebasin_utils.errors import InputError
from rebasin_utils.paths import default_store
from rebasin_utils.presets import preset as studies_of
from rebasin_utils.study import Study


def open_studies(
    preset: str,
    *,
    seeds: int | None = None,
    width: int | None = None,
    store: str = "",
    device: str = "auto",
) -> list[Study]:
    """The studies of a preset, from a notebook's parameters.

    Args:
        preset: a name that `rebasin presets` lists.
        seeds: number of A–B pairs, if not the preset's.
        width: width multiplier of the nets, if not the preset's.
        store: folder of the results; empty is `REBASIN_STORE` or `runs/store` in the project.
        device: auto, cpu, cuda, …

    Raises:
        InputError: when a parameter has the wrong type or a value that is not allowed.
    """
    for name, value, kind in (("preset", preset, str), ("store", store, str)):
        if not isinstance(value, kind):
            raise InputError(f"{name} = {value!r}: must be a {kind.__name__}")
    asked = {"seeds": seeds, "width": width}
    changes = {name: value for name, value in asked.items() if value is not None}
    root = Path(store) if store else default_store()
    return [Study(settings.with_values(**changes), root, device) for settings in studies_of(preset)]


def grid_of(studies: list[Study]) -> Study:
    """The study among these that has sparse runs.

    Raises:
        InputError: when there is none.
    """
    for study in studies:
        if study.settings.methods and study.settings.sparsities and study.settings.rewind_epochs:
            return study
    raise InputError("this preset has no sparse runs: choose another, e.g. pocket")


def looking_closer(studies: list[Study]) -> Study:
    """The study among these that has ensembles, early matching and the plane.

    Raises:
        InputError: when there is none.
    """
    for study in studies:
        if study.plan.nodes("diversity"):
            return study
    raise InputError(
        "no study of this preset has ensembles: choose another preset, e.g. pocket, or set cell, "
        "ensemble_size and tickets_of_b, and at least 2 seeds"
    )


def by_width(studies: list[Study]) -> dict[str, list[Study]]:
    """The models that the preset has at two widths or more: model -> its studies, narrowest first.

    Raises:
        InputError: when there is none.
    """
    models: dict[str, list[Study]] = {}
    for study in sorted(studies, key=lambda s: s.settings.width):
        models.setdefault(study.settings.model, []).append(study)
    found = {model: several for model, several in models.items() if len(several) > 1}
    if not found:
        raise InputError("this preset has no model at two widths: choose another, e.g. pocket")
    return found


def show_table(table: pd.DataFrame, digits: int = 2) -> None:
    """Display a table whole; sparsities as per cent, no index where that is only a count."""
    display(as_html(table, digits))


def as_html(table: pd.DataFrame, digits: int = 2) -> HTML:
    """What `show_table` displays."""
    if "sparsity" in table.index.names:
        table = table.rename(index="{:.0%}".format, level="sparsity")
    counted = isinstance(table.index, pd.RangeIndex)
    with pd.option_context("display.max_colwidth", None):
        page = table.to_html(index=not counted, float_format=f"{{:.{digits}f}}".format, border=0)
    style = "<style>.dataframe td, .dataframe th {text-align: left !important}</style>"
    return HTML(style + page)


def show_provenance(*studies: Study) -> None:
    """Print what the numbers above were made from and with."""
    for study in studies:
        s = study.settings
        print(
            f"{s.name}: {s.model}×{s.width} on {s.dataset}, {s.seeds} pairs, "
            f"{s.dense.epochs} epochs; device {study.device}"
        )
    print(
        f"rebasin {version('rebasin')}, torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
