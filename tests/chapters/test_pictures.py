"""Figures show their tables and say what they show; each has a still twin and is kept whole."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from plotly.subplots import make_subplots

from rebasin_utils.chapters import (
    alignment_cost,
    basins,
    gallery,
    halfway,
    modes,
    sparse_training,
    still,
    ticket,
    variance,
    width,
)
from rebasin_utils.chapters.style import COLOURS
from rebasin_utils.errors import InputError
from rebasin_utils.nets import masks
from rebasin_utils.running import notebooks
from rebasin_utils.study import plugins
from rebasin_utils.study.parts import METHODS
from rebasin_utils.study.presets import preset
from rebasin_utils.study.stages import (
    budgets,
    connectivity,
    diversity,
    early_matching,
    imp,
    overlaps,
    plane,
    segment,
)
from rebasin_utils.study.study import Study


@pytest.fixture(scope="module")
def through(smoked: Study) -> dict:
    """What is stored of the plane through three nets."""
    return smoked.record(smoked.node("plane", seed=0))["metrics"]


@pytest.fixture(scope="module")
def of_training(smoked: Study) -> dict[str, go.Figure]:
    """The figures of accuracies, paths and tickets."""
    results = smoked.results()
    rng = np.random.default_rng(0)
    reports = {s: masks.report(imp.mask(smoked, 0, s)) for s in (0.5, 0.8)}
    return {
        "accuracy": sparse_training.accuracy_by_rewind(results, 0.8),
        "gain": sparse_training.gain_by_rewind(results),
        "learning": sparse_training.losses_by_epoch(sparse_training.learning_curves(smoked)),
        "budgets": sparse_training.accuracy_by_budget(budgets.table(smoked)),
        "paths": halfway.paths(connectivity.paths(smoked)),
        "trajectory": ticket.trajectory(imp.trajectory(smoked)),
        "densities": ticket.densities(reports),
        "overlaps": ticket.overlaps(overlaps.table(smoked)),
        "correlations": basins.correlations(rng.random((4, 4)), np.eye(4), "some layer"),
    }


@pytest.fixture(scope="module")
def of_weight_space(smoked: Study, through: dict) -> dict[str, go.Figure]:
    """The figures of where solutions lie."""
    middles = connectivity.midpoints(smoked)
    widths = [middles, middles.assign(width=2, mean=middles["mean"] + 1)]
    gaps = width.gaps_table([smoked], 0.8, 1)
    return {
        "variances": variance.variance_collapse(connectivity.variances(smoked)),
        "segments": variance.barrier_by_sparsity(segment.barriers(smoked)),
        "midpoints": width.midpoint_by_width(pd.concat(widths)),
        "gaps": width.gaps_by_width(pd.concat([gaps, gaps.assign(width=4)])),
        "ensembles": modes.ensembles(diversity.table(smoked)),
        "modes": modes.barriers_by_sparsity(modes.barriers_of_runs(smoked)),
        "early": alignment_cost.early_matching(early_matching.table(smoked)),
        "plane": modes.plane(through),
        "surface": modes.plane_surface(through),
    }


def test_every_method_has_a_colour_of_its_own():
    assert set(COLOURS) == set(METHODS)
    assert len(set(COLOURS.values())) == len(METHODS)


def test_every_figure_says_what_it_shows_and_labels_its_axes(of_training: dict[str, go.Figure]):
    for figure in of_training.values():
        assert len(figure.layout.title.text) > 20
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text


def test_every_figure_of_training_has_a_still_picture(of_training: dict[str, go.Figure]):
    for figure in of_training.values():
        assert still.png(figure).startswith(b"\x89PNG")


def test_a_still_picture_shows_the_same_points_in_the_same_colours(
    of_training: dict[str, go.Figure],
):
    figure = of_training["overlaps"]
    (axes,) = still.draw(figure).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    lines |= {bar.get_label(): bar.lines[0] for bar in axes.containers}
    for trace in figure.data:
        line = lines[trace.name]
        assert np.allclose(line.get_xdata(), trace.x)
        assert np.allclose(line.get_ydata(), trace.y)
        assert to_hex(line.get_color()) == trace.line.color.lower()


def test_the_slider_shows_one_sparsity_at_a_time_with_its_title(of_training: dict[str, go.Figure]):
    figure = of_training["accuracy"]
    (slider,) = figure.layout.sliders
    shown = [trace.visible for trace in figure.data]
    assert shown == slider.steps[slider.active].args[0]["visible"]
    assert figure.layout.title.text == slider.steps[slider.active].args[1]["title.text"]
    visible = np.sum([step.args[0]["visible"] for step in slider.steps], axis=0)
    assert visible.tolist() == [1] * len(shown)


@pytest.mark.parametrize(
    ("lth", "says"),
    [((0.9, 0.9), "closes 25% of the gap"), ((0.9, 0.6), "no gap between naive and LTH")],
)
def test_the_title_follows_the_numbers(lth, says):
    cells = [("lth", lth), ("naive", (0.7, 0.7)), ("permuted", (0.75, 0.75))]
    results = pd.DataFrame(
        [
            dict(method=m, test_accuracy=a, sparsity=0.9, rewind_epoch=1, seed=s, diverged=False,
                 dataset="d", model="m", width=1)
            for m, accuracies in cells
            for s, a in enumerate(accuracies)
        ]
    ).astype({"rewind_epoch": "Int64"})  # fmt: skip
    figure = sparse_training.accuracy_by_rewind(results)
    assert says in figure.layout.title.text


@pytest.mark.parametrize(
    ("permuted", "says"),
    [((0.8, 0.8), "π keeps 50% of its gain"), ((0.8, 0.65), "no gain over naive")],
)
def test_an_early_matching_keeps_a_share_of_a_gain_only_where_there_is_one(permuted, says):
    runs = [("naive", None, (0.7, 0.7)), ("lth", None, (0.9, 0.9))]
    runs += [("permuted", 1, (0.75, 0.75)), ("permuted", 4, permuted)]
    table = pd.DataFrame(
        [
            dict(sparsity=0.9, seed=seed, method=method, match_epoch=epoch, test_accuracy=accuracy)
            for method, epoch, accuracies in runs
            for seed, accuracy in enumerate(accuracies)
        ]
    ).astype({"match_epoch": "Int64"})
    assert says in alignment_cost.early_matching(table).layout.title.text


def test_no_title_of_a_still_picture_covers_another(
    of_training: dict[str, go.Figure], of_weight_space: dict[str, go.Figure]
):
    panels = make_subplots(1, 2, subplot_titles=["from these<br>to those", "and<br>back"])
    for column in (1, 2):
        panels.add_scatter(x=[0, 1], y=[0, 1], row=1, col=column)
    panels.update_layout(title="What is found<br><sup>what is drawn, of how many, and how</sup>")
    for name, figure in (of_training | of_weight_space | {"panels": panels}).items():
        drawn = still.draw(figure)
        FigureCanvasAgg(drawn).draw()
        texts = [*drawn.texts, *(axes.title for axes in drawn.axes)]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        for first, second in combinations(boxes, 2):
            assert not first.overlaps(second), name


def test_an_unknown_kind_of_trace_is_refused():
    with pytest.raises(TypeError, match="pie"):
        still.png(go.Figure(go.Pie(values=[1, 2])))


# -------------------------------------------------------------------------- weight space


def test_every_figure_says_what_it_shows_within_its_width(of_weight_space: dict[str, go.Figure]):
    for name, figure in of_weight_space.items():
        title, _, below = figure.layout.title.text.partition("<br>")
        assert 20 < len(title) < 80, name
        assert below, name


def test_every_figure_labels_its_axes_and_has_a_still_picture(
    of_weight_space: dict[str, go.Figure],
):
    for name, figure in of_weight_space.items():
        axes = figure.layout.scene if name == "surface" else figure.layout
        assert axes.xaxis.title.text, name
        assert axes.yaxis.title.text, name
        assert still.png(figure).startswith(b"\x89PNG")


def test_a_title_gives_the_number_that_is_drawn(
    smoked: Study, of_weight_space: dict[str, go.Figure]
):
    table = connectivity.variances(smoked)
    last = table[table["layer"] == table["layer"].iloc[-1]].groupby("path")["ratio"].mean()
    assert f"matched {last['matched']:.0%}" in of_weight_space["variances"].layout.title.text
    line = next(t for t in of_weight_space["variances"].data if t.name == "π(A) to B")
    assert line.y[-1] == pytest.approx(last["matched"])
    gain = diversity.table(smoked).groupby("method")[["accuracy", "ensemble"]].mean()
    gain = gain["ensemble"] - gain["accuracy"]
    title = of_weight_space["ensembles"].layout.title.text
    assert f"{gain['permuted']:+.1f} pp over its members" in title


def test_a_method_has_its_colour_here_too(of_weight_space: dict[str, go.Figure]):
    for name in ("ensembles", "early"):
        for trace in of_weight_space[name].data:
            method = trace.name.split(":")[0].split()[0].lower()
            assert trace.line.color == COLOURS[method]


def test_the_map_shows_its_models_where_they_are(
    through: dict, of_weight_space: dict[str, go.Figure]
):
    figure = of_weight_space["plane"]
    marks = {t.name.split(",")[0]: (t.x[0], t.y[0]) for t in figure.data[2:]}
    for name, (x, y, _) in through["models"].items():
        assert marks[name.split(",")[0]] == pytest.approx((x, y)) or name.startswith("π(A)")
    assert np.allclose(np.array(figure.data[0].z), 100 * np.array(through["accuracy"]), atol=0.01)
    table = plane.table(through)
    assert (table["what"] == "grid").sum() == len(through["ticks"]) ** 2
    row = table[(table["x"] == through["ticks"][2]) & (table["y"] == through["ticks"][0])].iloc[0]
    assert row["accuracy"] == through["accuracy"][0][2]


# -------------------------------------------------------------------------- what is kept


def test_the_gallery_holds_every_figure_with_its_picture_its_page_and_its_data(smoked, tmp_path):
    gallery.draw_all([smoked], tmp_path)
    names = {p.stem for p in tmp_path.iterdir() if p.name != "plotly.min.js"}
    assert names == {f"smoke-{n}" for n in (
        "paths", "variances", "segments", "accuracy", "gain", "learning", "trajectory", "overlaps",
        "ensembles", "modes", "early-matching", "few-images", "plane", "plane-surface",
    )} | {f"toy-{n}" for n in ("landscape", "rewinds", "widths")} | {
        f"published-{n}" for n in ("gains", "gaps-by-width", "imagenet")
    }  # fmt: skip
    for name in names:
        assert {p.suffix for p in tmp_path.glob(f"{name}.*")} == {".png", ".html", ".csv"}
        assert 'src="plotly.min.js"' in (tmp_path / f"{name}.html").read_text()
    assert (tmp_path / "plotly.min.js").is_file()


# -------------------------------------------------------------------------- chapters


def chapters() -> dict:
    return plugins.chapters()


def opened(tmp_path, name: str, **changes) -> list[Study]:
    return [Study(s.with_values(**changes), tmp_path / "store") for s in preset(name)]


def test_every_notebook_has_a_chapter_and_every_chapter_a_notebook(smoked):
    assert list(chapters()) == [n.name for n in notebooks.all_notebooks()]
    for name, chapter in chapters().items():
        assert chapter.notebook == name
        assert set(chapter.stages) <= set(smoked.plan.stages)


def test_a_chapter_needs_what_the_stages_that_it_reads_hold(tmp_path):
    (study,) = opened(tmp_path, "smoke")
    for chapter in gallery.applying([study]):
        needs = chapter.needs([study])
        assert needs == [node for stage in chapter.stages for node in study.nodes(stage)]


LACKING = [
    ("smoke", {}, {
        "05-width": "no model at two widths",
    }),
    ("smoke", {"closer_look.match_epochs": ()}, {
        "05-width": "no model at two widths",
        "08-what-alignment-costs": "closer_look.match_epochs",
    }),
    ("smoke", {"imp.prune_b": False}, {
        "05-width": "no model at two widths",
        "07-same-basin-other-modes": "imp.prune_b, at least 2 seeds, and the methods",
    }),
    ("smoke-widths", {}, {
        "07-same-basin-other-modes": "closer_look.ensemble_size",
        "08-what-alignment-costs": "closer_look.match_epochs",
    }),
    ("smoke-widths", {"sparse.methods": ()}, {
        "03-drawing-the-ticket": "no sparse runs",
        "04-naive-permuted-lth": "no sparse runs",
        "06-variance-collapse": "no sparse runs",
        "07-same-basin-other-modes": "closer_look.ensemble_size",
        "08-what-alignment-costs": "closer_look.match_epochs",
    }),
]  # fmt: skip


#: Of signed masks and of a mask on other data, which only studies of their own have.
OF_SIGNS = ("11-winning-sign", "12-sign-or-permutation")
OTHER_DATA = "13-mask-on-other-data"


@pytest.mark.parametrize(("name", "changes", "lacking"), LACKING)
def test_a_chapter_says_what_it_lacks_and_is_then_passed_over(tmp_path, name, changes, lacking):
    studies = opened(tmp_path, name, **changes)
    lacking = lacking | dict.fromkeys(OF_SIGNS, "no study of this preset has signed masks")
    lacking |= {OTHER_DATA: "no study of this preset puts a mask on other data"}
    missing = {n: chapter.missing(studies) for n, chapter in chapters().items()}
    assert {n for n, why in missing.items() if why} == set(lacking)
    for n, sentence in lacking.items():
        assert sentence in missing[n]
        with pytest.raises(InputError) as raised:
            chapters()[n].studies(studies)
        assert str(raised.value) == missing[n]
    applying = [chapter.notebook for chapter in gallery.applying(studies)]
    assert applying == [n for n in chapters() if n not in lacking]


def test_a_chapter_shows_the_studies_that_have_what_it_shows(tmp_path):
    grid, narrow, wide, *_ = opened(tmp_path, "pocket")
    assert chapters()["04-naive-permuted-lth"].studies([grid, narrow, wide]) == [grid]
    assert chapters()["07-same-basin-other-modes"].studies([grid, narrow, wide]) == [grid]
    assert chapters()["08-what-alignment-costs"].studies([wide, grid]) == [grid]
    assert chapters()["05-width"].studies([grid, wide, narrow]) == [narrow, wide]


#: But of notebooks whose chapters need no study.
OF_NONE = ("01-toy-landscape", "09-paper-tables", "10-at-scale")
OF_STUDIES = [n for n in plugins.chapters() if n not in OF_NONE]


@pytest.mark.parametrize("name", [n for n in OF_STUDIES if n != "05-width"])
def test_a_chapter_reads_nothing_but_what_it_says_that_it_needs(
    smoked, signed, reused, monkeypatch, name
):
    chapter, read = chapters()[name], set()
    shown = {OTHER_DATA: [reused]} | dict.fromkeys(OF_SIGNS, signed)
    studies = shown.get(name, [smoked])
    for door in ("record", "tensors"):
        opens = getattr(Study, door)

        def noted(study: Study, node, *rest, opens=opens):
            read.add(node)
            return opens(study, node, *rest)

        monkeypatch.setattr(Study, door, noted)
    assert list(chapter.pictures(studies))
    assert list(chapter.verdicts(studies))
    assert read <= set(chapter.needs(studies))


@pytest.mark.parametrize("name", OF_STUDIES)
@pytest.mark.parametrize("what", ["pictures", "verdicts"])
def test_what_was_not_computed_is_neither_shown_nor_computed(tmp_path, name, what):
    of_preset = {"05-width": "smoke-widths", OTHER_DATA: "smoke-reuse"}
    of_preset |= dict.fromkeys(OF_SIGNS, "smoke-signs")
    studies = opened(tmp_path, of_preset.get(name, "smoke"))
    with pytest.raises(InputError, match="not computed yet"):
        list(getattr(chapters()[name], what)(studies))
    assert not (tmp_path / "store").exists()
