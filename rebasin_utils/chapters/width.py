"""Notebook 05: does a wider network make the two basins meet?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pandas as pd
import plotly.graph_objects as go

from rebasin_utils.chapters import published
from rebasin_utils.chapters.chapter import Chapter, Picture
from rebasin_utils.chapters.evidence import COLUMNS, gaps, interval, paired, row
from rebasin_utils.chapters.style import COLOURS, PATHS, SYMBOLS, bars, blank
from rebasin_utils.errors import InputError
from rebasin_utils.study.stages import connectivity
from rebasin_utils.study.study import Study


class Width(Chapter):
    notebook = "05-width"
    stages = ("dense", "imp", "matching", "connectivity", "sparse")

    def studies(self, studies: Sequence[Study]) -> list[Study]:
        return [study for several in by_model(studies).values() for study in several]

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        for model, several in by_model(studies).items():
            middles = midpoints(several)
            yield Picture(f"{model}-midpoint-by-width", midpoint_by_width(middles), middles)
            if cell := _cell(several):
                table = gaps_table(several, *cell)
                yield Picture(f"{model}-gaps-by-width", gaps_by_width(table), table)

    def verdicts(self, studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
        for model, several in by_model(studies).items():
            yield f"{model}, width", of_widths(several, *(_cell(several) or (0.9, 0)))
            if len(rows := at_every_width(several)):
                yield f"{model}, sparse runs", rows


WIDTH = Width()


def by_model(studies: Sequence[Study]) -> dict[str, list[Study]]:
    """The models that are there at two widths or more, on the same data, narrowest first.

    Returns:
        the models' names, with the data set's where a model is there on several.

    Raises:
        InputError: when there is none.
    """
    models: dict[tuple[str, str], list[Study]] = {}
    measured = [study for study in studies if study.nodes("connectivity")]
    for study in sorted(measured, key=lambda s: s.settings.model.width):
        s = study.settings
        models.setdefault((s.model.name, s.data.source), []).append(study)
    several = {which: found for which, found in models.items() if len(found) > 1}
    counts = Counter(model for model, _ in several)
    found = {
        model if counts[model] == 1 else f"{model}-{data}": each
        for (model, data), each in several.items()
    }
    if not found:
        raise InputError("this preset has no model at two widths: choose another, e.g. pocket")
    return found


def cells(studies: Sequence[Study]) -> str:
    """The cells of sparse runs that these studies have, in words."""
    there: dict[float, set[int]] = {}
    for study in studies:
        for sparsity in study.settings.sparse.sparsities:
            there.setdefault(sparsity, set()).update(study.settings.sparse.rewind_epochs)
    said = (f"{s:g} from k = {', '.join(map(str, sorted(there[s])))}" for s in sorted(there))
    return "; ".join(said)


def check_cell(studies: Sequence[Study], sparsity: float, rewind_epoch: int) -> None:
    """Refuse a cell that none of these studies has.

    Raises:
        InputError: with the cells that there are.
    """
    for study in studies:
        grid = study.settings.sparse
        if sparsity in grid.sparsities and rewind_epoch in grid.rewind_epochs:
            return
    raise InputError(
        f"sparsity = {sparsity!r}, rewind_epoch = {rewind_epoch!r}: choose a cell that there is: "
        f"{cells(studies)}"
    )


def nearest_cell(studies: Sequence[Study], **cell: float) -> dict[str, float]:
    """These values of `sparsity` and `rewind_epoch`, or those looked at, where runs are elsewhere.

    Studies without any sparse runs leave them as they are.
    """
    fields = {"sparsity": "sparsities", "rewind_epoch": "rewind_epochs"}
    grids = [study.settings.sparse for study in studies if study.nodes("sparse")]
    there = (all(v in getattr(grid, fields[n]) for n, v in cell.items()) for grid in grids)
    if not grids or any(there):
        return cell
    sparsity, rewind_epoch = _cell(studies) or (grids[0].sparsities[0], grids[0].rewind_epochs[-1])
    looked_at = {"sparsity": sparsity, "rewind_epoch": rewind_epoch}
    return {name: looked_at[name] for name in cell}


def midpoints(studies: Sequence[Study]) -> pd.DataFrame:
    """Accuracy in % halfway between A and B, of several studies."""
    return pd.concat([connectivity.midpoints(study) for study in studies], ignore_index=True)


def _cell(studies: Sequence[Study]) -> tuple[float, int] | None:
    """The cell of the grid that the first study which looks closer looks at."""
    looks = (s.settings.closer_look for s in studies if s.settings.looks_closer)
    return next(((look.sparsity, look.rewind_epoch) for look in looks), None)


def gaps_table(studies: Sequence[Study], sparsity: float, rewind_epoch: int) -> pd.DataFrame:
    """The means of `gaps` and their 95% intervals: width, gap, difference, low, high, n."""
    rows = []
    for study in studies:
        for gap, values in gaps(study.results(), sparsity, rewind_epoch).items():
            rows.append((study.settings.model.width, gap, *interval(values), len(values)))
    return pd.DataFrame(rows, columns=["width", "gap", "difference", "low", "high", "n"])


def midpoint_by_width(middles: pd.DataFrame) -> go.Figure:
    """Accuracy halfway between A and B against the width, for every kind of path.

    middles: as `midpoints` gives it, of studies that differ in their width.
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
        title=f"Halfway between π(A) and B, repaired: {best[low]:.1f}% at width {low}, "
        f"{best[high]:.1f}% at width {high}<br><sup>mean of {middles['n'].min()} pairs, bars: one "
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
        f"{lacks[high]:.1f} pp at width {high}<br><sup>paired differences, bars: 95% intervals"
        "</sup>"
    )
    return figure


def at_every_width(studies: Sequence[Study]) -> pd.DataFrame:
    """The claims about sparse runs, from every rewind epoch k ≥ 1, of each study by itself."""
    rows = []
    for study in studies:
        s = study.settings
        if not s.sparse.sparsities:
            continue
        results = study.results()
        quoted = published.grid(s.model.name, s.model.width, s.data.source)
        for first, second, text in (
            ("permuted", "naive", "permuting the mask gains over naive"),
            ("lth", "permuted", "LTH is better than permuted"),
        ):
            if {first, second} <= set(results["method"]):
                each = {
                    f"S={sparsity:.0%}, k={k}": values
                    for (sparsity, k), values in paired(results, first, second).items()
                    if k >= 1
                }
                means = quoted.means[first] - quoted.means[second]
                later = means[means.index.get_level_values("rewind_epoch") >= 10]
                said = f"{quoted.net}: {later.min():+.2f} … {later.max():+.2f} pp"
                what = f"{first} − {second}, pp: "
                net = f"{s.model.label}×{s.model.width}, {s.data.source}"
                rows.append(row(f"{net}: {text} (k ≥ 1)", said, what, each))
    return pd.DataFrame(rows, columns=COLUMNS)


def _ticks(figure: go.Figure, widths: pd.Series) -> None:
    values = sorted(widths.unique())
    figure.update_xaxes(type="log", tickvals=values, ticktext=[f"×{w}" for w in values])


def of_widths(studies: Sequence[Study], sparsity: float, rewind_epoch: int) -> pd.DataFrame:
    """The claims about the width, between the narrowest and the widest of the studies.

    The gap to LTH is that of one cell of the grid, and left out where a study lacks it.

    Pairs at two widths have nothing in common but their number, so that these intervals are wider
    than paired ones. The paper's column is ResNet20 on CIFAR-10, ×1 and ×4, at 90% and k ≥ 10.
    """
    narrow, wide = (f(studies, key=lambda s: s.settings.model.width) for f in (min, max))
    rows = []

    def add(claim: str, paper: str, low: pd.Series, high: pd.Series, sign: int) -> None:
        means = f"{low.mean():.1f} → {high.mean():.1f}"
        rows.append(row(claim, paper, "", {means: (sign * (high - low)).dropna()}))

    middle = [
        100 * at[at["alpha"] == 0.5].pivot_table("accuracy", "seed", "path")
        for at in (connectivity.paths(narrow), connectivity.paths(wide))
    ]
    repair = published.table("ref_repair_resnet20_bn_midpoint").query("dataset == 'CIFAR-10'")
    reset = repair[repair["variant"] == "permuted_midpoint_bn_reset"].set_index("width")["test_acc"]
    for path in ("matched", "matched_bn_reset", "matched_repair"):
        if path in middle[0]:
            paper = (
                f"{reset[1]:.1f} → {reset[4]:.1f}%" if path == "matched_bn_reset" else "the same"
            )
            add(
                f"{path}: halfway, the wider net is more accurate",
                paper,
                *(m[path] for m in middle),
                1,
            )
    cells = [gaps(study.results(), sparsity, rewind_epoch) for study in (narrow, wide)]
    if not any(cell.empty for cell in cells):
        lacks = [cell["LTH − permuted"] for cell in cells]
        add("the wider net lacks less to LTH", "1.3–1.9 → 0.5–0.9 pp", *lacks, -1)
        closed = [100 * cell["permuted − naive"] / cell.sum(axis=1) for cell in cells]
        quoted = " → ".join(_quoted_share(width) for width in (1, 4))
        add("π closes more of the wider net's gap from naive to LTH", f"{quoted}%", *closed, 1)
    return pd.DataFrame(rows, columns=COLUMNS)


def _quoted_share(width: int) -> str:
    """Of the gap at 90% and k ≥ 10 in the paper's table of ResNet20 on CIFAR-10."""
    means = published.grid("resnet20", width, "cifar10").means.xs(0.9, level="sparsity")
    later = means[means.index >= 10]
    shares = (later["permuted"] - later["naive"]) / (later["lth"] - later["naive"])
    return f"{100 * shares.min():.0f}–{100 * shares.max():.0f}"
