"""Notebook 08: how much of B must be trained, and how many images seen, to know its basin?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rebasin_utils.chapters import published
from rebasin_utils.chapters.chapter import Chapter, Picture
from rebasin_utils.chapters.evidence import COLUMNS, interval, row
from rebasin_utils.chapters.judgement import MARGIN
from rebasin_utils.chapters.style import (
    COLOURS,
    METHOD_NAMES,
    SYMBOLS,
    bars,
    blank,
    lay_out,
)
from rebasin_utils.errors import InputError
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stages import early_matching as early
from rebasin_utils.study.stages import few_images
from rebasin_utils.study.study import Study


class AlignmentCost(Chapter):
    notebook = "08-what-alignment-costs"
    stages = ("dense", "imp", "matching", "sparse", "early_matching", "few_images")

    def studies(self, studies: Sequence[Study]) -> list[Study]:
        found = [study for study in studies if _matches_early(study.settings)]
        if not found:
            raise InputError(
                "no study of this preset matches with an early B: choose another preset, e.g. "
                "pocket, or set closer_look.match_epochs, a cell of the grid to look closer at "
                "(closer_look.sparsity, closer_look.rewind_epoch), and the methods permuted and "
                "naive"
            )
        return found

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        for study in self.studies(studies):
            table = early.table(study)
            yield Picture(f"{study.settings.name}-early-matching", early_matching(table), table)
            if study.nodes("few_images"):
                table = few_images.table(study)
                yield Picture(f"{study.settings.name}-few-images", by_images(table), table)

    def verdicts(self, studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
        for study in self.studies(studies):
            yield f"{study.settings.name}, early matching", of_early_matching(study)
            if study.nodes("few_images"):
                yield f"{study.settings.name}, few images", of_few_images(study)


ALIGNMENT_COST = AlignmentCost()


def _matches_early(s: Settings) -> bool:
    compared = {"permuted", "naive"} <= set(s.sparse.methods)
    return bool(s.closer_look.match_epochs) and s.looks_closer and compared


def early_matching(table: pd.DataFrame) -> go.Figure:
    """Accuracy of the permuted run against the epoch of B that π was matched with.

    table: as `stages.early_matching.table` gives it. Bars are 95% intervals over the pairs.
    """
    figure = blank("epoch of B that π was matched with", "test accuracy, %")
    epochs = sorted(table["match_epoch"].dropna().unique())
    for method in ("lth", "permuted", "naive"):
        rows = table[table["method"] == method]
        if method == "permuted":
            points = {e: interval(100 * v) for e, v in rows.groupby("match_epoch")["test_accuracy"]}
        else:
            whole = interval(100 * rows["test_accuracy"])
            points = {epochs[0]: whole, epochs[-1]: whole}
        figure.add_scatter(
            x=[int(e) for e in points],
            y=[mean for mean, _, _ in points.values()],
            error_y=bars([high - mean for mean, _, high in points.values()]),
            mode="lines+markers",
            name=METHOD_NAMES[method],
            line=dict(color=COLOURS[method], dash="solid" if method == "permuted" else "dash"),
            marker=dict(symbol=SYMBOLS[method], size=11),
        )
    figure.update_layout(
        title=f"{_kept_gain(table)}<br><sup>{table['sparsity'].iloc[0]:.0%} "
        f"sparsity; {table['seed'].nunique()} pairs, bars: 95% intervals; naive and LTH need no "
        "matching</sup>"
    )
    return figure


def _kept_gain(table: pd.DataFrame) -> str:
    """The most of its gain that an early π keeps, where there is a gain."""
    naive = table[table["method"] == "naive"].set_index("seed")["test_accuracy"]
    permuted = table[table["method"] == "permuted"]
    gains = permuted.pivot(index="seed", columns="match_epoch", values="test_accuracy")
    gains = gains.sub(naive, axis=0)
    last = gains.columns[-1]
    _, low, _ = interval(gains[last])
    if not low > 0:
        return f"Matched with B after {last} epochs, no gain over naive is to be seen"
    kept = gains.mean() / gains[last].mean()
    best = kept.drop(last).idxmax()
    return (
        f"Matched with B after {best} of {last} epochs, π keeps {kept[best]:.0%} of its gain over "
        "naive"
    )


def by_images(table: pd.DataFrame) -> go.Figure:
    """Similarity, barrier and the permuted run's accuracy against the images π was matched on.

    table: as `stages.few_images.table` gives it. Bars are 95% intervals over the pairs.
    """
    figure = make_subplots(
        1,
        3,
        horizontal_spacing=0.09,
        subplot_titles=["similarity", "barrier, pp", "accuracy, %"],
    )
    few = table.dropna(subset="images")
    counts = sorted(few["images"].unique())
    for column, (what, name, colour, scale) in (
        (1, ("in_sample", "on the images seen", COLOURS["naive"], 1)),
        (1, ("held_out", "on test images", COLOURS["permuted"], 1)),
        (1, ("best_held_out", "the best there is, on test images", COLOURS["dense"], 1)),
        (2, ("barrier", "", COLOURS["permuted"], 1)),
        (3, ("test_accuracy", "", COLOURS["permuted"], 100)),
    ):
        points = [interval(scale * few[few["images"] == n][what]) for n in counts]
        figure.add_scatter(
            x=[str(n) for n in counts],
            y=[mean for mean, _, _ in points],
            error_y=bars([high - mean for mean, _, high in points]),
            mode="lines+markers",
            name=name or None,
            showlegend=bool(name),
            line_color=colour,
            marker_size=9,
            row=1,
            col=column,
        )
    whole = 100 * table[table["images"].isna()]["test_accuracy"].mean()
    figure.add_hline(whole, line=dict(color=COLOURS["permuted"], dash="dash"), row=1, col=3)
    lay_out(figure, "images", "")
    means = few.groupby("images")[["held_out", "best_held_out"]].mean()
    share = means["held_out"] / means["best_held_out"]
    figure.update_layout(
        margin_t=120,
        title=f"From {counts[-1]} images π has {share.iloc[-1]:.0%} of the similarity to be had, "
        f"from {counts[0]} {share.iloc[0]:.0%}<br><sup>mean of {few['seed'].nunique()} pairs, bars:"
        " 95% intervals; dashed: permuted with the π of all images</sup>",
    )
    return figure


def of_few_images(study: Study) -> pd.DataFrame:
    """The claims about the number of images that π takes; the paper matches on all of them."""
    table = few_images.table(study)
    runs = 100 * table.pivot_table("test_accuracy", "seed", "images")
    own = 100 * table[table["images"].isna()].set_index("seed")["test_accuracy"]
    few = table.dropna(subset="images")
    at = few.pivot(index="seed", columns="images", values=["held_out", "best_held_out", "regret"])
    lacks = 100 * (1 - at["held_out"] / at["best_held_out"])
    counts = list(runs.columns)
    rows = [
        row(
            f"from {counts[-1]} images π serves as well as from all, within {MARGIN:g} pp",
            "all images, one pass a layer", "few − all, pp: ",
            {f"n={counts[-1]}": runs[counts[-1]] - own}, "same",
        ),
        row(
            f"from {counts[0]} images π serves worse than from all",
            "not in the paper", "all − few, pp: ",
            {f"n={counts[0]}": own - runs[counts[0]]},
        ),
        row(
            "what π lacks on images that it has not seen is below its bound",
            "not in the paper", "bound − lacking, % of the similarity: ",
            {f"n={n}": 100 * at["regret"][n] - lacks[n] for n in counts},
        ),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def of_early_matching(study: Study) -> pd.DataFrame:
    """The claims about matching with an early B (the paper's Table 15: ResNet20×1, CIFAR-10)."""
    at, sparsity = early.table(study), study.settings.closer_look.sparsity
    runs = 100 * at.pivot_table("test_accuracy", "seed", ["method", "match_epoch"], dropna=False)
    naive = 100 * at[at["method"] == "naive"].set_index("seed")["test_accuracy"]
    permuted = runs["permuted"].dropna(axis=1, how="all")
    quoted = published.table("icml_table15_early_matching")
    quoted = quoted[quoted["sparsity"].sub(sparsity).abs() < 1e-9]
    base = quoted[quoted["method"] == "naive"]["mean"]
    means = quoted[quoted["method"] == "permuted"].set_index("matching_epoch_of_B")["mean"]
    paper = "nothing at this sparsity"
    if len(base):
        gains = (means - base.iloc[0]).items()
        paper = "; ".join(f"t={t:.0f} {gain:+.2f} pp" for t, gain in gains)
        paper = f"ResNet20×1, CIFAR-10: {paper}"
    rows = []
    claims = (
        ("π matched with B after few epochs (t ≥ 1) already beats naive", lambda t: t >= 1, "more"),
        (
            "π matched with B's init (t = 0) does as well as naive, within 0.5 pp",
            lambda t: t == 0,
            "same",
        ),
    )
    for claim, applies, kind in claims:
        epochs = [t for t in permuted.columns if applies(t)]
        if epochs:
            each = {f"t={t}": permuted[t] - naive for t in epochs}
            said = paper if kind == "more" else "not in the paper"
            rows.append(row(claim, said, "permuted − naive, pp: ", each, kind))
    later = [t for t in permuted.columns if 1 <= t < study.settings.dense.epochs]
    if later:
        each = {f"t={t}": permuted[study.settings.dense.epochs] - permuted[t] for t in later}
        claim = "matched early, π gains less than matched at the end"
        what = "permuted, at the end − at t, pp: "
        rows.append(row(claim, _kept(means, base), what, each))
    return pd.DataFrame(rows, columns=COLUMNS)


def _kept(means: pd.Series, naive: pd.Series) -> str:
    """The published shares of the gain over naive that an early π keeps."""
    if naive.empty:
        return "nothing at this sparsity"
    gains = means - naive.iloc[0]
    end = gains.index.max()
    shares = (f"t={t:.0f} keeps {gain / gains[end]:.0%}" for t, gain in gains.items())
    return f"ResNet20×1, CIFAR-10: {'; '.join(shares)}"
