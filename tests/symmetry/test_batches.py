"""What a batch may be is the same for everything that goes through batches."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.landscape.interpolation import reset_batch_norm
from rebasin_utils.landscape.repair import statistics
from rebasin_utils.symmetry.batches import arguments, head
from rebasin_utils.symmetry.matching import match_activations, similarities
from rebasin_utils.symmetry.permutation import permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec


class Named(nn.Module):
    """Takes its images as `pixel_values`, and something else if it is given."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(64, 3)),
        )

    def forward(self, pixel_values, scale=None):
        return self.net(pixel_values if scale is None else pixel_values * scale)


class Whole(Named):
    """Takes a mapping as its one argument."""

    def forward(self, batch):
        return self.net(batch["pixel_values"])


IMAGES = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)).split(32)
LABELS = torch.zeros(32, dtype=torch.int64)

FORMS = {
    "a tensor": lambda x: x,
    "a tuple that begins with it": lambda x: (x, LABELS),
    "a list that begins with it": lambda x: [x, LABELS, "more"],
    "a mapping": lambda x: {"labels": LABELS, "pixel_values": x},
}


def nets(kind: type[nn.Module]) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval(), kind().eval()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_batch_gives_the_same_numbers(form):
    moving, reference = nets(Named)
    spec = PermutationSpec.trace(moving, IMAGES[0])
    given = [FORMS[form](x) for x in IMAGES]
    state = moving.state_dict()
    found = similarities(spec, moving, reference, given)
    expected = similarities(spec, moving, reference, IMAGES)
    assert all(np.array_equal(found[name][0], s) for name, (s, _) in expected.items())
    p, q = (match_activations(spec, moving, reference, x).permutation for x in (given, IMAGES))
    assert all(torch.equal(p[name], q[name]) for name in spec.groups)
    found, expected = statistics(moving, state, given), statistics(moving, state, IMAGES)
    for name, moments in expected.items():
        assert all(map(torch.equal, found[name], moments))
    found, expected = (reset_batch_norm(moving, state, x) for x in (given, IMAGES))
    assert all(torch.equal(found[name], t) for name, t in expected.items())
    assert not torch.equal(found["net.1.running_mean"], state["net.1.running_mean"])


def test_a_forward_with_one_argument_of_another_name_takes_a_mapping_whole():
    net, _ = nets(Whole)
    batches = [{"pixel_values": x} for x in IMAGES]
    spec = PermutationSpec.trace(net, (batches[0],))
    planted = random_permutation(spec, torch.Generator().manual_seed(0))
    moving = copy.deepcopy(net)
    moving.load_state_dict(permute(spec, planted, net.state_dict()))
    found = match_activations(spec, moving, net, batches)
    moved = permute(spec, found.permutation, moving.state_dict())
    assert all(torch.equal(moved[name], t) for name, t in net.state_dict().items())
    assert len(statistics(net, net.state_dict(), batches)) == 2
    assert reset_batch_norm(net, net.state_dict(), batches)["net.1.num_batches_tracked"] == 2


def test_arguments_are_given_in_the_order_of_their_names():
    x, y, more = torch.zeros(1), torch.ones(1), torch.ones(2)
    assert arguments((x, y, more), ("x", "y")) == (x, y)
    assert arguments({"y": y, "more": more, "x": x}, ("x", "y")) == (x, y)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ("images", "of type str: give a tensor"),
        (torch.zeros(2), "has 1 entries, the forward takes x, y"),
        ((torch.zeros(2),), "has 1 entries, the forward takes x, y"),
        ({"x": torch.zeros(2)}, "has no 'y', the forward takes x, y"),
    ],
)
def test_a_batch_that_is_none_of_these_is_refused_in_one_sentence(batch, message):
    with pytest.raises(InputError, match=message):
        arguments(batch, ("x", "y"))


def test_the_first_samples_are_taken_of_all_inputs_or_of_none():
    x, y = torch.zeros(5, 2), torch.zeros(5)
    first = head((x, {"y": y}), 2)
    assert (first[0].shape, first[1]["y"].shape) == ((2, 2), (2,))
    assert head((x, y[:3]), 2)[0] is x
