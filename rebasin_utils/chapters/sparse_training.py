"""Notebook 04: can a lottery-ticket mask be made to work for another init?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rebasin_utils.chapters.chapter import Chapter, Picture, whole_results, with_sparse_runs
from rebasin_utils.chapters.evidence import gap_closed, has_gap, interval, paired_difference
from rebasin_utils.chapters.sparse_claims import (
    against_dense,
    of_budgets,
    of_rescaling,
    of_rewinding,
    of_sparse_runs,
    of_sparsities,
)
from rebasin_utils.chapters.style import (
    COLOURS,
    METHOD_NAMES,
    SYMBOLS,
    add_slider,
    bars,
    blank,
    lay_out,
)
from rebasin_utils.study.stages import budgets, dense, sparse
from rebasin_utils.study.study import Study


class SparseTraining(Chapter):
    notebook = "04-naive-permuted-lth"
    stages = ("dense", "imp", "sparse")

    def studies(self, studies: Sequence[Study]) -> list[Study]:
        return with_sparse_runs(studies)

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        for study in self.studies(studies):
            name = study.settings.name
            table = whole_results(study).drop(columns=["seconds", "device", "artifact"])
            if len(study.settings.sparse.rewind_epochs) > 1:
                yield Picture(f"{name}-accuracy", accuracy_by_rewind(table), table)
                yield Picture(f"{name}-gain", gain_by_rewind(table), table)
            if study.settings.looks_closer:
                losses = learning_curves(study)
                yield Picture(f"{name}-learning", losses_by_epoch(losses), losses)
            if study.settings.budgets.epochs:
                table = budgets.table(study)
                yield Picture(f"{name}-budgets", accuracy_by_budget(table), table)

    def verdicts(self, studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
        for study in self.studies(studies):
            s, results = study.settings, whole_results(study)
            sparsity = s.closer_look.sparsity if s.looks_closer else s.sparse.sparsities[0]
            rewind = s.closer_look.rewind_epoch if s.looks_closer else s.sparse.rewind_epochs[-1]
            for at in dict.fromkeys((sparsity, max(s.sparse.sparsities))):
                yield f"{s.name}, {at:.0%} sparsity", of_sparse_runs(results, at)
            for title, rows in (
                (f"{sparsity:.0%}, against dense", against_dense(results, sparsity)),
                (f"{sparsity:.0%}, rewinding", of_rewinding(results, sparsity)),
                (f"k = {rewind}, sparsity", of_sparsities(results, rewind)),
            ):
                if len(rows):
                    yield f"{s.name}, {title}", rows
            if s.budgets.epochs:
                yield f"{s.name}, budgets", of_budgets(study)
            if s.rescaling.rewind_epochs:
                yield f"{s.name}, rescaling", of_rescaling(study)


SPARSE_TRAINING = SparseTraining()


def accuracy_by_rewind(results: pd.DataFrame, sparsity: float = 0.9) -> go.Figure:
    """Test accuracy against the rewind epoch, a line per method, a slider for the sparsity.

    Points are means over the pairs, bars 95% intervals. `sparsity` is where the slider begins.
    """
    sparse = results[results["rewind_epoch"].notna()]
    sparsities = sorted(sparse["sparsity"].unique())
    methods = [m for m in SYMBOLS if m in set(sparse["method"])]
    figure = blank("rewind epoch k (0 is the init)", "test accuracy, %")
    titles = []
    for s in sparsities:
        at = sparse[sparse["sparsity"] == s]
        titles.append(_grid_title(at, s))
        for method in methods:
            runs = at[at["method"] == method].groupby("rewind_epoch")["test_accuracy"]
            points = {int(k): interval(100 * values) for k, values in runs}
            figure.add_scatter(
                x=list(points),
                y=[mean for mean, _, _ in points.values()],
                error_y=bars([high - mean for mean, _, high in points.values()]),
                name=METHOD_NAMES[method],
                mode="lines+markers",
                line_color=COLOURS[method],
                marker=dict(symbol=SYMBOLS[method], size=11),
            )
    dense = 100 * results.loc[results["method"] == "dense", "test_accuracy"].mean()
    if np.isfinite(dense):
        figure.add_hline(dense, line=dict(color=COLOURS["dense"], dash="dash"))
    first = sparsities.index(sparsity) if sparsity in sparsities else 0
    add_slider(figure, [f"{s:.0%}" for s in sparsities], titles, first, "sparsity ")
    return figure


def _grid_title(cells: pd.DataFrame, sparsity: float) -> str:
    """What the figure shows at one sparsity, computed: the share of the gap that π closes."""
    below = f"mean of {cells['seed'].nunique()} pairs, bars: 95% intervals; dashed: dense"
    if not {"lth", "naive", "permuted"} <= set(cells["method"]):
        return f"{sparsity:.0%} sparsity<br><sup>{below}</sup>"
    if not has_gap(cells, sparsity):
        return (
            f"At {sparsity:.0%} sparsity no gap between naive and LTH is to be seen"
            f"<br><sup>{below}; the gap is over k ≥ 1</sup>"
        )
    return (
        f"At {sparsity:.0%} sparsity, permuting the mask closes "
        f"{gap_closed(cells, 'permuted', sparsity):.0%} of the gap between naive and LTH"
        f"<br><sup>{below}; the share is over k ≥ 1</sup>"
    )


def gain_by_rewind(results: pd.DataFrame) -> go.Figure:
    """What π gains over naive against the rewind epoch; a panel a sparsity."""
    cells = paired_difference(results, "permuted", "naive")
    sparsities = sorted(cells["sparsity"].unique())
    figure = make_subplots(
        1,
        len(sparsities),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[f"S = {s:.0%}" for s in sparsities],
    )
    for column, s in enumerate(sparsities, 1):
        at = cells[cells["sparsity"] == s]
        figure.add_scatter(
            x=at["rewind_epoch"],
            y=at["difference"],
            error_y=bars(at["high"] - at["difference"]),
            showlegend=False,
            mode="lines+markers",
            line_color=COLOURS["permuted"],
            marker=dict(symbol=SYMBOLS["permuted"], size=10),
            row=1,
            col=column,
        )
    figure.add_hline(0, line=dict(color=COLOURS["naive"], width=2))
    lay_out(figure, "rewind epoch k", "")
    figure.update_layout(margin_t=120)
    figure.update_yaxes(title="permuted − naive, pp", col=1)
    later = cells[cells["rewind_epoch"] >= 1]["difference"]
    figure.update_layout(
        title=f"Permuting the mask gains {later.min():+.1f} to {later.max():+.1f} pp over naive "
        f"(k ≥ 1)<br><sup>paired differences of test accuracy, {cells['n'].min()} pairs, bars: "
        "95% intervals</sup>"
    )
    return figure


def accuracy_by_budget(table: pd.DataFrame) -> go.Figure:
    """Test accuracy against the rewind epoch; a panel a budget.

    table: as `stages.budgets.table` gives it. Points are means over the pairs, bars 95% intervals.
    """
    kinds = list(dict.fromkeys(table["budget"]))
    figure = make_subplots(
        1,
        len(kinds),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[_budget_title(table, kind) for kind in kinds],
    )
    falls = {}
    for column, kind in enumerate(kinds, 1):
        at = table[table["budget"] == kind]
        for method in (m for m in SYMBOLS if m in set(at["method"])):
            runs = at[at["method"] == method].groupby("rewind_epoch")["test_accuracy"]
            points = {int(k): interval(100 * values) for k, values in runs}
            means = [mean for mean, _, _ in points.values()]
            falls[kind, method] = means[-1] - means[0]
            figure.add_scatter(
                x=list(points),
                y=means,
                error_y=bars([high - mean for mean, _, high in points.values()]),
                name=METHOD_NAMES[method],
                showlegend=column == 1,
                mode="lines+markers",
                line_color=COLOURS[method],
                marker=dict(symbol=SYMBOLS[method], size=11),
                row=1,
                col=column,
            )
    lay_out(figure, "rewind epoch k", "")
    figure.update_layout(margin_t=120)
    figure.update_yaxes(title="test accuracy, %", col=1)
    first, last = min(table["rewind_epoch"]), max(table["rewind_epoch"])
    said = ", ".join(f"{falls[kind, 'naive']:+.1f} pp with {kind}" for kind in kinds)
    figure.update_layout(
        title=f"Naive from k = {first} to k = {last}: {said}<br><sup>mean of "
        f"{table['seed'].nunique()} pairs, bars: 95% intervals</sup>"
    )
    return figure


def _budget_title(table: pd.DataFrame, kind: str) -> str:
    epochs = table[table["budget"] == kind]["epochs"]
    low, high = epochs.min(), epochs.max()
    return kind if low == high else f"{kind}: {high} to {low} epochs"


def learning_curves(study: Study) -> pd.DataFrame:
    """Training losses at the closer look's cell: method, seed, epoch (from 1), loss (nats)."""
    s, rows = study.settings, []
    look = s.closer_look
    for method in ("dense", *s.sparse.methods):
        for seed in s.pairs:
            if method == "dense":
                node = dense.net(s, "B", seed)
            else:
                node = sparse.one(s, method, look.sparsity, look.rewind_epoch, seed)
            losses = study.record(node)["train_losses"]
            rows += [
                {"method": method, "seed": seed, "epoch": epoch, "loss": loss}
                for epoch, loss in enumerate(losses, 1)
            ]
    return pd.DataFrame(rows)


def losses_by_epoch(table: pd.DataFrame) -> go.Figure:
    """Mean training loss against the epoch, a line per method, thin lines the pairs."""
    figure = blank("epoch", "training loss, nats")
    last = {}
    for method in (m for m in ("dense", *SYMBOLS) if m in set(table["method"])):
        at = table[table["method"] == method]
        for _, one in at.groupby("seed"):
            figure.add_scatter(
                x=one["epoch"],
                y=one["loss"],
                mode="lines",
                line=dict(color=COLOURS[method], width=1),
                opacity=0.3,
                showlegend=False,
                hoverinfo="skip",
            )
        mean = at.groupby("epoch")["loss"].mean()
        last[method] = mean.iloc[-1]
        figure.add_scatter(
            x=mean.index,
            y=mean,
            mode="lines+markers",
            name="dense B" if method == "dense" else METHOD_NAMES[method],
            line=dict(color=COLOURS[method], width=3),
            marker=dict(symbol=SYMBOLS.get(method, "circle-open"), size=8),
        )
    said = ", ".join(f"{method} {loss:.2f}" for method, loss in last.items())
    figure.update_layout(
        title=f"Training loss in the last epoch: {said}"
        f"<br><sup>thin: the {table['seed'].nunique()} pairs, thick: their mean</sup>"
    )
    return figure
