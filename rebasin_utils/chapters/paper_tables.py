"""Notebook 09: what do the paper's own tables say, and what do ours say beside them?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rebasin_utils.chapters import published
from rebasin_utils.chapters.chapter import Chapter, Picture
from rebasin_utils.chapters.evidence import interval
from rebasin_utils.chapters.style import COLOURS, SYMBOLS, bars, blank
from rebasin_utils.errors import InputError
from rebasin_utils.study.presets import PRESETS
from rebasin_utils.study.study import Study

#: Runs behind every published mean and standard deviation.
RUNS = 3

_SHADES = ("#9ecae1", "#4292c6", "#2171b5", "#084594")


class PaperTables(Chapter):
    notebook = "09-paper-tables"

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        table = published_differences()
        yield Picture("published-gains", gains(table), table)
        yield Picture("published-gaps-by-width", gaps_by_width(table), table)


PAPER_TABLES = PaperTables()


def published_differences() -> pd.DataFrame:
    """Every cell of the published tables of sparse runs, as differences of means, in points.

    The published runs are not paired, so that a difference is held against the noise of two means
    of `RUNS` runs.

    Returns:
        table, net, sparsity, rewind_epoch, gain (permuted − naive), lacks (LTH − permuted), and the
        standard error of each, gain_error and lacks_error.
    """
    return pd.concat(
        [
            _differences(f"{model}-w{width}-{data}", published.table(name))
            for (model, width, data), name in published.GRIDS.items()
        ],
        ignore_index=True,
    )


def _differences(label: str, rows: pd.DataFrame) -> pd.DataFrame:
    first = rows.iloc[0]
    rows = rows.assign(method=rows["method"].str.lower())
    cells = rows.pivot_table(["mean", "std"], ["sparsity", "rewind_epoch"], "method")
    mean, error = cells["mean"], cells["std"] / np.sqrt(RUNS)
    table = pd.DataFrame(
        {
            "gain": mean["permuted"] - mean["naive"],
            "gain_error": np.hypot(error["permuted"], error["naive"]),
            "lacks": mean["lth"] - mean["permuted"],
            "lacks_error": np.hypot(error["lth"], error["permuted"]),
        }
    ).reset_index()
    net = f"{first['model']}×{first['width']}, {first['dataset']}"
    return table.assign(table=label, net=net, width=first["width"], dataset=first["dataset"])


def one_table(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """The cells of one published table, by its label, as in "resnet20-w1-cifar10".

    Raises:
        InputError: when there is none of that label.
    """
    labels = list(dict.fromkeys(table["table"]))
    if label not in labels:
        raise InputError(f"table = {label!r}: choose one of {', '.join(labels)}")
    return table[table["table"] == label]


def gains(table: pd.DataFrame, label: str = "resnet20-w1-cifar10") -> go.Figure:
    """What permuting gains over naive against the rewind epoch, a line a sparsity, of one table.

    Bars are two standard errors of a difference of two means.
    """
    at = one_table(table, label)
    figure = blank("rewind epoch k, as published", "permuted − naive, pp")
    for shade, (sparsity, line) in zip(_SHADES, at.groupby("sparsity"), strict=False):
        figure.add_scatter(
            x=line["rewind_epoch"],
            y=line["gain"],
            error_y=bars(list(2 * line["gain_error"].fillna(0))),
            mode="lines+markers",
            name=f"S = {sparsity:.0%}",
            line_color=shade,
            marker=dict(symbol=SYMBOLS["permuted"], size=9),
        )
    figure.add_hline(0, line=dict(color=COLOURS["naive"], width=2))
    beyond = (at["gain"] > 2 * at["gain_error"]).sum()
    figure.update_layout(
        title=f"{at['net'].iloc[0]}: permuting gains in {beyond} of {len(at)} cells beyond 2 "
        f"standard errors<br><sup>published means of {RUNS} runs, bars: two standard errors</sup>"
    )
    return figure


def gaps_by_width(table: pd.DataFrame) -> go.Figure:
    """What permuted lacks to LTH against the width of ResNet20: mean over k ≥ 10, by sparsity."""
    late = table[(table["rewind_epoch"] >= 10) & table["net"].str.startswith("ResNet20")]
    figure = blank("width multiplier", "LTH − permuted, pp")
    ends = {}
    for dataset, dash in (("CIFAR-10", "solid"), ("CIFAR-100", "dash")):
        for shade, (sparsity, rows) in zip(
            _SHADES, late[late["dataset"] == dataset].groupby("sparsity"), strict=False
        ):
            mean = rows.groupby("width")["lacks"].mean()
            ends[dataset] = mean
            figure.add_scatter(
                x=mean.index,
                y=mean,
                mode="lines+markers",
                name=f"{dataset}, S = {sparsity:.0%}",
                line=dict(color=shade, dash=dash),
                marker_size=9,
            )
    widths = sorted(late["width"].unique())
    figure.update_xaxes(type="log", tickvals=widths, ticktext=[f"×{w}" for w in widths])
    low, high = widths[0], widths[-1]
    said = "; ".join(f"{d} {m[low]:.1f} → {m[high]:.1f} pp" for d, m in ends.items())
    figure.update_layout(
        title=f"LTH − permuted, ×{low} → ×{high}: {said}<br><sup>at the highest sparsity; "
        "published means of 3 runs, averaged over k ≥ 10</sup>"
    )
    return figure


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Every published table in a row: in how many cells π gains, or loses, beyond the noise."""
    rows = []
    for net, cells in table.groupby("net", sort=False):
        at_zero = cells[cells["rewind_epoch"] == 0]
        later = cells[cells["rewind_epoch"] >= 5]
        rows.append(
            {
                "net": net,
                "cells": len(cells),
                "π gains": int((cells["gain"] > 2 * cells["gain_error"]).sum()),
                "π loses": int((cells["gain"] < -2 * cells["gain_error"]).sum()),
                "gain at nominal k = 0, pp": at_zero["gain"].mean(),
                "gain for k ≥ 5, pp": later["gain"].mean(),
                "lacks to LTH for k ≥ 5, pp": later["lacks"].mean(),
            }
        )
    return pd.DataFrame(rows)


def beside(studies: Sequence[Study], table: pd.DataFrame) -> pd.DataFrame:
    """Our sparse runs beside the published cells: of the same net, or of ResNet20×1 on CIFAR-10.

    Returns:
        a row a study, sparsity and rewind epoch k ≥ 1 of ours: our gain and what we lack, each with
        its 95% interval, n, and the range of the published ones at that sparsity for k ≥ 5.
    """
    rows = []
    for study in studies:
        s = study.settings
        results = study.results()
        runs = results[results["rewind_epoch"].notna() & (results["rewind_epoch"] >= 1)]
        label = f"{s.model.name}-w{s.model.width}-{s.data.source}"
        theirs = table[table["table"] == label]
        theirs = theirs if len(theirs) else table[table["table"] == "resnet20-w1-cifar10"]
        for (sparsity, k), cell in runs.groupby(["sparsity", "rewind_epoch"]):
            accuracy = 100 * cell.pivot_table("test_accuracy", "seed", "method")
            if not {"lth", "permuted", "naive"} <= set(accuracy):
                continue
            quoted = theirs[(theirs["sparsity"] == sparsity) & (theirs["rewind_epoch"] >= 5)]
            rows.append(
                {
                    "ours": f"{s.model.name}×{s.model.width}, {s.data.source}",
                    "sparsity": f"{sparsity:.0%}",
                    "k": int(k),
                    "n": len(accuracy.dropna()),
                    "permuted − naive": _said(accuracy["permuted"] - accuracy["naive"]),
                    "LTH − permuted": _said(accuracy["lth"] - accuracy["permuted"]),
                    "published": theirs["net"].iloc[0],
                    "its permuted − naive": _range(quoted["gain"]),
                    "its LTH − permuted": _range(quoted["lacks"]),
                }
            )
    return pd.DataFrame(rows)


def bill(pace: float) -> pd.DataFrame:
    """What the published grids cost: cells, epochs of three pairs, and hours at a pace.

    Args:
        pace: training images per second of the narrowest ResNet20, as measured or hoped for. What a
            wider net costs grows with the square of its width.
    """
    rows = []
    for settings in PRESETS["paper"]:
        s = settings
        of_grid = len(s.sparse.sparsities) * len(s.sparse.rewind_epochs) * len(s.sparse.methods)
        sparse = s.seeds * sum(
            s.sparse_recipe(k).epochs * len(s.sparse.sparsities) * len(s.sparse.methods)
            for k in s.sparse.rewind_epochs
        )
        epochs = sparse + 2 * s.seeds * s.dense.epochs
        hours = epochs * 50_000 * s.model.width**2 / pace / 3600
        rows.append((s.name, of_grid, epochs, hours if s.model.name == "resnet20" else None))
    columns = ["preset", "cells", "epochs, without IMP", "hours"]
    return pd.DataFrame(rows, columns=columns)


def _said(values: pd.Series) -> str:
    mean, low, high = interval(values.dropna())
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]".replace("inf", "∞")


def _range(values: pd.Series) -> str:
    return f"{values.min():+.2f} … {values.max():+.2f}" if len(values) else "not published"
