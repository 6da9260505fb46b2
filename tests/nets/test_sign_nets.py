"""The second paper's networks: of the size that it has, traced and proved, and trainable."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets import models
from rebasin_utils.nets.images import Images
from rebasin_utils.nets.sources import SOURCES
from rebasin_utils.symmetry.permutation import permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, train

SHAPE = (3, 32, 32)
#: Parameters for 100 classes on 32 × 32 images, and groups of units that can be moved.
SIZES = {
    "resnet50_small": (23_705_252, 37),
    "mobilenet_v2_small": (2_351_972, 25),
    "mobilenet_v2": (2_351_972, 25),
    "efficientnet_b0_small": (4_135_648, 40),
    "efficientnet_b0_small_dropout": (4_135_648, 40),
    "shufflenet_g3": (1_012_492, 0),
    "mlp_mixer": (3_653_988, 25),
}


@pytest.mark.parametrize("name", SIZES)
def test_it_has_the_parameters_that_it_should(name):
    net = models.build(name, SHAPE, 100)
    assert sum(p.numel() for p in net.parameters()) == SIZES[name][0]


def test_resnet50_is_torchvisions_but_for_the_stem():
    net = models.build("resnet50_small", SHAPE, 100)
    assert net.conv1.weight.shape == (64, 3, 3, 3)
    assert isinstance(net.maxpool, nn.Identity)
    with torch.no_grad():
        assert net.eval().layer1(torch.zeros(1, 64, 32, 32)).shape == (1, 256, 32, 32)


@pytest.mark.parametrize("name", [n for n, (_, groups) in SIZES.items() if groups])
def test_it_is_traced_and_proved(name):
    net = models.build(name, SHAPE, 100, seed=1).eval()
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    spec = PermutationSpec.trace(net, x)
    spec.prove(net, x)
    assert len(spec.groups) == SIZES[name][1]
    moved = models.build(name, SHAPE, 100, seed=1).eval()
    p = random_permutation(spec, torch.Generator().manual_seed(2))
    moved.load_state_dict(permute(spec, p, net.state_dict()))
    with torch.no_grad():
        assert torch.allclose(net(x), moved(x), atol=1e-3)
        assert not torch.equal(next(net.parameters()), next(moved.parameters()))


def test_of_shufflenet_nothing_can_be_moved_and_that_is_said():
    """All that it has goes through grouped convolutions, whose groups cannot change places."""
    net = models.build("shufflenet_g3", SHAPE, 100)
    spec = PermutationSpec.trace(net, torch.zeros(2, *SHAPE))
    with pytest.raises(InputError, match="no groups: there is nothing to move"):
        spec.prove(net, torch.zeros(2, *SHAPE))


@pytest.mark.parametrize("name", SIZES)
def test_a_step_of_training_changes_every_weight_and_is_the_same_again(name):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, *SHAPE), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.arange(8) % 10, SOURCES["cifar10"])
    net = models.build(name, SHAPE, 10)
    job, recipe = Job(net.state_dict(), seed=3), Recipe(epochs=1, lr=0.01, batch_size=8)
    first, again = (train(net, job, recipe, images) for _ in range(2))
    assert not first.diverged
    for weight, tensor in net.named_parameters():
        assert torch.equal(first.state[weight], again.state[weight])
        changed = (first.state[weight] != tensor).any()
        assert changed or tensor.ndim == 1  # a bias before a batch norm has no gradient


@pytest.mark.parametrize("name", ["resnet50_small", "efficientnet_b0_small"])
def test_what_comes_in_one_width_says_so(name):
    with pytest.raises(InputError, match="width = 2"):
        models.build(name, SHAPE, 10, width=2)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="do not tile"):
        models.build("mlp_mixer", (3, 30, 32), 10)
