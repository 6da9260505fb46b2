"""Notebook 03: what does a winning ticket look like, and whose is it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from rebasin_utils.chapters.chapter import Chapter, Picture, with_sparse_runs
from rebasin_utils.chapters.evidence import COLUMNS, by_sparsity, interval, row
from rebasin_utils.chapters.judgement import Kind
from rebasin_utils.chapters.style import COLOURS, SYMBOLS, add_slider, bars, blank
from rebasin_utils.study.stages import imp
from rebasin_utils.study.stages import overlaps as of_tickets
from rebasin_utils.study.study import Study


class Ticket(Chapter):
    notebook = "03-drawing-the-ticket"
    stages = ("dense", "matching", "imp", "overlaps")

    def studies(self, studies: Sequence[Study]) -> list[Study]:
        return with_sparse_runs(studies)

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        for study in self.studies(studies):
            name = study.settings.name
            if len(study.settings.sparse.rewind_epochs) > 1:
                table = imp.trajectory(study)
                yield Picture(f"{name}-trajectory", trajectory(table), table)
            if study.nodes("overlaps"):
                table = of_tickets.table(study)
                yield Picture(f"{name}-overlaps", overlaps(table), table)

    def verdicts(self, studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
        for study in self.studies(studies):
            if study.nodes("overlaps"):
                yield f"{study.settings.name}, overlaps", of_overlaps(study)


TICKET = Ticket()


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
        f"accuracy with them<br><sup>iterative magnitude pruning of A; {first:.1f}% dense</sup>"
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
        "that B's own pruning keeps too; 95% intervals</sup>"
    )
    return figure


def of_overlaps(study: Study) -> pd.DataFrame:
    """The claims about how much of B's own ticket is in A's, over all sparsities."""
    table = of_tickets.table(study)
    shared = 100 * table.pivot_table("overlap", ["sparsity", "seed"], "kind")
    claims: tuple[tuple[str, str, str, Kind], ...] = (
        (
            "π(A's ticket) shares more with B's ticket than A's ticket does",
            "permuted", "mask", "more",
        ),
        (
            "a random permutation of A's ticket shares no more with B's than A's does, by 0.5 pp",
            "mask", "random_permutation", "no worse",
        ),
    )  # fmt: skip
    rows = []
    for claim, first, second, kind in claims:
        each = by_sparsity(shared[first] - shared[second])
        what = f"{first} − {second}, pp: "
        rows.append(row(claim, "not in the paper", what, each, kind))
    return pd.DataFrame(rows, columns=COLUMNS)
