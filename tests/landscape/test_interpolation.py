"""The path between two nets ends where it should, and batch norm is reset by the book."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.landscape import interpolation
from rebasin_utils.landscape.interpolation import barrier, lerp, path, reset_batch_norm
from rebasin_utils.nets import models
from rebasin_utils.nets.data import in_order
from rebasin_utils.training.evaluate import evaluate


def trained_like(name: str, seed: int, images) -> tuple[nn.Module, dict]:
    """A net whose running statistics are not the defaults, and its state."""
    net = models.build(name, (1, 14, 14), 10, seed=seed).train()
    with torch.no_grad():
        for x, _ in in_order(images, 64):
            net(x)
    return net, copy.deepcopy(net.state_dict())


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# -------------------------------------------------------------------------- the segment


def test_the_ends_of_the_path_are_the_two_nets_to_the_last_bit(images):
    (_, first), (_, second) = (trained_like("resnet8", seed, images) for seed in (0, 1))
    assert same(lerp(first, second, 0.0), first)
    ours = lerp(first, second, 1.0)
    assert all(torch.equal(ours[n], second[n]) for n, t in ours.items() if t.is_floating_point())


@given(st.floats(0, 1))
@settings(deadline=None)
def test_a_point_on_the_path_is_the_weighted_mean(alpha):
    first = {"w": torch.tensor([1.0, -2.0, 5.0]), "n": torch.tensor(3)}
    second = {"w": torch.tensor([0.0, 4.0, 5.0]), "n": torch.tensor(7)}
    mixed = lerp(first, second, alpha)
    expected = (1 - alpha) * first["w"] + alpha * second["w"]
    torch.testing.assert_close(mixed["w"], expected, atol=1e-6, rtol=1e-6)
    assert mixed["n"] == 3  # a counter is not mixed


def test_interpolating_leaves_both_nets_alone(images):
    (net, first), (_, second) = (trained_like("resnet8", seed, images) for seed in (0, 1))
    before = copy.deepcopy((net.state_dict(), first, second))
    middle = lerp(first, second, 0.5)
    path(
        net, first, second, (0.0, 0.5, 1.0), images.head(64), correction="bn_reset", samples=images
    )
    for tensor in (*middle.values(), *lerp(first, second, 0.0).values()):
        tensor.zero_()
    assert all(map(same, before, (net.state_dict(), first, second)))
    assert net.training


def test_nets_of_different_architectures_are_refused_with_the_tensors_that_differ():
    with pytest.raises(InputError, match=r"differ in their tensors: .*classifier"):
        lerp({"a": torch.ones(1), "classifier": torch.ones(1)}, {"a": torch.ones(1)}, 0.5)


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_the_path_is_evaluated_where_it_says(name, images):
    (net, first), (_, second) = (trained_like(name, seed, images) for seed in (0, 1))
    alphas = (0.0, 0.25, 1.0)
    found = path(net, first, second, alphas, images)
    expected = evaluate(net, [first, lerp(first, second, 0.25), second], images)
    assert found == expected


# -------------------------------------------------------------------------- the barrier


def test_the_barrier_is_the_largest_excess_over_the_line_between_the_ends():
    alphas = (0.0, 0.25, 0.5, 0.75, 1.0)
    assert barrier((1.0, 1.5, 3.0, 2.5, 2.0), alphas) == pytest.approx(1.5)  # at 0.5 over 1.5
    assert barrier((0.0, 0.0, 0.0, 1.0, 0.0), alphas) == pytest.approx(1.0)
    assert barrier((2.0, 1.5, 1.0, 0.5, 0.0), alphas) == pytest.approx(0.0)  # a straight line
    assert barrier((1.0, 0.5, 0.2, 0.5, 1.0), alphas) == 0  # a valley


@given(st.lists(st.floats(0, 100), min_size=2, max_size=9), st.floats(-5, 5), st.floats(-5, 5))
@settings(deadline=None)
def test_a_barrier_is_never_negative_and_ignores_any_straight_line(values, slope, offset):
    alphas = [i / (len(values) - 1) for i in range(len(values))]
    tilted = [v + slope * a + offset for v, a in zip(values, alphas, strict=True)]
    assert barrier(values, alphas) >= 0
    assert barrier(tilted, alphas) == pytest.approx(barrier(values, alphas), abs=1e-6)


@pytest.mark.parametrize("alphas", [(0.1, 1.0), (0.0, 0.9)])
def test_a_barrier_needs_both_ends(alphas):
    with pytest.raises(InputError, match="from 0 to 1"):
        barrier((1.0, 1.0), alphas)


# -------------------------------------------------------------------------- batch norm


def test_only_nets_with_batch_norm_have_statistics_to_recompute():
    having = {
        n: interpolation.has_batch_norm(models.build(n, (1, 16, 16), 10)) for n in models.MODELS
    }
    assert {name for name, has in having.items() if not has} == {
        "mlp", "mlp_ln", "vgg11", "mlp_mixer"
    }  # fmt: skip


def by_hand(net: nn.Module, state: dict, batches: list[torch.Tensor]) -> dict:
    """For every batch norm: the mean over batches of its inputs' means and unbiased variances."""
    net = copy.deepcopy(net)
    net.load_state_dict(state)
    net.train()
    seen: dict[str, list] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0].double())
            )
    with torch.no_grad():
        for x in batches:
            net(x)
    result = {}
    for name, inputs in seen.items():
        per_channel = [x.transpose(0, 1).flatten(1) for x in inputs]
        result[f"{name}.running_mean"] = torch.stack([x.mean(1) for x in per_channel]).mean(0)
        result[f"{name}.running_var"] = torch.stack([x.var(1) for x in per_channel]).mean(0)
    return result


def test_resetting_batch_norm_gives_the_mean_of_every_batchs_statistics(images):
    net, state = trained_like("resnet8", 0, images)
    batches = [images.normalised(images.pixels[a:b]) for a, b in ((0, 64), (64, 128), (128, 250))]
    reset = reset_batch_norm(net, state, iter(batches))
    expected = by_hand(net, state, batches)
    assert len(expected) == 2 * 9
    for name, tensor in reset.items():
        if name in expected:
            torch.testing.assert_close(tensor.double(), expected[name], atol=1e-4, rtol=1e-4)
            assert not torch.allclose(tensor, state[name], rtol=1e-3)
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, state[name])


def test_resetting_batch_norm_leaves_its_inputs_alone(images):
    net, state = trained_like("resnet8", 0, images)
    net.eval()
    before = copy.deepcopy((net.state_dict(), state))
    reset_batch_norm(net, state, [images.normalised(images.pixels)])
    assert all(map(same, before, (net.state_dict(), state)))
    assert not net.training
    assert all(m.momentum == 0.1 for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_a_path_with_statistics_resets_batch_norm_at_every_point(images):
    (net, first), (_, second) = (trained_like("resnet8", seed, images) for seed in (0, 1))
    found = path(net, first, second, (0.0, 0.5, 1.0), images, correction="bn_reset", samples=images)
    expected = []
    for alpha in (0.0, 0.5, 1.0):
        batches = [images.normalised(images.pixels)]
        state = reset_batch_norm(net, lerp(first, second, alpha), batches)
        expected += evaluate(net, [state], images)
    assert found == expected
    assert found[1] != path(net, first, second, (0.5,), images)[0]


# -------------------------------------------------------------------------- bad input


def test_nets_of_two_widths_have_no_straight_line_between_them():
    """Not even where torch would stretch one to the other."""
    narrow, wide = {"bias": torch.zeros(1)}, {"bias": torch.zeros(4)}
    for pair in ((narrow, wide), (wide, narrow)):
        with pytest.raises(InputError, match="in the shape of the tensor 'bias'"):
            lerp(*pair, 0.5)


def test_statistics_of_no_batches_are_refused():
    net = models.build("resnet8", (1, 14, 14), 10)
    with pytest.raises(InputError, match="batches is empty"):
        reset_batch_norm(net, net.state_dict(), iter([]))
