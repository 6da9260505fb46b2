"""Notebook 07: do permuted tickets find one solution, or many?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from rebasin_utils.chapters import published
from rebasin_utils.chapters.chapter import Chapter, Picture, looking_closer
from rebasin_utils.chapters.evidence import COLUMNS, by_sparsity, interval, on_images, row
from rebasin_utils.chapters.judgement import MARGIN
from rebasin_utils.chapters.style import COLOURS, METHOD_NAMES, SYMBOLS, bars, blank, lay_out
from rebasin_utils.study.stages import diversity, segment
from rebasin_utils.study.stages import plane as through_three
from rebasin_utils.study.study import Study


class Modes(Chapter):
    notebook = "07-same-basin-other-modes"
    stages = ("dense", "imp", "sparse", "diversity", "segment", "plane")

    def studies(self, studies: Sequence[Study]) -> list[Study]:
        return looking_closer(studies)

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        for study in self.studies(studies):
            name, table = study.settings.name, diversity.table(study)
            yield Picture(f"{name}-ensembles", ensembles(table), table)
            table = barriers_of_runs(study)
            yield Picture(f"{name}-modes", barriers_by_sparsity(table), table)
            for node in study.nodes("plane"):
                metrics = study.record(node)["metrics"]
                table = through_three.table(metrics)
                yield Picture(f"{name}-plane", plane(metrics), table)
                yield Picture(f"{name}-plane-surface", plane_surface(metrics), table)

    def verdicts(self, studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
        for study in self.studies(studies):
            yield f"{study.settings.name}, ensembles", of_ensembles(study)
            yield f"{study.settings.name}, one mode or two", of_modes(study)


MODES = Modes()


def ensembles(table: pd.DataFrame) -> go.Figure:
    """What an ensemble gains over its members, against how often two members disagree.

    table: as `diversity.table` gives it. For every method an open mark at the members' mean
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


#: The paths between two sparse nets with one mask: their names and colours.
_SAME_MASK = {
    "lth-permuted": ("π(LTH) to permuted", COLOURS["permuted"], "diamond"),
    "lth-naive": ("LTH to naive", COLOURS["naive"], "square"),
}


def barriers_of_runs(study: Study) -> pd.DataFrame:
    """Barriers between LTH and a run on B with the same mask, from the closer look's rewind epoch.

    As merged, or with the batch norms' statistics recomputed where there are batch norms.

    Returns:
        kind (`lth-permuted`, `lth-naive`), seed, sparsity, loss (nats), error (pp).
    """
    table = segment.barriers(study)
    correction = "bn_reset" if "bn_reset" in set(table["correction"]) else "none"
    table = table[
        table["kind"].isin(_SAME_MASK)
        & (table["rewind_epoch"] == study.settings.closer_look.rewind_epoch)
        & (table["correction"] == correction)
    ]
    return table[["kind", "seed", "sparsity", "loss", "error"]].reset_index(drop=True)


def barriers_by_sparsity(table: pd.DataFrame) -> go.Figure:
    """Error barriers between two sparse nets with one mask against the sparsity, every pair.

    table: as `barriers_of_runs` gives it. Large marks are means, bars 95% intervals, small marks
    the pairs.
    """
    figure = blank("sparsity, %", "error barrier, pp")
    means = {}
    for kind, (name, colour, symbol) in _SAME_MASK.items():
        at = table[table["kind"] == kind]
        points = {s: interval(each) for s, each in at.groupby("sparsity")["error"]}
        means[kind] = [mean for mean, _, _ in points.values()]
        figure.add_scatter(
            x=100 * at["sparsity"],
            y=at["error"],
            mode="markers",
            marker=dict(symbol=symbol, size=6, color=colour, opacity=0.4),
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_scatter(
            x=[100 * s for s in points],
            y=means[kind],
            error_y=bars([high - mean for mean, _, high in points.values()]),
            mode="lines+markers",
            name=name,
            line_color=colour,
            marker=dict(symbol=symbol, size=12),
        )
    figure.update_yaxes(rangemode="tozero")
    low, high = ({k: f(v) for k, v in means.items()} for f in (min, max))
    figure.update_layout(
        title=f"Barrier π(LTH) to permuted: {low['lth-permuted']:.1f} to "
        f"{high['lth-permuted']:.1f} pp; LTH to naive: {low['lth-naive']:.1f} to "
        f"{high['lth-naive']:.1f} pp<br><sup>test error; small marks: the "
        f"{table['seed'].nunique()} pairs, large: their mean, bars: 95% intervals</sup>"
    )
    return figure


def of_modes(study: Study) -> pd.DataFrame:
    """The claims about the mode that a permuted run ends in (the paper's Section 4.2, the poster).

    Judged from the barriers between nets with the same mask, at every sparsity.
    """
    barrier = barriers_of_runs(study).set_index(["sparsity", "seed"])
    of_kind = {kind: at["error"] for kind, at in barrier.groupby("kind")}
    away, near = of_kind["lth-naive"], of_kind["lth-permuted"]
    rows = [
        row(
            "permuted ends nearer to π(LTH) than naive does to LTH",
            "so its Figure 4b",
            f"barrier lower by, pp{on_images(study)}: ",
            by_sparsity(away - near),
        ),
        row(
            f"permuted and π(LTH) are of one mode: no barrier of {MARGIN:g} pp between them",
            "“in same basin, but different modes”",
            f"barrier with its sign changed, pp{on_images(study)}: ",
            by_sparsity(-near),
            "no worse",
        ),
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def plane(metrics: Mapping[str, Any], quantity: str = "accuracy") -> go.Figure:
    """The map of accuracy (or loss) on the plane through three nets, as contours.

    metrics: as `stages.plane` stores it.
    """
    label = "direction of π(A), dense, from there"
    figure = blank("from π(LTH) (0) to permuted (1)", label)
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
        title=_plane_title(metrics, quantity),
    )
    return figure


def plane_surface(metrics: Mapping[str, Any], quantity: str = "accuracy") -> go.Figure:
    """The same map as a surface to be turned about."""
    figure = go.Figure()
    figure.add_surface(
        x=metrics["ticks"], y=metrics["ticks"], z=_heights(metrics, quantity), **_scale(quantity)
    )
    lay_out(figure, "", "")
    axes = dict(xaxis_title="π(LTH) → permuted", yaxis_title="→ π(A), dense")
    figure.update_layout(
        height=640,
        margin_b=20,
        scene=dict(
            **axes,
            zaxis_title=_scale(quantity)["colorbar_title"],
            camera_eye=dict(x=-1.4, y=-1.6, z=1.1),
            aspectratio=dict(x=1.1, y=1.1, z=0.7),
        ),
        title=_plane_title(metrics, quantity),
    )
    return figure


_PLANE_SYMBOLS = ("square", "diamond", "circle", "cross")


def _heights(metrics: Mapping[str, Any], quantity: str) -> np.ndarray:
    values = np.array(metrics[quantity], dtype=float)
    return np.round(100 * values, 2) if quantity == "accuracy" else np.log10(values).round(3)


def _scale(quantity: str) -> dict[str, Any]:
    title = "test accuracy, %" if quantity == "accuracy" else "log₁₀ test loss"
    return dict(colorscale="Viridis", reversescale=quantity != "accuracy", colorbar_title=title)


def _plane_title(metrics: Mapping[str, Any], quantity: str) -> str:
    ticks = np.array(metrics["ticks"])
    on_axis = np.array(metrics[quantity], dtype=float)[np.abs(ticks).argmin()]
    between = on_axis[(ticks >= 0) & (ticks <= 1)]
    worst = f"{100 * between.min():.1f}%" if quantity == "accuracy" else f"{between.max():.2f} nats"
    never = "never below" if quantity == "accuracy" else "never above"
    return (
        f"From π(LTH) to permuted: {never} {worst}<br><sup>test {quantity} on the plane through "
        "three nets of one pair; the third is π(A) before pruning</sup>"
    )


def of_ensembles(study: Study) -> pd.DataFrame:
    """The claims about ensembles at the settings' cell (the paper's Table 1).

    The paper's column is ResNet20×4 for a study of CIFAR-100, else ResNet20×1 on CIFAR-10.

    n counts ensembles that share no net. The paper does not say which variant of the Jensen–Shannon
    divergence it has, so only the order of the methods is compared; ours is in nats.
    """
    ours = diversity.table(study).pivot(index="seed", columns="method")
    dataset = "CIFAR-100" if study.settings.data.source == "cifar100" else "CIFAR-10"
    table = published.table("icml_table1_diversity")
    table = table[table["dataset"] == dataset].set_index("method")
    net = f"ResNet20×{table['width'].iloc[0]}"
    name = {"lth": "LTH", "imp": "IMP"}
    claims = (
        ("permuted runs disagree more often than LTH runs", "disagreement", "permuted", "lth", 100),
        ("an ensemble gains more over its members with permuted than with LTH runs", "gain",
         "permuted", "lth", 1),
        ("the ensemble of permuted runs beats that of LTH runs", "ensemble", "permuted", "lth", 1),
        ("the ensemble of permuted runs beats that of naive runs", "ensemble", "permuted", "naive",
         1),
        ("the ensemble of IMP nets is the best", "ensemble", "imp", "permuted", 1),
        ("permuted runs disagree more often than IMP nets", "disagreement", "permuted", "imp", 100),
        ("IMP nets diverge more (100 × JS) than permuted runs", "js", "imp", "permuted", 100),
        ("permuted runs diverge more (100 × JS) than LTH runs", "js", "permuted", "lth", 100),
    )  # fmt: skip
    columns = {"ensemble": "ensemble_acc", "disagreement": "disagreement", "js": "js"}
    rows = []
    for claim, metric, first, second, percent in claims:
        values, quoted = [], []
        for method in (first, second):
            at, theirs = (
                ours.xs(method, axis=1, level="method"),
                table.loc[name.get(method, method)],
            )
            gain = metric == "gain"
            values.append(at["ensemble"] - at["accuracy"] if gain else percent * at[metric])
            quoted.append(
                theirs["ensemble_acc"] - theirs["test_acc_mean"]
                if gain
                else percent * theirs[columns[metric]]
            )
        means = f"{values[0].mean():.1f} against {values[1].mean():.1f}"
        paper = f"{net}: {quoted[0]:.1f} against {quoted[1]:.1f}"
        rows.append(row(claim, paper, "", {means: values[0] - values[1]}))
    return pd.DataFrame(rows, columns=COLUMNS)
