"""Figures of weight space: they show their tables, say what they show, and have still pictures."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from rebasin_utils import gallery, maps, still, tables
from rebasin_utils.presets import preset
from rebasin_utils.runner import run
from rebasin_utils.study import Study
from rebasin_utils.style import COLOURS


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    (smoke,) = preset("smoke")
    study = Study(smoke, tmp_path_factory.mktemp("store"))
    run(study, workers=1, quiet=True)
    return study


@pytest.fixture(scope="module")
def plane(study: Study) -> dict:
    return study.load(study.plan.plane(0)).record["metrics"]


@pytest.fixture(scope="module")
def drawn(study: Study, plane: dict) -> dict[str, go.Figure]:
    middles = tables.midpoints(study)
    widths = [middles, middles.assign(width=2, mean=middles["mean"] + 1)]
    gaps = tables.gaps_by_width([study], 0.8, 1)
    return {
        "variances": maps.variance_collapse(tables.variances(study)),
        "segments": maps.barrier_by_sparsity(tables.segments(study)),
        "midpoints": maps.midpoint_by_width(tables.pd.concat(widths)),
        "gaps": maps.gaps_by_width(tables.pd.concat([gaps, gaps.assign(width=4)])),
        "ensembles": maps.ensembles(tables.ensembles(study)),
        "early": maps.early_matching(tables.early_matching(study)),
        "plane": maps.plane(plane),
        "surface": maps.plane_surface(plane),
    }


def test_every_figure_says_what_it_shows_within_its_width(drawn: dict[str, go.Figure]):
    for name, figure in drawn.items():
        title, _, below = figure.layout.title.text.partition("<br>")
        assert 20 < len(title) < 80, name
        assert below, name


def test_every_figure_labels_its_axes_and_has_a_still_picture(drawn: dict[str, go.Figure]):
    for name, figure in drawn.items():
        axes = figure.layout.scene if name == "surface" else figure.layout
        assert axes.xaxis.title.text, name
        assert axes.yaxis.title.text, name
        assert still.png(figure).startswith(b"\x89PNG")


def test_a_title_gives_the_number_that_is_drawn(study: Study, drawn: dict[str, go.Figure]):
    table = tables.variances(study)
    last = table[table["layer"] == table["layer"].iloc[-1]].groupby("path")["ratio"].mean()
    assert f"matched {last['matched']:.0%}" in drawn["variances"].layout.title.text
    line = next(t for t in drawn["variances"].data if t.name == "π(A) to B")
    assert line.y[-1] == pytest.approx(last["matched"])
    gain = tables.ensembles(study).groupby("method")[["accuracy", "ensemble"]].mean()
    gain = gain["ensemble"] - gain["accuracy"]
    assert f"{gain['permuted']:+.1f} pp over its members" in drawn["ensembles"].layout.title.text


def test_a_method_has_its_colour_here_too(drawn: dict[str, go.Figure]):
    for name in ("ensembles", "early"):
        for trace in drawn[name].data:
            method = trace.name.split(":")[0].split()[0].lower()
            assert trace.line.color == COLOURS[method]


def test_the_map_shows_its_models_where_they_are(plane: dict, drawn: dict[str, go.Figure]):
    marks = {t.name.split(",")[0]: (t.x[0], t.y[0]) for t in drawn["plane"].data[2:]}
    for name, (x, y, _) in plane["models"].items():
        assert marks[name.split(",")[0]] == pytest.approx((x, y)) or name.startswith("π(A)")
    assert np.allclose(
        np.array(drawn["plane"].data[0].z), 100 * np.array(plane["accuracy"]), atol=0.01
    )
    table = maps.plane_table(plane)
    assert (table["what"] == "grid").sum() == len(plane["ticks"]) ** 2
    row = table[(table["x"] == plane["ticks"][2]) & (table["y"] == plane["ticks"][0])].iloc[0]
    assert row["accuracy"] == plane["accuracy"][0][2]


def test_the_gallery_holds_every_figure_with_its_picture_its_page_and_its_data(study, tmp_path):
    gallery.draw_all([study], tmp_path)
    names = {p.stem for p in tmp_path.iterdir()}
    assert {f"smoke-{n}" for n in (
        "paths", "variances", "segments", "accuracy", "gain", "trajectory", "overlaps", "ensembles",
        "early-matching", "plane", "plane-surface",
    )} <= names  # fmt: skip
    for name in names:
        assert {p.suffix for p in tmp_path.glob(f"{name}.*")} == {".png", ".html", ".csv"}
