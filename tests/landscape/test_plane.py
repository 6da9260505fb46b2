"""The plane goes through its three nets, and its map is what the nets there do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.landscape.interpolation import lerp, reset_batch_norm
from rebasin_utils.landscape.plane import Plane, survey
from rebasin_utils.nets import models
from rebasin_utils.training.evaluate import evaluate


@pytest.fixture(params=["mlp", "resnet8"])
def three(request) -> tuple[nn.Module, list[dict]]:
    """An architecture and three nets of it."""
    nets = [models.build(request.param, (1, 14, 14), 10, seed=seed) for seed in range(3)]
    return nets[0], [net.state_dict() for net in nets]


def test_the_three_nets_lie_at_their_coordinates(three):
    model, (origin, right, above) = three
    plane = Plane.through(model, origin, right, above)
    x, y, beside = plane.coordinates(above)
    assert (y, beside) == pytest.approx((1, 0), abs=1e-6)
    for state, where in ((origin, (0, 0)), (right, (1, 0)), (above, (x, 1))):
        there = plane.point(*where)
        for name, _ in model.named_parameters():
            torch.testing.assert_close(there[name], state[name], rtol=1e-6, atol=1e-7)
        assert plane.coordinates(state) == pytest.approx((*where, 0), abs=1e-6)


def test_the_directions_are_orthogonal_and_the_second_is_measured_in_its_own_length(three):
    model, states = three
    plane = Plane.through(model, *states)
    assert abs(plane.right @ plane.up) < 1e-9 * plane.right.norm() * plane.up.norm()
    assert plane.coordinates(plane.point(-0.3, 1.7)) == pytest.approx((-0.3, 1.7, 0), abs=1e-5)


def test_a_net_outside_is_seen_from_straight_above(three):
    model, states = three
    plane = Plane.through(model, *states)
    inside, outside = (
        plane.point(0.4, 0.2),
        models.build(
            type(model).__name__.lower().replace("resnet", "resnet8"), (1, 14, 14), 10, seed=9
        ).state_dict(),
    )
    x, y, beside = plane.coordinates(outside)
    assert beside > 0.1
    half = plane.coordinates(lerp(inside, outside, 0.5))
    assert half == pytest.approx(((0.4 + x) / 2, (0.2 + y) / 2, beside / 2), abs=1e-5)


def test_nets_on_one_line_span_no_plane(three):
    model, (first, second, _) = three
    with pytest.raises(InputError, match="one line"):
        Plane.through(model, first, second, lerp(first, second, 0.3))
    with pytest.raises(InputError, match="one line"):
        Plane.through(model, first, first, second)


def test_the_map_is_the_accuracy_of_the_nets_there_with_batch_norm_recomputed(three, images):
    model, states = three
    plane = Plane.through(model, *states)
    found = survey(model, plane, (0.0, 0.5, 1.0), (0.0, 1.0), images, images)
    assert [len(row) for row in found] == [3, 3]
    for row, y in zip(found, (0.0, 1.0), strict=True):
        for metrics, x in zip(row, (0.0, 0.5, 1.0), strict=True):
            state = plane.point(x, y)
            if isinstance(model, models.ResNet):
                state = reset_batch_norm(model, state, [images.normalised(images.pixels)])
            assert metrics == pytest.approx(evaluate(model, [state], images)[0], rel=1e-6)
