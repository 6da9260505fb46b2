"""REPAIR restores what lies between the ends, in plain weights, and leaves the ends alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rebasin_utils.errors import InputError
from rebasin_utils.landscape.interpolation import lerp, merger, path
from rebasin_utils.landscape.repair import (
    corrected_layers,
    lerp_statistics,
    repair,
    statistics,
    variance_ratios,
)
from rebasin_utils.nets import data, models

NETS = ("mlp", "resnet8", "vgg11")


@pytest.fixture(scope="module")
def samples() -> data.Images:
    return data.load("fashion-mnist-10k", "train", limit=64)


@pytest.fixture(scope="module", params=NETS)
def ends(request, samples) -> tuple[nn.Module, dict, dict]:
    """An architecture and two nets of it whose running statistics are not the defaults."""
    nets = [models.build(request.param, (1, 28, 28), 10, seed=seed) for seed in (0, 1)]
    with torch.no_grad():
        for net in nets:
            net.train()(batch(samples))
    return nets[0].eval(), *(copy.deepcopy(net.state_dict()) for net in nets)


def batch(samples: data.Images) -> torch.Tensor:
    return samples.normalised(samples.pixels)


def repaired(ends, samples, alpha: float) -> tuple[dict, dict]:
    """The repaired net at α and the statistics it should have."""
    model, first, second = ends
    x = [batch(samples)]
    wanted = lerp_statistics(statistics(model, first, x), statistics(model, second, x), alpha)
    return repair(model, lerp(first, second, alpha), wanted, x), wanted


def logits(model: nn.Module, state: dict, x: torch.Tensor) -> torch.Tensor:
    net = copy.deepcopy(model).eval()
    net.load_state_dict(state)
    with torch.no_grad():
        return net(x)


@pytest.mark.parametrize(("name", "layers"), zip(NETS, (3, 9, 8), strict=True))
def test_every_hidden_layer_is_corrected_and_the_logits_are_not(name, layers):
    model = models.build(name, (1, 28, 28), 10)
    found = corrected_layers(model)
    assert len(found) == layers
    kinds = {type(model.get_submodule(n)) for n in found}
    has_bn = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert (kinds == {nn.BatchNorm2d}) == has_bn
    assert "classifier" not in found


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_an_end_is_left_as_it_is(ends, samples, alpha):
    model, *nets = ends
    state, _ = repaired(ends, samples, alpha)
    x = batch(samples)
    expected = logits(model, nets[int(alpha)], x)
    assert (logits(model, state, x) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_repaired_net_has_the_statistics_between_the_ends(ends, samples):
    model, first, second = ends
    x = [batch(samples)]
    state, wanted = repaired(ends, samples, 0.5)
    found = statistics(model, state, x)
    for name, moments in wanted.items():
        scale = moments.std.max()
        assert (found[name].mean - moments.mean).abs().max() <= 1e-3 * scale
        assert (found[name].std - moments.std).abs().max() <= 1e-3 * scale
    assert all(abs(r - 1) < 1e-3 for r in variance_ratios(found, wanted).values())
    collapsed = variance_ratios(statistics(model, lerp(first, second, 0.5), x), wanted)
    assert min(collapsed.values()) < 0.8


def test_the_plain_weights_compute_what_correcting_the_activations_does(ends, samples):
    """Fused against unfused: hooks that scale and shift the merged net's own activations."""
    model, first, second = ends
    x = batch(samples)
    state, wanted = repaired(ends, samples, 0.5)
    net = copy.deepcopy(model).eval()
    net.load_state_dict(lerp(first, second, 0.5))

    def correct(name):
        def hook(module, inputs, out):
            rest = [0, *range(2, out.ndim)]
            shape = (1, -1) + (1,) * (out.ndim - 2)
            variance, mean = torch.var_mean(out.double(), rest, correction=0)
            normal = (out - mean.view(shape)) / variance.sqrt().clamp(min=1e-12).view(shape)
            return (normal * wanted[name].std.view(shape) + wanted[name].mean.view(shape)).float()

        return hook

    for name in wanted:
        net.get_submodule(name).register_forward_hook(correct(name))
    with torch.no_grad():
        expected = net(x)
    assert (logits(model, state, x) - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_nothing_that_was_given_is_changed(ends, samples):
    model, first, second = ends
    before = copy.deepcopy((model.state_dict(), first, second))
    repaired(ends, samples, 0.5)
    for kept, now in zip(before, (model.state_dict(), first, second), strict=True):
        assert all(torch.equal(kept[n], now[n]) for n in kept)


def test_a_path_can_be_repaired(ends, samples):
    model, first, second = ends
    (found,) = path(model, first, second, (0.5,), samples, "repair", samples)
    state, _ = repaired(ends, samples, 0.5)
    assert torch.equal(
        logits(model, merger(model, first, second, "repair", samples)(0.5), batch(samples)),
        logits(model, state, batch(samples)),
    )
    assert 0 <= found.accuracy <= 1


def test_repaired_at_its_ends_a_path_is_the_two_nets(ends, samples):
    """What REPAIR computes there is the net itself, so that it need not be computed."""
    model, first, second = ends
    at = merger(model, first, second, "repair", samples)
    for alpha, end in ((0.0, first), (1.0, second)):
        assert at(alpha) is end
        computed, _ = repaired(ends, samples, alpha)
        torch.testing.assert_close(
            logits(model, computed, batch(samples)), logits(model, end, batch(samples))
        )


def test_statistics_over_many_batches_are_those_of_all_samples(ends, samples):
    model, first, _ = ends
    x = batch(samples)
    whole, split = statistics(model, first, [x]), statistics(model, first, [x[:50], x[50:]])
    for name, moments in whole.items():
        torch.testing.assert_close(split[name].mean, moments.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(split[name].std, moments.std, rtol=1e-3, atol=1e-5)


def test_a_linear_layer_on_tokens_is_corrected_by_feature():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    moments = statistics(model, model.state_dict(), [torch.randn(5, 7, 4)])
    assert moments["0"].mean.shape == (6,)


def test_a_layer_that_cannot_hold_a_shift_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    state, x = model.state_dict(), [torch.randn(5, 4)]
    with pytest.raises(InputError, match="layer 0 has no bias"):
        repair(model, state, statistics(model, state, x), x)


def test_a_layer_that_is_used_twice_is_refused_by_name():
    again = nn.Linear(4, 4)
    model = nn.Sequential(again, nn.ReLU(), again, nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(InputError, match="layer 0 is used 2 times"):
        corrected_layers(model)


def test_a_unit_that_is_constant_does_no_harm():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight[0] = 0
    state, x = model.state_dict(), [torch.randn(50, 4)]
    wanted = statistics(model, state, x)
    assert all(t.isfinite().all() for t in repair(model, state, wanted, x).values())


def test_a_correction_needs_samples(ends):
    model, first, second = ends
    with pytest.raises(InputError, match="'repair': needs samples"):
        merger(model, first, second, "repair")


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_repaired(groups):
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, groups=groups), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(4 * 64, 3)),
    )
    x = [torch.randn(40, 2, 8, 8)]
    first, second = (
        {n: t + 0.3 * torch.randn_like(t) for n, t in model.state_dict().items()} for _ in range(2)
    )
    wanted = lerp_statistics(statistics(model, first, x), statistics(model, second, x), 0.5)
    assert list(wanted) == corrected_layers(model) == ["0", "2"]
    found = statistics(model, repair(model, lerp(first, second, 0.5), wanted, x), x)
    for name, moments in wanted.items():
        torch.testing.assert_close(found[name].mean, moments.mean, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[name].std, moments.std, atol=1e-4, rtol=1e-4)


class Functional(nn.Module):
    """A hidden layer that is a function of a parameter."""

    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(6, 4)), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(F.relu(F.linear(x, self.weight)))


def test_what_cannot_be_corrected_is_refused_in_one_sentence():
    torch.manual_seed(0)
    wide, narrow = (nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 3)) for n in (6, 5))
    x = [torch.randn(5, 4)]
    of_wide, of_narrow = (statistics(net, net.state_dict(), x) for net in (wide, narrow))
    with pytest.raises(InputError, match="linear is a layer made of a function"):
        corrected_layers(Functional())
    with pytest.raises(InputError, match="batches is empty"):
        statistics(wide, wide.state_dict(), [])
    with pytest.raises(InputError, match="layer 0 has 6 channels in one, 5 in the other"):
        lerp_statistics(of_wide, of_narrow, 0.5)
    with pytest.raises(InputError, match="only one of the two statistics has the layer '0'"):
        lerp_statistics(of_wide, {}, 0.5)
    with pytest.raises(InputError, match="wanted lacks the layer '0'"):
        repair(wide, wide.state_dict(), {}, x)
