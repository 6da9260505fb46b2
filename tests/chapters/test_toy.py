"""The toy nets are right: the symmetry, the minima, the descents, and what notebook 01 says."""

import json
import math

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from scipy.optimize import approx_fprime

from rebasin_utils.chapters import still, toy_widget
from rebasin_utils.chapters import toy as figures
from rebasin_utils.chapters.style import COLOURS
from rebasin_utils.errors import InputError
from rebasin_utils.landscape import toy, toy_rewind, toy_widths
from rebasin_utils.landscape.toy import HIGH, LOW, MAX_LR, TARGET, Setup, Story, TwoWeights
from rebasin_utils.symmetry.spec import PermutationSpec


@pytest.fixture(scope="module")
def story() -> Story:
    return toy.tell(Setup())


@pytest.fixture(scope="module")
def plane() -> torch.Tensor:
    """Weights all over the plane that is drawn, [729, 2]."""
    axis = torch.linspace(LOW, HIGH, 27, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


def test_swapping_the_units_leaves_the_loss_exactly_as_it_is(plane: torch.Tensor):
    assert torch.equal(toy.loss(plane), toy.loss(plane.flip(1)))
    axis, loss = toy.landscape()
    assert np.array_equal(loss, loss.T)
    assert loss[10, 60] == toy.loss(torch.tensor([axis[60], axis[10]])).item()


def test_the_loss_is_that_of_the_network_whose_units_are_permuted():
    net, teacher = TwoWeights(), TwoWeights()
    weights = torch.tensor([0.3, -1.2], dtype=torch.float64)
    with torch.no_grad():
        net.hidden.weight[:, 0] = weights
        teacher.hidden.weight[:, 0] = torch.tensor(TARGET)
        error = (net(toy.X[:, None]) - teacher(toy.X[:, None])).square().mean()
    assert error == pytest.approx(toy.loss(weights).item(), abs=1e-12)
    spec = PermutationSpec.trace(net, toy.X[:, None])
    assert spec.prove(net, toy.X[:, None]) < 1e-12


def test_the_landscape_has_two_minima_and_they_are_mirror_images():
    axis, loss = toy.landscape(261)
    inside = loss[1:-1, 1:-1]
    shifts = [(i, j) for i in (0, 1, 2) for j in (0, 1, 2) if (i, j) != (1, 1)]
    size = len(inside)
    lowest = np.all([inside < loss[i : i + size, j : j + size] for i, j in shifts], axis=0)
    found = {(round(axis[j + 1], 6), round(axis[i + 1], 6)) for i, j in np.argwhere(lowest)}
    assert found == {TARGET, TARGET[::-1]}


def test_a_step_of_descent_follows_the_gradient(plane: torch.Tensor):
    for start in plane[::97]:
        path = toy.descend(start[None], torch.ones(1, 2, dtype=torch.bool), lr=1e-3, steps=1)[0]
        slope = approx_fprime(start.numpy(), lambda w: toy.loss(torch.from_numpy(w)).item(), 1e-7)
        assert np.allclose((path[0] - path[1]) / 1e-3, slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lr", [0.01, MAX_LR])
def test_no_step_from_anywhere_goes_up(plane: torch.Tensor, lr: float):
    loss = toy.loss(toy.descend(plane, torch.ones_like(plane, dtype=torch.bool), lr, 100))
    assert (loss.diff(dim=1) <= 1e-12).all()


def test_the_diagonal_is_the_watershed(plane: torch.Tensor):
    ends = toy.descend(plane, torch.ones_like(plane, dtype=torch.bool), lr=0.05, steps=300)[:, -1]
    for side, minimum in (
        (plane[:, 0] > plane[:, 1], TARGET),
        (plane[:, 0] < plane[:, 1], TARGET[::-1]),
    ):
        assert torch.allclose(ends[side], torch.tensor(minimum, dtype=torch.float64), atol=1e-3)


def test_masked_weights_stay_at_zero(story: Story):
    for run in story.runs.values():
        assert (run.path[:, ~run.mask] == 0).all()
        assert (run.path[:, run.mask] != 0).all()
        assert np.array_equal(run.path[0], run.init * run.mask)


def test_the_mask_that_fits_a_fits_b_once_it_is_permuted(story: Story):
    runs = story.runs
    assert story.swapped
    assert runs["A"].end < 1e-4
    assert runs["B"].end < 1e-4
    assert story.pruned_loss < 0.11
    assert runs["lth"].end == pytest.approx(runs["permuted"].end, rel=1e-3)
    assert runs["naive"].end > 30 * runs["permuted"].end
    assert runs["naive"].end > 0.8 * toy.loss(torch.zeros(2)).item()


def test_in_one_basin_pi_moves_nothing():
    story = toy.tell(Setup(b1=1.5, b2=-1.0))
    assert not story.swapped
    assert story.runs["naive"].end == story.runs["permuted"].end == pytest.approx(0.1, abs=0.01)


def test_the_mask_can_be_chosen_by_hand():
    runs = toy.tell(Setup(prune="w₁")).runs
    assert runs["lth"].mask.tolist() == runs["naive"].mask.tolist() == [False, True]
    assert runs["permuted"].mask.tolist() == [True, False]
    assert runs["naive"].end < 0.11 < runs["permuted"].end


@pytest.mark.parametrize(
    ("field", "value"),
    [("a1", 4.0), ("b2", "0.8"), ("lr", 0.2), ("lr", math.nan), ("steps", 0), ("steps", 2.5),
     ("prune", "w3"), ("a2", True)],
)  # fmt: skip
def test_a_setup_that_cannot_be_is_refused(field: str, value: object):
    with pytest.raises(InputError, match=field):
        Setup(**{field: value})


def test_the_title_of_the_landscape_follows_the_numbers(story: Story):
    title = figures.landscape(story).layout.title.text
    assert f"B at loss {story.runs['naive'].end:.2f}" in title
    assert f"takes B to {story.runs['permuted'].end:.2f}" in title
    assert "π moves nothing" in figures.landscape(toy.tell(Setup(b1=1.5))).layout.title.text
    assert "No gain" in figures.landscape(toy.tell(Setup(prune="w₁"))).layout.title.text


def test_the_figure_shows_the_descents_in_the_methods_colours(story: Story):
    figure = figures.landscape(story)
    for name, run in story.runs.items():
        ends = [t for t in figure.data if t.name and t.name.startswith(toy.NAMES[name])]
        assert [(*t.x, *t.y) for t in ends] == [tuple(run.path[-1])]
        assert ends[0].marker.color == COLOURS[run.method]
        on_surface = [t for t in figure.data if t.type == "scatter3d"]
        assert any(np.array_equal(t.x, run.path[:, 0]) for t in on_surface)


def test_its_still_picture_has_the_contours_and_the_surface(story: Story):
    drawn = still.draw(figures.landscape(story))
    contours, _, solid = sorted(drawn.axes, key=lambda axes: axes.name == "3d")
    assert contours.get_xlabel() == "weight w₁"
    assert solid.name == "3d"
    assert len(solid.lines) == len(story.runs)
    assert len(solid.collections) == 1


@pytest.fixture
def widgets(displayed: list[dict], monkeypatch: pytest.MonkeyPatch) -> list[go.FigureWidget]:
    """The figures that `explore` makes: from above, and the surface."""
    made: list[go.FigureWidget] = []

    def make(figure: go.Figure) -> go.FigureWidget:
        made.append(go.FigureWidget(figure))
        return made[-1]

    monkeypatch.setattr(toy_widget, "FigureWidget", make)
    return made


def test_moving_a_control_redraws_the_figures_and_the_table(
    displayed: list[dict], widgets: list[go.FigureWidget]
):
    controls = toy_widget.explore(Setup())
    assert [sorted(bundle) for bundle in displayed] == [
        [toy_widget.WIDGET, "text/plain"],
        [toy_widget.WIDGET, "application/vnd.plotly.v1+json", "image/png"],
        ["text/html", "text/plain"],
    ]
    controls["b1"].value = 0.5
    controls["prune"].value = "w₂"
    moved = toy.tell(Setup(b1=0.5, prune="w₂"))
    for widget, figure in zip(widgets, (figures.above, figures.surface), strict=True):
        assert shown(widget) == shown(figure(moved))
    assert [ring.xanchor for ring in widgets[0].layout.shapes] == [moved.setup.a1, 0.5]
    assert f"{moved.runs['naive'].losses[0]:.2f}" in displayed[-1]["text/html"]


def test_dragging_a_ring_moves_the_sliders_and_stays_in_the_plane(
    displayed: list[dict], widgets: list[go.FigureWidget]
):
    controls = toy_widget.explore(Setup())
    before = len(displayed)
    with widgets[0].batch_update():
        widgets[0].layout.shapes[1].xanchor = 0.52
        widgets[0].layout.shapes[1].yanchor = 7.0
    values = {name: controls[name].value for name in toy_widget.INITS}
    assert values == pytest.approx({"a1": 0.8, "a2": -1.9, "b1": 0.5, "b2": 3.0})
    assert shown(widgets[0]) == shown(figures.above(toy.tell(Setup(**values))))
    assert widgets[0].layout.shapes[1].yanchor == 3.0
    assert len(displayed) == before + 1  # the table: told anew once, not once a slider


def shown(figure: go.Figure) -> list:
    """All traces, without the names that a widget gives them."""
    plain = json.loads(figure.to_json())
    return [{k: v for k, v in trace.items() if k != "uid"} for trace in plain["data"]]


@pytest.fixture
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What a notebook would be sent to show, as it is sent."""
    from IPython.core.interactiveshell import InteractiveShell

    shell, sent = InteractiveShell.instance(), []
    monkeypatch.setattr(shell.display_pub, "publish", lambda data, *_, **__: sent.append(data))
    return sent


@pytest.fixture(scope="module")
def runs():
    return toy_rewind.survey(pairs=60, rewinds=(0, 20, 100))


def test_the_survey_tells_of_each_pair_what_its_story_tells(runs):
    a, b = toy_rewind.inits(60, seed=0)
    for pair in range(6):
        story = toy.tell(Setup(*a[pair].tolist(), *b[pair].tolist()))
        assert story.swapped
        for method in toy_rewind.METHODS:
            (row,) = runs.query("pair == @pair and method == @method and rewind_step == 0").loss
            assert row == pytest.approx(story.runs[method].end, rel=1e-9)


def test_later_starts_help_the_permuted_mask_and_harm_the_naive_one(runs):
    shares = toy_rewind.shares(runs)
    found = shares.set_index(["method", "rewind_step"])["found"]
    assert found["permuted", 100] == found["lth", 100] == 1 > found["permuted", 0]
    assert found["naive", 100] < found["naive", 0] < found["permuted", 0]
    title = figures.rewinds(shares).layout.title.text
    assert f"naive falls from {100 * found['naive', 0]:.0f} to" in title


def test_runs_end_either_at_the_solution_or_far_from_it(runs):
    assert not runs["loss"].between(0.11, 3.5).any()


def test_a_rewind_step_after_the_training_is_refused():
    with pytest.raises(InputError, match="rewinds = 201"):
        toy_rewind.survey(pairs=2, rewinds=(0, 201))


def test_every_copy_of_a_net_has_its_loss_and_all_are_different():
    for width in (2, 3, 4):
        (net,) = toy_widths.train(width, runs=1, steps=50)
        spec = PermutationSpec.trace(toy_widths.network(width), toy_widths.X)
        copies = toy_widths.copies(spec, net)
        assert len(copies) == math.factorial(width)
        assert len({tuple(copy["0.weight"].flatten().tolist()) for copy in copies}) == len(copies)
        assert torch.allclose(toy_widths.losses(copies), toy_widths.losses([net]), rtol=1e-12)


def test_above_six_units_a_sample_of_the_copies_is_checked():
    (net,) = toy_widths.train(7, runs=1, steps=1)
    copies = toy_widths.copies(PermutationSpec.trace(toy_widths.network(7), toy_widths.X), net)
    assert len(copies) == toy_widths.COPIES == 720


def test_a_net_trains_the_same_whatever_is_trained_beside_it():
    alone, together = toy_widths.train(4, runs=1, steps=30), toy_widths.train(4, runs=3, steps=30)
    for name, p in alone[0].items():
        assert torch.allclose(p, together[0][name], rtol=1e-9)


def test_matching_wide_nets_lowers_the_barrier_and_the_distance():
    nets, paths = toy_widths.compare((32,), pairs=3)
    (row,) = toy_widths.summary(nets, paths).to_dict("records")
    assert nets["spread"][0] < 1e-10
    assert row["barrier π(A) to B"] < 0.1 * row["barrier A to B"]
    assert row["distance π(A) to B"] < 0.6 * row["distance A to B"]
    figure = figures.widths(paths)
    assert f"{row['barrier π(A) to B']:.2g} after matching" in figure.layout.title.text


@pytest.mark.parametrize(("widths", "pairs"), [((1,), 2), ((), 2), ((2.5,), 2), ((2,), 0)])
def test_widths_that_no_net_has_are_refused(widths: tuple, pairs: int):
    with pytest.raises(InputError, match="must be"):
        toy_widths.compare(widths, pairs)
