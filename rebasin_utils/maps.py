"""Figures of where solutions lie in weight space: variance, barriers, width, ensembles, the plane.

Like `figures`, they take tidy tables (or a stored analysis' metrics) and compute no more than means
and intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rebasin_utils.style import COLOURS, PATHS, SYMBOLS, bars, blank, lay_out
from rebasin_utils.tables import METHOD_NAMES, interval

#: What was done to a merged net, and how it is drawn.
CORRECTIONS = {
    "none": ("as merged", COLOURS["naive"], "solid"),
    "bn_reset": ("batch norm reset", COLOURS["imp"], "dot"),
    "repair": ("REPAIR", COLOURS["permuted"], "dash"),
}

#: Two solutions of one net, in words.
SEGMENT_NAMES = {
    "dense-imp": "dense A to its IMP iterate",
    "dense-lth": "dense A to LTH",
}


def variance_collapse(table: pd.DataFrame) -> go.Figure:
    """Variance of every layer halfway between A and B, relative to the ends'.

    table: as `tables.variances` gives it. Lines are means over the pairs.
    """
    figure = blank("layer, from the input to the output", "variance relative to the ends")
    layers = list(dict.fromkeys(table["layer"]))
    mean = table.groupby(["path", "layer"], sort=False)["ratio"].mean()
    for kind, (name, colour, dash) in PATHS.items():
        if kind in mean.index:
            at = mean[kind].loc[layers]
            figure.add_scatter(
                x=layers,
                y=at,
                mode="lines+markers",
                name=name,
                line=dict(color=colour, dash=dash, width=3),
                marker_size=9,
            )
    figure.add_hline(1, line=dict(color=COLOURS["dense"], dash="dash"))
    figure.update_yaxes(rangemode="tozero")
    last, seeds = layers[-1], table["seed"].nunique()
    figure.update_layout(
        title=f"Variance left in the last hidden layer: {mean['unmatched', last]:.0%}, matched "
        f"{mean['matched', last]:.0%}, repaired {mean['matched_repair', last]:.0%}"
        f"<br><sup>halfway between the nets, on test images, mean of {seeds} pairs</sup>"
    )
    return figure


def barrier_by_sparsity(table: pd.DataFrame) -> go.Figure:
    """Error barriers between solutions of one net against the sparsity; a panel a kind of segment.

    table: as `tables.segments` gives it. Points are means over the pairs, bars 95 % intervals; the
    ends of LTH that started latest.
    """
    kinds = [kind for kind in SEGMENT_NAMES if kind in set(table["kind"])]
    figure = make_subplots(
        1,
        len(kinds),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[SEGMENT_NAMES[kind] for kind in kinds],
    )
    latest = table["rewind_epoch"].max()
    for column, kind in enumerate(kinds, 1):
        rows = table[table["kind"] == kind]
        if kind != "dense-imp":
            rows = rows[rows["rewind_epoch"] == latest]
        for correction, (name, colour, dash) in CORRECTIONS.items():
            at = rows[rows["correction"] == correction]
            points = {s: interval(each) for s, each in at.groupby("sparsity")["error"]}
            if points:
                figure.add_scatter(
                    x=[100 * s for s in points],
                    y=[mean for mean, _, _ in points.values()],
                    error_y=bars([high - mean for mean, _, high in points.values()]),
                    mode="lines+markers",
                    name=name,
                    showlegend=column == 1,
                    line=dict(color=colour, dash=dash),
                    marker_size=8,
                    row=1,
                    col=column,
                )
    lay_out(figure, "sparsity, %", "")
    figure.update_yaxes(title="error barrier, pp", col=1)
    figure.update_layout(margin_t=120)
    sparsest = table[
        (table["kind"] == "dense-imp") & (table["sparsity"] == table["sparsity"].max())
    ]
    mean = sparsest.groupby("correction")["error"].mean()
    figure.update_layout(
        title=f"Dense A to its sparsest IMP iterate: barrier {mean['none']:.1f} pp, "
        f"repaired {mean['repair']:.1f} pp<br><sup>barrier of the test error "
        f"(equation 3), {table['seed'].nunique()} pairs, bars: 95 % intervals"
        + (f"; LTH from k = {latest}" if len(kinds) > 1 else "")
        + "</sup>"
    )
    return figure


def midpoint_by_width(middles: pd.DataFrame) -> go.Figure:
    """Accuracy halfway between A and B against the width, for every kind of path.

    middles: the tables of `tables.midpoints` of studies that differ in their width, together.
    """
    figure = blank("width multiplier", "test accuracy halfway, %")
    for kind, (name, colour, dash) in PATHS.items():
        at = middles[middles["path"] == kind].sort_values("width")
        if len(at):
            figure.add_scatter(
                x=at["width"],
                y=at["mean"],
                error_y=bars(at["std"].fillna(0)),
                mode="lines+markers",
                name=name,
                line=dict(color=colour, dash=dash),
                marker_size=10,
            )
    _ticks(figure, middles["width"])
    best = middles[middles["path"] == "matched_repair"].set_index("width")["mean"]
    low, high = best.index.min(), best.index.max()
    figure.update_layout(
        title=f"Halfway between π(A) and B, repaired: {best[low]:.1f} % at width {low}, "
        f"{best[high]:.1f} % at width {high}<br><sup>mean of {middles['n'].min()} pairs, bars: one "
        "standard deviation</sup>"
    )
    return figure


def gaps_by_width(gaps: pd.DataFrame) -> go.Figure:
    """What π gains over naive, and what it lacks to LTH, against the width.

    gaps: width, gap (`permuted − naive` or `LTH − permuted`), difference, low, high (pp).
    """
    figure = blank("width multiplier", "difference of test accuracies, pp")
    styles = {"permuted − naive": "permuted", "LTH − permuted": "lth"}
    mean = {}
    for gap, method in styles.items():
        at = gaps[gaps["gap"] == gap].sort_values("width")
        mean[gap] = at.set_index("width")["difference"]
        figure.add_scatter(
            x=at["width"],
            y=at["difference"],
            error_y=bars(at["high"] - at["difference"]),
            mode="lines+markers",
            name=gap,
            line_color=COLOURS[method],
            marker=dict(symbol=SYMBOLS[method], size=11),
        )
    figure.add_hline(0, line=dict(color=COLOURS["dense"], dash="dash"))
    _ticks(figure, gaps["width"])
    low, high = gaps["width"].min(), gaps["width"].max()
    lacks = mean["LTH − permuted"]
    figure.update_layout(
        title=f"What permuting lacks to LTH: {lacks[low]:.1f} pp at width {low}, "
        f"{lacks[high]:.1f} pp at width {high}<br><sup>paired differences, bars: 95 % intervals"
        "</sup>"
    )
    return figure


def _ticks(figure: go.Figure, widths: pd.Series) -> None:
    values = sorted(widths.unique())
    figure.update_xaxes(type="log", tickvals=values, ticktext=[f"×{w}" for w in values])


def ensembles(table: pd.DataFrame) -> go.Figure:
    """What an ensemble gains over its members, against how often two members disagree.

    table: as `tables.ensembles` gives it. For every method an open mark at the members' mean
    accuracy and a full one at the ensemble's; means over the sources of the ticket.
    """
    figure = blank("disagreement of two members, % of test images", "test accuracy, %")
    mean = table.groupby("method").mean(numeric_only=True)
    for method in (m for m in ("dense", "imp", *SYMBOLS) if m in mean.index):
        at = mean.loc[method]
        figure.add_scatter(
            x=[100 * at["disagreement"]] * 2,
            y=[at["accuracy"], at["ensemble"]],
            mode="lines+markers",
            name=METHOD_NAMES[method],
            line=dict(color=COLOURS[method], width=3),
            marker=dict(size=[7, 15], color=COLOURS[method]),
        )
    gain = mean["ensemble"] - mean["accuracy"]
    figure.update_layout(
        title=f"An ensemble gains {gain['permuted']:+.1f} pp over its members if permuted, "
        f"{gain['lth']:+.1f} pp if LTH<br><sup>small mark: mean of the "
        f"{table['n'].max()} members, large: their ensemble; mean over "
        f"{table['seed'].nunique()} tickets</sup>"
    )
    return figure


def early_matching(table: pd.DataFrame) -> go.Figure:
    """Accuracy of the permuted run against the epoch of B that π was matched with.

    table: as `tables.early_matching` gives it. Bars are 95 % intervals over the pairs.
    """
    figure = blank("epoch of B that π was matched with", "test accuracy, %")
    epochs = sorted(table["match_epoch"].dropna().unique())
    means = {}
    for method in ("lth", "permuted", "naive"):
        rows = table[table["method"] == method]
        if method == "permuted":
            points = {e: interval(100 * v) for e, v in rows.groupby("match_epoch")["test_accuracy"]}
        else:
            whole = interval(100 * rows["test_accuracy"])
            points = {epochs[0]: whole, epochs[-1]: whole}
        means[method] = {e: mean for e, (mean, _, _) in points.items()}
        figure.add_scatter(
            x=[int(e) for e in points],
            y=list(means[method].values()),
            error_y=bars([high - mean for mean, _, high in points.values()]),
            mode="lines+markers",
            name=METHOD_NAMES[method],
            line=dict(color=COLOURS[method], dash="solid" if method == "permuted" else "dash"),
            marker=dict(symbol=SYMBOLS[method], size=11),
        )
    naive, whole = means["naive"][epochs[0]], means["permuted"][epochs[-1]]
    shares = {
        e: (mean - naive) / (whole - naive)
        for e, mean in means["permuted"].items()
        if e != epochs[-1]
    }
    best = max(shares, key=shares.get)
    figure.update_layout(
        title=f"Matched with B after {best} of {epochs[-1]} epochs, π keeps {shares[best]:.0%} of "
        f"its gain over naive<br><sup>{table['sparsity'].iloc[0]:.0%} sparsity; "
        f"{table['seed'].nunique()} pairs, bars: "
        "95 % intervals; naive and LTH need no matching</sup>"
    )
    return figure


def plane(metrics: Mapping[str, Any], quantity: str = "accuracy") -> go.Figure:
    """The map of accuracy (or loss) on the plane through three nets, as contours.

    metrics: as `analyses.plane` stores it.
    """
    label = "direction of π(A), dense, from there"
    figure = blank("from π(A), masked (0), to the permuted run's end (1)", label)
    figure.add_contour(
        x=metrics["ticks"],
        y=metrics["ticks"],
        z=_heights(metrics, quantity),
        ncontours=24,
        **_scale(quantity),
    )
    path = np.array(metrics["path"])
    figure.add_scatter(
        x=path[:, 0],
        y=path[:, 1],
        mode="lines+markers",
        name="training of the permuted run, projected",
        line=dict(color="black", width=2),
        marker_size=5,
    )
    for (name, (x, y, beside)), symbol in zip(
        metrics["models"].items(), _PLANE_SYMBOLS, strict=True
    ):
        away = f", {beside:.2f} beside the plane" if beside > 0.01 else ""
        figure.add_scatter(
            x=[x],
            y=[y],
            mode="markers",
            name=name + away,
            marker=dict(symbol=symbol, size=15, color="white", line=dict(color="black", width=2)),
        )
    figure.update_layout(
        height=640,
        legend=dict(orientation="h", y=-0.18),
        title=_plane_title(metrics),
    )
    return figure


def plane_surface(metrics: Mapping[str, Any], quantity: str = "accuracy") -> go.Figure:
    """The same map as a surface to be turned about."""
    figure = go.Figure()
    figure.add_surface(
        x=metrics["ticks"], y=metrics["ticks"], z=_heights(metrics, quantity), **_scale(quantity)
    )
    lay_out(figure, "", "")
    axes = dict(xaxis_title="π(A), masked → permuted run", yaxis_title="→ π(A), dense")
    figure.update_layout(
        height=640,
        margin_b=20,
        scene=dict(
            **axes,
            zaxis_title=_scale(quantity)["colorbar_title"],
            camera_eye=dict(x=-1.4, y=-1.6, z=1.1),
            aspectratio=dict(x=1.1, y=1.1, z=0.7),
        ),
        title=_plane_title(metrics),
    )
    return figure


def plane_table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """The data of the map: what (grid, path or a model's name), x, y, beside, accuracy, loss."""
    ticks = metrics["ticks"]
    rows = [
        ("grid", x, y, 0.0, accuracy, loss)
        for y, accuracies, losses in zip(ticks, metrics["accuracy"], metrics["loss"], strict=True)
        for x, accuracy, loss in zip(ticks, accuracies, losses, strict=True)
    ]
    rows += [("path", *where, None, None) for where in metrics["path"]]
    rows += [(name, *where, None, None) for name, where in metrics["models"].items()]
    return pd.DataFrame(rows, columns=["what", "x", "y", "beside", "accuracy", "loss"])


_PLANE_SYMBOLS = ("square", "diamond", "circle", "cross")


def _heights(metrics: Mapping[str, Any], quantity: str) -> np.ndarray:
    values = np.array(metrics[quantity], dtype=float)
    return np.round(100 * values, 2) if quantity == "accuracy" else np.log10(values).round(3)


def _scale(quantity: str) -> dict[str, Any]:
    title = "test accuracy, %" if quantity == "accuracy" else "log₁₀ test loss"
    return dict(colorscale="Viridis", reversescale=quantity != "accuracy", colorbar_title=title)


def _plane_title(metrics: Mapping[str, Any]) -> str:
    ticks, accuracy = np.array(metrics["ticks"]), np.array(metrics["accuracy"])
    row = accuracy[np.abs(ticks).argmin()]
    between = row[(ticks >= 0) & (ticks <= 1)]
    return (
        f"From π(A), masked, to the permuted run's end: never below {100 * between.min():.0f} %"
        "<br><sup>test accuracy on the plane through three nets; the "
        "third is π(A) before pruning</sup>"
    )
