"""The figures of the main argument, for the notebooks, the README and `figures/`.

A figure takes a tidy table and computes nothing but means and intervals.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rebasin_utils.style import COLOURS, PATHS, SYMBOLS, add_slider, bars, blank, lay_out
from rebasin_utils.tables import METHOD_NAMES, gap_closed, interval, paired_difference


def accuracy_by_rewind(results: pd.DataFrame, sparsity: float = 0.9) -> go.Figure:
    """Test accuracy against the rewind epoch, a line per method, a slider for the sparsity.

    Points are means over the pairs, bars 95 % intervals. `sparsity` is where the slider begins.
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
    below = f"mean of {cells['seed'].nunique()} pairs, bars: 95 % intervals; dashed: dense"
    if not {"lth", "naive", "permuted"} <= set(cells["method"]):
        return f"{sparsity:.0%} sparsity<br><sup>{below}</sup>"
    return (
        f"At {sparsity:.0%} sparsity, permuting the mask closes "
        f"{gap_closed(cells, 'permuted', sparsity):.0%} of the gap between naive and LTH"
        f"<br><sup>{below}; the share is over k ≥ 1</sup>"
    )


def gain_by_rewind(results: pd.DataFrame) -> go.Figure:
    """Gain of π, and of a random π, over naive against the rewind epoch; a panel a sparsity."""
    sparsities = sorted(results.loc[results["rewind_epoch"].notna(), "sparsity"].unique())
    figure = make_subplots(
        1,
        len(sparsities),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[f"S = {s:.0%}" for s in sparsities],
    )
    mean = {}
    for method in ("permuted", "random_permutation"):
        cells = paired_difference(results, method, "naive")
        mean[method] = cells.loc[cells["rewind_epoch"] >= 1, "difference"].mean()
        for column, s in enumerate(sparsities, 1):
            at = cells[cells["sparsity"] == s]
            figure.add_scatter(
                x=at["rewind_epoch"],
                y=at["difference"],
                error_y=bars(at["high"] - at["difference"]),
                name=METHOD_NAMES[method],
                showlegend=column == 1,
                mode="lines+markers",
                line_color=COLOURS[method],
                marker=dict(symbol=SYMBOLS[method], size=10),
                row=1,
                col=column,
            )
    figure.add_hline(0, line=dict(color=COLOURS["naive"], width=2))
    lay_out(figure, "rewind epoch k", "")
    figure.update_layout(margin_t=120)
    figure.update_yaxes(title="gain over naive, pp", col=1)
    figure.update_layout(
        title=f"Over naive, the matched π gains {mean['permuted']:+.1f} pp, a random one "
        f"{mean['random_permutation']:+.1f} pp<br><sup>paired differences to naive, 95 % "
        "intervals; the means are over k ≥ 1</sup>"
    )
    return figure


def paths(table: pd.DataFrame, quantity: str = "accuracy", repaired: bool = False) -> go.Figure:
    """Accuracy (or loss) along the path between A and B, for every kind of path in the table.

    Args:
        table: columns path, alpha, seed, accuracy, loss. Lines are means over pairs, thin lines
            pairs.
        repaired: with the paths on which the nets were repaired.
    """
    percent = 100 if quantity == "accuracy" else 1
    label = "test accuracy, %" if quantity == "accuracy" else "test loss, nats"
    figure = blank("α: from A (0) to B (1)", label)
    middle = {}
    for kind, (name, colour, dash) in PATHS.items():
        rows = table[table["path"] == kind]
        if rows.empty or (kind.endswith("repair") and not repaired):
            continue
        for _, one in rows.groupby("seed"):
            figure.add_scatter(
                x=one["alpha"],
                y=percent * one[quantity],
                mode="lines",
                line=dict(color=colour, width=1, dash=dash),
                opacity=0.35,
                showlegend=False,
                hoverinfo="skip",
            )
        mean = percent * rows.groupby("alpha")[quantity].mean()
        middle[kind] = mean.loc[0.5] if 0.5 in mean.index else float("nan")
        figure.add_scatter(
            x=mean.index,
            y=mean,
            mode="lines+markers",
            name=name,
            line=dict(color=colour, dash=dash, width=3),
            marker_size=9,
        )
    unit = " %" if quantity == "accuracy" else ""
    before, after = middle.get("unmatched"), middle.get("matched")
    figure.update_layout(
        title=f"Halfway between the nets: {before:.1f}{unit} as trained, {after:.1f}{unit} after "
        f"matching<br><sup>test {quantity}; thin: the {table['seed'].nunique()} pairs, thick: "
        "their mean</sup>"
    )
    return figure


def correlations(before: np.ndarray, after: np.ndarray, group: str) -> go.Figure:
    """Unit-by-unit correlation of the two nets in one group, before and after matching."""
    figure = make_subplots(1, 2, subplot_titles=["A against B", "π(A) against B"])
    for column, z in enumerate((before, after), 1):
        figure.add_heatmap(
            z=np.round(100 * z).astype(np.int8),
            zmin=-100,
            zmax=100,
            colorscale=[[0, "#D55E00"], [0.5, "white"], [1, "#0072B2"]],
            colorbar_title="corr., %",
            showscale=column == 2,
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed")
    lay_out(figure, "unit of A", "unit of B")
    figure.update_yaxes(title="", col=2)
    figure.update_layout(margin_t=120)
    mean = np.diagonal(before).mean(), np.diagonal(after).mean()
    figure.update_layout(
        title=f"Matching finds each unit's counterpart: mean correlation {mean[0]:.2f} → "
        f"{mean[1]:.2f}<br><sup>group {group}; the diagonal pairs units of the same index</sup>"
    )
    return figure


def trajectory(rounds: pd.DataFrame) -> go.Figure:
    """Test accuracy of the net after every pruning round, against the weights that are left.

    rounds: columns seed, sparsity, test_accuracy.
    """
    figure = blank("weights left, % of the prunable", "test accuracy, %")
    for seed, one in rounds.groupby("seed"):
        figure.add_scatter(
            x=100 * (1 - one["sparsity"]),
            y=100 * one["test_accuracy"],
            mode="lines+markers",
            name=f"pair {seed}",
            opacity=0.8,
            marker_size=7,
        )
    figure.update_xaxes(type="log", autorange="reversed")
    figure.update_xaxes(
        tickvals=[100, 50, 20, 10, 5, 3], ticktext=["100", "50", "20", "10", "5", "3"]
    )
    first = 100 * rounds.loc[rounds["sparsity"] == 0, "test_accuracy"].mean()
    last = rounds["sparsity"].max()
    end = 100 * rounds.loc[rounds["sparsity"] == last, "test_accuracy"].mean()
    figure.update_layout(
        title=f"A fifth at a time, {last:.0%} of the weights go, and {first - end:.1f} pp of "
        f"accuracy with them<br><sup>iterative magnitude pruning of A; {first:.1f} % dense</sup>"
    )
    return figure


def densities(reports: Mapping[float, pd.DataFrame]) -> go.Figure:
    """Share of the weights kept in every layer, with a slider for the sparsity.

    reports: sparsity -> the table of `masks.report`, its last row the whole mask.
    """
    figure = blank("layer", "weights kept, %")
    titles = []
    for sparsity, report in reports.items():
        layers = report.iloc[:-1]
        figure.add_bar(
            x=layers["layer"],
            y=100 * layers["density"],
            marker_color=COLOURS["imp"],
            showlegend=False,
        )
        least, most = layers["density"].min(), layers["density"].max()
        titles.append(
            f"At {sparsity:.0%} sparsity the layers keep between {least:.1%} and {most:.1%}"
            "<br><sup>one global threshold on the magnitude</sup>"
        )
    add_slider(figure, [f"{s:.0%}" for s in reports], titles, 0, "sparsity ")
    return figure


def overlaps(table: pd.DataFrame) -> go.Figure:
    """How much of A's ticket is in B's, before and after π, against chance.

    table: columns sparsity, seed, kind (A's mask, π(A's mask), random π), overlap.
    """
    figure = blank("sparsity, %", "weights shared with B's own ticket, %")
    style = {
        "mask": ("A's mask as it is", "naive"),
        "permuted": ("π(A's mask)", "permuted"),
        "random_permutation": ("random π(A's mask)", "random_permutation"),
    }
    for kind, (name, method) in style.items():
        rows = table[table["kind"] == kind].groupby("sparsity")["overlap"]
        points = {s: interval(100 * values) for s, values in rows}
        figure.add_scatter(
            x=[100 * s for s in points],
            y=[mean for mean, _, _ in points.values()],
            error_y=bars([high - mean for mean, _, high in points.values()]),
            mode="lines+markers",
            name=name,
            line_color=COLOURS[method],
            marker=dict(symbol=SYMBOLS[method], size=11),
        )
    sparsities = sorted(table["sparsity"].unique())
    figure.add_scatter(
        x=[100 * s for s in sparsities],
        y=[100 * (1 - s) for s in sparsities],
        mode="lines",
        name="uniformly random mask",
        line=dict(color=COLOURS["dense"], dash="dash"),
    )
    mean = table.groupby(["sparsity", "kind"])["overlap"].mean()
    at = max(sparsities)
    figure.update_layout(
        title=f"At {at:.0%} sparsity π(A's ticket) shares {mean[at, 'permuted']:.1%} with B's, "
        f"A's ticket itself {mean[at, 'mask']:.1%}<br><sup>share of the kept weights "
        "that B's own pruning keeps too; 95 % intervals</sup>"
    )
    return figure
