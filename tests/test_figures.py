"""Figures: one colour a method, a still twin for every figure, titles that are computed."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from matplotlib.colors import to_hex

from rebasin_utils import figures, masks, still, tables
from rebasin_utils.presets import preset
from rebasin_utils.runner import run
from rebasin_utils.settings import METHODS
from rebasin_utils.study import Study
from rebasin_utils.style import COLOURS


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    (smoke,) = preset("smoke")
    study = Study(smoke, tmp_path_factory.mktemp("store"))
    run(study, workers=1, quiet=True)
    return study


@pytest.fixture(scope="module")
def drawn(study: Study) -> dict[str, go.Figure]:
    results = study.results()
    rng = np.random.default_rng(0)
    return {
        "accuracy": figures.accuracy_by_rewind(results, 0.8),
        "gain": figures.gain_by_rewind(results),
        "paths": figures.paths(tables.paths(study)),
        "trajectory": figures.trajectory(tables.rounds(study)),
        "densities": figures.densities({s: masks.report(study.mask(0, s)) for s in (0.5, 0.8)}),
        "overlaps": figures.overlaps(tables.overlaps(study)),
        "correlations": figures.correlations(rng.random((4, 4)), np.eye(4), "some layer"),
    }


def test_every_method_has_a_colour_of_its_own():
    assert set(COLOURS) == set(METHODS)
    assert len(set(COLOURS.values())) == len(METHODS)


def test_every_figure_says_what_it_shows_and_labels_its_axes(drawn: dict[str, go.Figure]):
    for figure in drawn.values():
        assert len(figure.layout.title.text) > 20
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text


def test_every_figure_has_a_still_picture(drawn: dict[str, go.Figure]):
    for figure in drawn.values():
        assert still.png(figure).startswith(b"\x89PNG")


def test_a_still_picture_shows_the_same_points_in_the_same_colours(drawn: dict[str, go.Figure]):
    figure = drawn["overlaps"]
    (axes,) = still.draw(figure).axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    lines |= {bar.get_label(): bar.lines[0] for bar in axes.containers}
    for trace in figure.data:
        line = lines[trace.name]
        assert np.allclose(line.get_xdata(), trace.x)
        assert np.allclose(line.get_ydata(), trace.y)
        assert to_hex(line.get_color()) == trace.line.color.lower()


def test_the_slider_shows_one_sparsity_at_a_time_with_its_title(drawn: dict[str, go.Figure]):
    figure = drawn["accuracy"]
    (slider,) = figure.layout.sliders
    shown = [trace.visible for trace in figure.data]
    assert shown == slider.steps[slider.active].args[0]["visible"]
    assert figure.layout.title.text == slider.steps[slider.active].args[1]["title.text"]
    assert np.sum([step.args[0]["visible"] for step in slider.steps], axis=0).tolist() == [1] * len(
        shown
    )


def test_the_title_follows_the_numbers():
    cells = [("lth", 0.9), ("naive", 0.7), ("permuted", 0.75)]
    results = pd.DataFrame(
        [
            dict(method=m, test_accuracy=a, sparsity=0.9, rewind_epoch=1, seed=s, diverged=False,
                 dataset="d", model="m", width=1)
            for m, a in cells
            for s in (0, 1)
        ]
    ).astype({"rewind_epoch": "Int64"})  # fmt: skip
    assert "closes 25% of the gap" in figures.accuracy_by_rewind(results).layout.title.text


def test_an_unknown_kind_of_trace_is_refused():
    with pytest.raises(TypeError, match="pie"):
        still.png(go.Figure(go.Pie(values=[1, 2])))
