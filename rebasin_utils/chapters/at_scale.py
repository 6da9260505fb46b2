"""Notebook 10: what changes from a laptop to ImageNet?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rebasin_utils.chapters import published
from rebasin_utils.chapters.chapter import Chapter, Picture, whole_results
from rebasin_utils.chapters.style import COLOURS, METHOD_NAMES, SYMBOLS, lay_out
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.study import Study
from rebasin_utils.symmetry.permutation import Permutation

_NET = ("resnet50", 1, "imagenet")
_METHODS = ("lth", "permuted", "naive")


class AtScale(Chapter):
    notebook = "10-at-scale"

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        table = published_cells()
        yield Picture("published-imagenet", by_sparsity(table), table)


AT_SCALE = AtScale()


def published_cells() -> pd.DataFrame:
    """The published runs of ResNet50 on ImageNet, single ones: Table 10.

    Returns:
        metric, sparsity, rewind_epoch, and lth, naive and permuted, each in %.
    """
    tables = {metric: published.grid(*_NET, metric).means for metric in ("top1", "top5")}
    return pd.concat(tables, names=["metric"]).reset_index()


def by_sparsity(table: pd.DataFrame) -> go.Figure:
    """Published top-1 accuracy against sparsity, a panel for each rewind epoch."""
    table = table[table["metric"] == "top1"]
    epochs = sorted(table["rewind_epoch"].unique())
    titles = [f"k = {k}" for k in epochs]
    figure = make_subplots(1, len(epochs), shared_yaxes=True, subplot_titles=titles)
    for column, k in enumerate(epochs, 1):
        rows = table[table["rewind_epoch"] == k]
        for method in _METHODS:
            figure.add_scatter(
                x=[f"{s:.0%}" for s in rows["sparsity"]],
                y=rows[method],
                name=METHOD_NAMES[method],
                legendgroup=method,
                showlegend=column == 1,
                mode="lines+markers",
                line_color=COLOURS[method],
                marker=dict(symbol=SYMBOLS[method], size=10),
                row=1,
                col=column,
            )
    lay_out(figure, "sparsity", "")
    figure.update_yaxes(title="top-1 accuracy, %", col=1)
    gain, lacks = table["permuted"] - table["naive"], table["lth"] - table["permuted"]
    figure.update_layout(
        title=f"Permuting gains {gain.min():.1f} to {gain.max():.1f} pp and lacks "
        f"{lacks.min():.1f} to {lacks.max():.1f} pp to LTH<br><sup>ResNet50 on ImageNet, as "
        "published: one run a cell</sup>"
    )
    return figure


def last_rates(settings: Settings) -> pd.DataFrame:
    """For every rewind epoch, how long its sparse runs are and where their rate ends.

    Returns:
        rewind_epoch, epochs, and epochs at a tenth and at a hundredth of the rate.
    """
    rows = []
    for k in settings.sparse.rewind_epochs:
        recipe = settings.sparse_recipe(settings.saved_epoch(k))
        factors = [recipe.lr_factor(epoch) for epoch in range(recipe.epochs)]
        rows.append(
            {
                "rewind_epoch": k,
                "epochs": recipe.epochs,
                "at a tenth": sum(0.05 < f < 0.15 for f in factors),
                "at a hundredth": sum(f < 0.05 for f in factors),
            }
        )
    return pd.DataFrame(rows)


def measured(study: Study) -> pd.DataFrame:
    """Mean test accuracies in % over the pairs, top-1 and top-5, of dense nets and sparse runs."""
    runs = whole_results(study)
    runs = runs.assign(top1=100 * runs["test_accuracy"], top5=100 * runs["test_top5"])
    runs["method"] = runs["method"].map(METHOD_NAMES)
    return runs.groupby(["method", "sparsity"], sort=False)[["top1", "top5"]].mean().reset_index()


def recovered(found: Permutation, planted: Permutation) -> float:
    """The share of a net's units that went where they should, of all groups."""
    right = sum(int((found[name] == p).sum()) for name, p in planted.items())
    return right / sum(len(p) for p in planted.values())
