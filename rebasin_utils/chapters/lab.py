"""What every notebook begins and ends with: studies from checked parameters, tables, provenance."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from IPython.display import HTML, display

from rebasin_utils.errors import InputError
from rebasin_utils.paths import default_store
from rebasin_utils.study import presets
from rebasin_utils.study.settings import Settings, changes_in
from rebasin_utils.study.shelf import package_shelf
from rebasin_utils.study.study import Study
from rebasin_utils.versions import own_version


def open_studies(
    preset: str,
    *,
    seeds: int = 0,
    width: int = 0,
    changes: str = "",
    store: str = "",
    device: str = "auto",
) -> list[Study]:
    """The studies of a preset, from a notebook's parameters.

    Args:
        preset: a name that `rebasin presets` lists.
        seeds: number of A–B pairs; 0 is the preset's own.
        width: width multiplier of the nets; 0 is the preset's own.
        changes: other settings by their dotted names, as in "dense.epochs=5 data.pool=4".
        store: folder of the results; empty is `REBASIN_STORE` or `runs/store` in the project.
        device: auto, cpu, cuda, …

    Raises:
        InputError: when a parameter has the wrong type or a value that is not allowed.
    """
    for name, value, kind in (
        ("preset", preset, str),
        ("seeds", seeds, int),
        ("width", width, int),
        ("changes", changes, str),
        ("store", store, str),
    ):
        if not isinstance(value, kind):
            raise InputError(f"{name} = {value!r}: must be a {kind.__name__}")
    asked = {"seeds": seeds, "model.width": width}
    wanted = {name: value for name, value in asked.items() if value}
    wanted |= changes_in(changes)
    root = Path(store) if store else default_store()
    return [Study(settings, root, device) for settings in presets.changed(preset, wanted)]


def shipped_studies(name: str, *, device: str = "auto") -> list[Study]:
    """The studies whose results ship, of the presets whose names begin with `name`, in their order.

    They have the settings that were computed, and are to be read: nothing of them need be here.
    """
    order = list(presets.PRESETS)
    files = [about for about in package_shelf().about if about["preset"].startswith(name)]
    files.sort(key=lambda about: order.index(about["preset"]))
    settings = [Settings.of(values) for about in files for values in about["studies"]]
    return [Study(each, default_store(), device) for each in settings]


def show_table(table: pd.DataFrame, digits: int = 2) -> None:
    """Display a table whole; sparsities as per cent, no index where that is only a count."""
    display(as_html(table, digits))


def show_folded(summary: str, tables: Mapping[str, pd.DataFrame], digits: int = 2) -> None:
    """Display tables under their names, folded away behind a line that opens them."""
    parts = [f"<p>{name}</p>{as_html(table, digits).data}" for name, table in tables.items()]
    display(HTML(f"<details><summary>{summary}</summary>{''.join(parts)}</details>"))


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
    """Print what the numbers above were made from and with, and which of them ship."""
    for study in studies:
        s = study.settings
        print(f"{presets.described(s)}, {s.dense.epochs} epochs; device {study.device}")
        if said := study.said_of_shipped():
            print(f"    {said}")
    print(f"rebasin {own_version()}, torch {torch.__version__}, Python {platform.python_version()}")
