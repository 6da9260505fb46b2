"""Notebook 13: does a mask serve another net on other data?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rebasin_utils.chapters import published
from rebasin_utils.chapters.chapter import Chapter, Picture
from rebasin_utils.chapters.evidence import COLUMNS, interval, row
from rebasin_utils.chapters.judgement import MARGIN
from rebasin_utils.chapters.style import COLOURS, SYMBOLS, bars, lay_out
from rebasin_utils.errors import InputError
from rebasin_utils.study.stages import imp, reuse
from rebasin_utils.study.study import Study

#: What is put on B, as a reader sees it, and the method whose colour and marker it has.
STARTS = {
    "own": ("B's own ticket", "lth"),
    "permuted": ("π(mask of A)", "permuted"),
    "permuted_by_source": ("π(mask of A), π by A's data", "random_permutation"),
    "naive": ("mask of A", "naive"),
    "random_mask": ("random mask", "random_mask"),
}


class OtherData(Chapter):
    notebook = "13-mask-on-other-data"
    stages = ("reuse",)

    def studies(self, studies: Sequence[Study]) -> list[Study]:
        found = [study for study in studies if study.nodes("reuse")]
        if not found:
            raise InputError(
                "no study of this preset puts a mask on other data: choose another, e.g. pocket, "
                "or set reuse.source"
            )
        return found

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        table = accuracies(self.studies(studies))
        name = "-".join(study.settings.name for study in self.studies(studies)[:1])
        yield Picture(f"{name}-other-data", by_rewind(table), table)

    def verdicts(self, studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
        for study in self.studies(studies):
            yield study.settings.name, of_reuse(study)


OTHER_DATA = OtherData()


def accuracies(studies: Sequence[Study]) -> pd.DataFrame:
    """Test accuracy in % on the target, of every run.

    Returns:
        source, target, start (as in `STARTS`), sparsity, rewind_epoch, seed, accuracy.
    """
    tables = []
    for study in studies:
        s, runs = study.settings, reuse.table(study)
        runs = runs.assign(
            source=s.reuse.source, target=s.data.source, accuracy=100 * runs["test_accuracy"]
        )
        tables.append(runs.drop(columns="test_accuracy"))
    return pd.concat(tables, ignore_index=True)


def by_rewind(table: pd.DataFrame) -> go.Figure:
    """Accuracy on the target against the rewind epoch, a panel a direction, at the least sparsity.

    table: as `accuracies` gives it. Points are means over the pairs, bars 95% intervals.
    """
    sparsity = table["sparsity"].min()
    table = table[table["sparsity"] == sparsity]
    ways = list(table[["source", "target"]].drop_duplicates().itertuples(index=False))
    figure = make_subplots(
        1,
        len(ways),
        horizontal_spacing=0.1,
        subplot_titles=[f"{way.source}<br>→ {way.target}" for way in ways],
    )
    for column, way in enumerate(ways, 1):
        at = table[(table["source"] == way.source) & (table["target"] == way.target)]
        for start, (name, like) in STARTS.items():
            runs = at[at["start"] == start].groupby("rewind_epoch")["accuracy"]
            points = {int(k): interval(values) for k, values in runs}
            figure.add_scatter(
                x=list(points),
                y=[mean for mean, _, _ in points.values()],
                error_y=bars([high - mean for mean, _, high in points.values()]),
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                mode="lines+markers",
                line_color=COLOURS[like],
                marker=dict(symbol=SYMBOLS[like], size=10),
                row=1,
                col=column,
            )
    lay_out(figure, "rewind epoch k of B", "")
    figure.update_yaxes(title="test accuracy, %", col=1)
    last = table[table["rewind_epoch"] == table["rewind_epoch"].max()]
    pairs = last.pivot_table("accuracy", ["source", "target", "seed"], "start", sort=False)
    gains = (pairs["permuted"] - pairs["naive"]).groupby(["source", "target"], sort=False)
    said = " and ".join("{:+.1f} [{:.1f}, {:.1f}]".format(*interval(gain)) for _, gain in gains)
    figure.update_layout(
        margin_t=135,
        title=f"On other data π adds {said} pp to the mask (k = {last['rewind_epoch'].max()})"
        f"<br><sup>{sparsity:.0%} sparsity, the classifier dense; mean of "
        f"{table['seed'].nunique()} pairs, bars and brackets: 95% intervals</sup>",
    )
    return figure


def kept_inputs(study: Study, seed: int = 0) -> dict[str, np.ndarray]:
    """How many weights of each input pixel A's ticket and B's own keep, as shares, by their data.

    Returns:
        "A's ticket" and "B's own ticket" -> an array [height, width], a mean over the channels.
    """
    s = study.settings
    sparsity = s.sparse.sparsities[0]
    tickets = {
        f"A's ticket, {s.reuse.source}": imp.ticket(reuse.source(s), "A", seed, sparsity),
        f"B's own ticket, {s.data.source}": imp.ticket(s, "B", seed, sparsity),
    }
    shape = study.split("test").shape
    kept = {}
    for name, node in tickets.items():
        first = next(iter(study.state(node, "mask").values()))
        kept[name] = first.float().mean(0).view(shape).mean(0).numpy()
    return kept


def input_maps(kept: Mapping[str, np.ndarray]) -> go.Figure:
    """Share of the first layer's weights that tickets keep, pixel by pixel, side by side."""
    figure = make_subplots(1, len(kept), horizontal_spacing=0.12, subplot_titles=list(kept))
    top = max(share.max() for share in kept.values())
    for column, share in enumerate(kept.values(), 1):
        figure.add_heatmap(
            z=(100 * share).round(1),
            zmin=0,
            zmax=round(100 * float(top), 1),
            colorscale=[[0, "white"], [1, "#0072B2"]],
            colorbar_title="kept, %",
            showscale=column == len(kept),
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed")
    lay_out(figure, "pixel", "")
    first, second = (share.ravel() for share in kept.values())
    alike = np.corrcoef(first, second)[0, 1]
    figure.update_layout(
        margin_t=120,
        title="Where the tickets look: the maps of kept weights correlate by "
        f"{alike:.2f}<br><sup>share of the first layer's weights that are kept, by input pixel; "
        "no permutation of units moves a pixel</sup>",
    )
    return figure


def of_reuse(study: Study) -> pd.DataFrame:
    """The claims about a mask on other data, at every rewind epoch of the sparsest masks."""
    runs = accuracies([study])
    runs = runs[runs["sparsity"] == runs["sparsity"].max()]
    at = runs.pivot(index="seed", columns=["start", "rewind_epoch"], values="accuracy")
    epochs = sorted(runs["rewind_epoch"].unique())
    trained = [k for k in epochs if k]

    def less(first: str, second: str, ks: Sequence[int]) -> dict[str, pd.Series]:
        return {f"k={k}": at[first, k] - at[second, k] for k in ks}

    rows = []
    for text, first, second, kind, ks, said in (
        (
            "π(A's mask) serves B better on other data than the mask as it is (k ≥ 1)",
            "permuted", "naive", "more", trained, _published(),
        ),
        (
            "A's mask of other data serves B better than a random mask of its layer densities",
            "naive", "random_mask", "more", epochs, "not in the paper",
        ),
        (
            "B's own ticket, drawn on B's data, is better than π(A's mask)",
            "own", "permuted", "more", epochs, "not in the paper",
        ),
        (
            f"π that was matched on A's data does no worse, by {MARGIN:g} pp (k ≥ 1)",
            "permuted_by_source", "permuted", "no worse", trained, "not in the paper",
        ),
    ):  # fmt: skip
        if ks:
            what = f"{first} − {second}, pp: "
            rows.append(row(text, said, what, less(first, second, ks), kind))
    return pd.DataFrame(rows, columns=COLUMNS)


def _published() -> str:
    """The rebuttal's table; which data the masks came from, it does not say."""
    table = published.table("rebuttal_table16_svhn_mask_reuse")
    means = table.pivot(index=["sparsity", "rewind_epoch"], columns="method", values="mean")
    gain = means["permuted"] - means["naive"]
    return (
        f"ResNet20×1, SVHN: {gain.min():+.2f} … {gain.max():+.2f} pp, above zero in "
        f"{(gain > 0).sum()} of {len(gain)} cells"
    )
