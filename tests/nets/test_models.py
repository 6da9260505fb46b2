"""The networks have the published sizes, and a seed says everything about a fresh one."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets import masks, models

CIFAR = (3, 32, 32)


def size(model: nn.Module, names: tuple[str, ...] | None = None) -> int:
    """Number of parameters, of all or of the named ones."""
    named = dict(model.named_parameters())
    return sum(named[n].numel() for n in (named if names is None else names))


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(
    ("name", "width", "total", "prunable", "shortcuts"),
    [
        ("resnet20", 1, 292_954, 268_336, 23_040),
        ("resnet20", 4, 4_655_434, 4_280_512, 368_640),
        ("resnet20", 8, 18_600_586, 17_113_472, 1_474_560),
        ("resnet20", 16, 74_360_074, 68_436_736, 5_898_240),
        ("vgg11", 1, 9_225_610, 9_222_848, 0),
    ],
)
def test_the_papers_models_have_the_papers_sizes(name, width, total, prunable, shortcuts):
    with torch.device("meta"):
        model = models.MODELS[name](CIFAR, 10, width=width)
    assert size(model) == total
    assert size(model, masks.prunable(model)) == prunable
    assert size(model, model.not_prunable) == shortcuts
    everything = masks.prunable(model, include_shortcuts=True)
    assert size(model, everything) == prunable + shortcuts


def test_only_the_two_downsampling_shortcuts_are_kept_from_pruning():
    model = models.build("resnet20", CIFAR, 10)
    assert len(model.not_prunable) == 2
    modules = dict(model.named_modules())
    for name in model.not_prunable:
        conv = modules[name.removesuffix(".weight")]
        assert "shortcut" in name
        assert (conv.kernel_size, conv.stride, conv.padding) == ((3, 3), (2, 2), (1, 1))
        assert conv.bias is None
    everything = masks.prunable(model, include_shortcuts=True)
    assert set(everything) - set(masks.prunable(model)) == set(model.not_prunable)


@pytest.mark.parametrize("name", models.MODELS)
def test_every_convolution_and_linear_weight_is_prunable_and_nothing_else(name):
    model = models.build(name, CIFAR, 10)
    named = dict(model.named_parameters())
    left_out = getattr(model, "not_prunable", ())
    expected = {n for n, p in named.items() if p.ndim > 1} - set(left_out)
    assert set(masks.prunable(model)) == expected


def test_a_resnet_of_depth_6n_plus_2_has_that_many_weighted_layers():
    for depth in (8, 14, 20, 26):
        model = models.ResNet(CIFAR, 10, depth=depth)
        assert len(masks.prunable(model)) == depth


def test_a_resnet_halves_the_image_twice_and_doubles_the_channels():
    model = models.build("resnet20", CIFAR, 10, width=2).eval()
    x = model.stem(torch.zeros(1, *CIFAR))
    shapes = [tuple(x.shape[1:])]
    for stage in model.stages:
        x = stage(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(32, 32, 32), (32, 32, 32), (64, 16, 16), (128, 8, 8)]


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 10), ((3, 32, 32), 100)])
def test_input_channels_and_classes_are_arguments(name, shape, classes):
    model = models.build(name, shape, classes).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, classes)


@pytest.mark.parametrize("name", models.MODELS)
def test_a_fresh_model_depends_on_its_seed_alone(name):
    shape = (1, 16, 16)
    first = models.build(name, shape, 10, seed=5)
    torch.rand(3)
    models.build("mlp", shape, 10, seed=99)
    assert same(first, models.build(name, shape, 10, seed=5))
    assert not same(first, models.build(name, shape, 10, seed=6))


def test_building_a_model_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    expected = torch.rand(5)
    torch.manual_seed(0)
    models.build("resnet8", (1, 8, 8), 10, seed=3)
    assert torch.equal(torch.rand(5), expected)


@pytest.mark.parametrize("name", ["mlp", "mlp_bn", "resnet20"])
def test_weights_begin_as_kaiming_normal_of_the_fan_in(name):
    model = models.build(name, CIFAR, 100, width=4, seed=1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight = module.weight.detach()
            expected = (2 / weight[0].numel()) ** 0.5
            allowed = 5 * expected / (2 * weight.numel()) ** 0.5  # five standard errors
            assert abs(weight.std().item() - expected) < allowed
            assert weight.abs().max() > 2.5 * expected  # a normal has tails, a uniform has not
        if isinstance(module, nn.Linear) and module.bias is not None:
            assert module.bias.abs().max() <= module.in_features**-0.5
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))


def test_vgg_begins_with_pytorchs_default_uniform_weights():
    model = models.build("vgg11", CIFAR, 10, seed=1)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = module.weight[0].numel() ** -0.5
            assert module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
            assert module.bias.abs().max() > 0


def test_vgg_with_batch_norm_normalises_after_every_convolution():
    plain = models.build("vgg11", CIFAR, 10)
    normed = models.build("vgg11_bn", CIFAR, 10)
    convs = [m for m in plain.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 8
    assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
    layers = list(normed.features)
    after = [b for a, b in pairwise(layers) if isinstance(a, nn.Conv2d)]
    assert [m.num_features for m in after if isinstance(m, nn.BatchNorm2d)] == [
        conv.out_channels for conv in convs
    ]


@pytest.mark.parametrize(("name", "kind"), [("mlp_bn", nn.BatchNorm1d), ("mlp_ln", nn.LayerNorm)])
def test_an_mlp_with_norm_layers_has_one_before_every_relu_and_no_bias_before_it(name, kind):
    net = models.build(name, (1, 14, 14), 10, width=2)
    assert [type(m) for m in net.layers] == 3 * [nn.Linear, kind, nn.ReLU]
    for linear, norm in zip(net.layers[::3], net.layers[1::3], strict=True):
        assert linear.bias is None
        assert torch.equal(norm.weight, torch.ones(256))
        assert torch.equal(norm.bias, torch.zeros(256))
    assert net.classifier.bias is not None
    plain = models.build("mlp", (1, 14, 14), 10, width=2)
    assert size(net) == size(plain) + 3 * 256  # γ and β for every bias
    assert masks.prunable(net) == masks.prunable(plain)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda: models.build("resnet", CIFAR, 10), ["model", "'resnet'", *models.MODELS]),
        (lambda: models.ResNet(CIFAR, 10, depth=18), ["depth", "18", "6n+2"]),
        (lambda: models.ResNet(CIFAR, 10, depth=2), ["depth", "2", "6n+2"]),
        (lambda: models.build("vgg11", (1, 14, 14), 10), ["14", "VGG11", "16"]),
    ],
)
def test_a_model_that_cannot_be_is_refused_in_a_sentence(call, names):
    with pytest.raises(InputError) as raised:
        call()
    for name in names:
        assert name in str(raised.value)
