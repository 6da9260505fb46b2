"""Notebook 06: why does the average of two good networks compute so little?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rebasin_utils.chapters import published
from rebasin_utils.chapters.chapter import Chapter, Picture, with_paths, with_sparse_runs
from rebasin_utils.chapters.evidence import COLUMNS, by_sparsity, interval, on_images, row
from rebasin_utils.chapters.judgement import MARGIN
from rebasin_utils.chapters.style import COLOURS, PATHS, bars, blank, lay_out
from rebasin_utils.study.stages import connectivity, segment
from rebasin_utils.study.study import Study

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


class Variance(Chapter):
    notebook = "06-variance-collapse"
    stages = ("dense", "imp", "matching", "connectivity", "sparse", "segment")

    def studies(self, studies: Sequence[Study]) -> list[Study]:
        with_sparse_runs(studies)
        return with_paths(studies)

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        for study in self.studies(studies):
            name, table = study.settings.name, connectivity.variances(study)
            yield Picture(f"{name}-variances", variance_collapse(table), table)
            if study.nodes("segment"):
                table = segment.barriers(study)
                yield Picture(f"{name}-segments", barrier_by_sparsity(table), table)

    def verdicts(self, studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
        for study in self.studies(studies):
            yield f"{study.settings.name}, variance", of_variances(study)
            if study.nodes("segment"):
                yield f"{study.settings.name}, segments", of_segments(study)


VARIANCE = Variance()


def variance_collapse(table: pd.DataFrame) -> go.Figure:
    """Variance of every layer halfway between A and B, relative to the ends'.

    table: as `connectivity.variances` gives it. Lines are means over the pairs.
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

    table: as `segment.barriers` gives it. Points are means over the pairs, bars 95% intervals; the
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
    figure.update_yaxes(range=[0, _top(figure)])  # a barrier is never negative
    figure.update_layout(margin_t=120)
    sparsest = table[
        (table["kind"] == "dense-imp") & (table["sparsity"] == table["sparsity"].max())
    ]
    mean = sparsest.groupby("correction")["error"].mean()
    figure.update_layout(
        title=f"Dense A to its sparsest IMP iterate: barrier {mean['none']:.1f} pp, "
        f"repaired {mean['repair']:.1f} pp<br><sup>barrier of the test error "
        f"(equation 3), {table['seed'].nunique()} pairs, bars: 95% intervals"
        + (f"; LTH from k = {latest}" if len(kinds) > 1 else "")
        + "</sup>"
    )
    return figure


def barriers_at_the_sparsest(studies: Sequence[Study]) -> pd.DataFrame:
    """Mean error barriers (pp) between dense A and its sparsest descendants, a row a study.

    Columns are the descendant (LTH from the latest start) and the correction.
    """
    rows = []
    for study in studies:
        table = segment.barriers(study)
        table = table[table["sparsity"] == table["sparsity"].max()]
        latest = table["rewind_epoch"].isin([table["rewind_epoch"].max()])
        table = table[(table["kind"] == "dense-imp") | ((table["kind"] == "dense-lth") & latest)]
        means = table.groupby(["kind", "correction"])["error"].mean()
        row = {"study": study.settings.name, "pairs": table["seed"].nunique()}
        for kind, to in (("dense-imp", "IMP"), ("dense-lth", "LTH")):
            for correction, (name, _, _) in CORRECTIONS.items():
                if (kind, correction) in means.index:
                    row[f"dense–{to}, {name}"] = means[kind, correction]
        rows.append(row)
    return pd.DataFrame(rows)


def _top(figure: go.Figure) -> float:
    """A little above the highest end of an error bar, and no less than half a point."""
    ends = [y + bar for t in figure.data for y, bar in zip(t.y, t.error_y.array, strict=True)]
    return max(0.5, 1.05 * max(ends))


def of_variances(study: Study) -> pd.DataFrame:
    """The claims about the variance halfway between A and B (Jordan et al. 2023, Section 3)."""
    each = connectivity.variances(study).pivot_table(
        "ratio", "seed", "path"
    )  # mean over the layers
    missing = {path: 100 * (1 - each[path]) for path in each}
    claims = (
        ("averaging two nets collapses the variance", missing["unmatched"], "% missing"),
        ("matching restores a part of it", missing["unmatched"] - missing["matched"], "% restored"),
        ("a part stays missing", missing["matched"], "% missing"),
        (
            "REPAIR restores that too", missing["matched"] - missing["matched_repair"].abs(),
            "% restored",
        ),
    )  # fmt: skip
    rows = [row(claim, "so in ResNets and VGGs", "", {unit: v}) for claim, v, unit in claims]
    return pd.DataFrame(rows, columns=COLUMNS)


def of_segments(study: Study) -> pd.DataFrame:
    """The claims about the barriers between solutions of one net (the paper's Figure 4a).

    The paper's column is ResNet20×4 on CIFAR-10, ten IMP iterations towards 90%.
    """
    table = segment.barriers(study)
    targets = table["sparsity"].isin(study.settings.sparse.sparsities)
    quoted = published.table("fig4a_imp_error_barrier_digitised")
    last = quoted[quoted["imp_iteration"] == quoted["imp_iteration"].max()]
    last = last.set_index("variant")["mean_error_barrier_pct"]
    barrier = table[targets].set_index(["sparsity", "seed"])
    of_imp = barrier[barrier["kind"] == "dense-imp"].groupby("correction")["error"]
    lowered = of_imp.get_group("none") - of_imp.get_group("repair")
    rows = [
        row(
            "REPAIR lowers the barrier between dense A and its IMP iterates",
            f"ResNet20×4: {last['without_REPAIR']:.1f} → {last['with_REPAIR']:.1f} pp",
            f"lowered by, pp{on_images(study)}: ",
            by_sparsity(lowered),
        )
    ]
    latest = barrier["rewind_epoch"].max()
    near = barrier[(barrier["kind"] == "dense-lth") & (barrier["correction"] == "repair")]
    near = near[near["rewind_epoch"] == latest]["error"]
    if len(near):
        rows.append(
            row(
                f"dense A and LTH from k = {latest} are of one basin: repaired, no barrier of "
                f"{MARGIN:g} pp",
                f"dense and IMP {last['with_REPAIR']:.1f} pp apart",
                f"barrier with its sign changed, pp{on_images(study)}: ",
                by_sparsity(-near),
                "no worse",
            )
        )
    of_lth = barrier[(barrier["kind"] == "dense-lth") & (barrier["correction"] == "repair")]
    by_start = of_lth.groupby("rewind_epoch")["error"]
    if len(by_start) > 1:
        first, latest = of_lth["rewind_epoch"].min(), of_lth["rewind_epoch"].max()
        claim = f"repaired, LTH from k = {latest} is nearer to dense A than LTH from k = {first}"
        nearer = by_start.get_group(first) - by_start.get_group(latest)
        each = by_sparsity(nearer)
        rows.append(row(claim, "not in the paper", "barrier lower by, pp: ", each))
    return pd.DataFrame(rows, columns=COLUMNS)
