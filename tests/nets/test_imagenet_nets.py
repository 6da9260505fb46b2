"""ResNet50 for ImageNet, twice as wide, and in miniature."""

from __future__ import annotations

import pytest
import torch
from torchvision import models as zoo

from rebasin_utils.nets import masks, models
from rebasin_utils.nets.imagenet_nets import resnet14_bottleneck, resnet50
from rebasin_utils.symmetry.spec import PermutationSpec


@pytest.mark.parametrize(
    ("width", "parameters"),
    # The second is the count of the released code's net.
    [(1, 25_557_032), (2, 271_278_696)],
)
def test_the_parameters_are_those_of_the_paper(width, parameters):
    with torch.device("meta"):
        net = resnet50((3, 224, 224), 1000, width)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_at_width_one_it_is_the_net_of_torchvision():
    torch.manual_seed(0)
    mine = resnet50((3, 224, 224), 1000)
    torch.manual_seed(0)
    theirs = zoo.resnet50()
    state = theirs.state_dict()
    assert list(mine.state_dict()) == list(state)
    assert all(torch.equal(t, state[name]) for name, t in mine.state_dict().items())


def test_shortcuts_are_not_pruned():
    names = masks.prunable(resnet14_bottleneck((3, 32, 32), 10))
    assert len(names) == 1 + 4 * 3 + 1
    assert not any("downsample" in name for name in names)


@pytest.mark.parametrize(("name", "groups"), [("resnet50", 37), ("resnet14_bottleneck", 4 * 2 + 5)])
def test_two_groups_a_bottleneck_and_five_streams(name, groups):
    net = models.build(name, (3, 64, 64), 10)
    example = torch.zeros(2, 3, 64, 64)
    spec = PermutationSpec.trace(net, example)
    spec.prove(net, example)
    assert len(spec.groups) == groups
