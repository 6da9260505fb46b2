"""Matching finds a planted permutation, in one pass, from exactly the statistics it names."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets import data, models
from rebasin_utils.nets.data import in_order
from rebasin_utils.symmetry.matching import match_activations, similarities
from rebasin_utils.symmetry.permutation import compose, permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.tracing.taps import tapped
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, train

SHAPE = (1, 14, 14)


def batches(images, size: int = 64):
    """A generator, so it can be gone through only once."""
    for x, _ in in_order(images, size):
        yield x


def with_state(net: nn.Module, state: dict) -> nn.Module:
    other = copy.deepcopy(net)
    other.load_state_dict(state)
    return other.eval()


def spec_of(net: nn.Module) -> PermutationSpec:
    return PermutationSpec.trace(net, torch.zeros(2, *SHAPE))


# -------------------------------------------------------------------------- planted permutations


@pytest.fixture(scope="module", params=["mlp", "resnet8"])
def trained(request):
    """A briefly trained net and its spec."""
    images = data.load("fashion-mnist-10k", "train", pool=2, limit=1024)
    net = models.build(request.param, SHAPE, 10, seed=0)
    recipe = Recipe(epochs=4, lr=0.05, batch_size=64)
    result = train(net, Job(net.state_dict(), seed=0), recipe, images)
    return with_state(net, result.state), spec_of(net)


def firing_rates(net: nn.Module, spec: PermutationSpec, images) -> dict[str, torch.Tensor]:
    """Per unit the share of samples for which it is not zero."""
    run = tapped(net, spec)
    seen = [run(x) for x in batches(images)]
    return {n: torch.cat([s[n] for s in seen]).ne(0).float().mean(0) for n in spec.groups}


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.20])
def test_a_planted_permutation_is_found_for_every_live_unit(trained, noise, images):
    """`moving` is the net with its units shuffled and its weights multiplied by 1 ± noise.

    With noise, a unit that fires for one image in a hundred cannot be told from others like it.
    """
    net, spec = trained
    generator = torch.Generator().manual_seed(1)
    planted = random_permutation(spec, generator)
    noisy = {
        n: t * (1 + noise * torch.randn(t.shape, generator=generator)) if t.ndim > 1 else t
        for n, t in net.state_dict().items()
    }
    moving = with_state(net, permute(spec, planted, noisy))
    found = match_activations(spec, moving, net, batches(images))
    undone = compose(found.permutation, planted)
    for name, rate in firing_rates(net, spec, images).items():
        live = (rate > (0.02 if noise else 0)).nonzero().flatten()
        assert len(live) > 0.8 * len(rate)
        assert torch.equal(undone[name][live], live)
        if not noise:
            assert found.groups[name].dead == len(rate) - len(live)
            assert found.groups[name].after == pytest.approx(len(live) / len(rate), abs=1e-5)


def test_a_net_matches_itself_without_moving_anything(trained, images):
    net, spec = trained
    found = match_activations(spec, net, net, batches(images))
    assert all(torch.equal(p, torch.arange(len(p))) for p in found.permutation.values())
    assert all(m.moved == 0 and m.before == m.after for m in found.groups.values())


def test_matching_leaves_both_nets_alone(trained, images):
    net, spec = trained
    moving = with_state(net, net.state_dict()).train()
    before = copy.deepcopy(moving.state_dict())
    match_activations(spec, moving, net, batches(images))
    assert moving.training
    assert all(torch.equal(before[n], t) for n, t in moving.state_dict().items())


def test_the_matched_net_computes_what_the_moving_one_does(trained, images):
    net, spec = trained
    moving = models.build({3: "mlp"}.get(len(spec.groups), "resnet8"), SHAPE, 10, seed=9).eval()
    found = match_activations(spec, moving, net, batches(images))
    matched = with_state(moving, permute(spec, found.permutation, moving.state_dict()))
    x = next(batches(images))
    with torch.no_grad():
        before, after = moving(x), matched(x)
    assert (before - after).abs().max() <= 1e-5 * before.abs().max()
    again = match_activations(spec, matched, net, batches(images))
    for name, group in again.groups.items():
        assert group.before == pytest.approx(found.groups[name].after, abs=1e-4)


# -------------------------------------------------------------------------- the statistics


def small_pair(scale: float = 1.0, offset: float = 0.0) -> tuple[PermutationSpec, list[nn.Module]]:
    """Two fresh MLPs of 12 and 9 hidden units; the first layer's biases are shifted by `offset`."""
    nets = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            net = models.MLP(SHAPE, 10, hidden=(12, 9)).eval()
        with torch.no_grad():
            net.layers.linear0.weight *= scale
            net.layers.linear0.bias += offset
        nets.append(net)
    return spec_of(nets[0]), nets


def activations(spec, nets, images) -> dict[str, list[list[np.ndarray]]]:
    """Per group and net: float64 [samples, units] of every batch."""
    runs = [tapped(net, spec) for net in nets]
    seen = [[run(x) for x in batches(images)] for run in runs]
    return {
        name: [[batch[name].double().numpy() for batch in of_net] for of_net in seen]
        for name in spec.groups
    }


def expected_similarity(objective: str, moving: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """[units of reference, units of moving], from float64 activations [samples, units]."""
    m = moving.shape[1]
    if objective == "correlation":
        return np.corrcoef(reference, moving, rowvar=False)[:-m, -m:]
    if objective == "covariance":
        return np.cov(reference, moving, rowvar=False, ddof=0)[:-m, -m:]
    return reference.T @ moving / len(moving)


@pytest.mark.parametrize("objective", ["correlation", "covariance", "inner_product"])
def test_similarity_is_the_statistic_that_numpy_computes_from_all_samples(objective, images):
    images = images.head(250)  # batches of 64, 64, 64 and 58
    spec, nets = small_pair()
    found = similarities(spec, *nets, batches(images), objective=objective)
    for name, (moving, reference) in activations(spec, nets, images).items():
        expected = expected_similarity(objective, *map(np.concatenate, (moving, reference)))
        assert expected.shape == found[name][0].shape
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[name][0], expected, atol=2e-6 * scale, rtol=0)


@pytest.mark.parametrize("objective", ["correlation", "covariance", "inner_product"])
def test_the_assignment_is_the_best_there_is_and_no_worse_than_none(objective, images):
    spec, nets = small_pair()
    found = match_activations(spec, *nets, batches(images), objective=objective)
    for name, (moving, reference) in activations(spec, nets, images).items():
        similarity = expected_similarity(objective, *map(np.concatenate, (moving, reference)))
        best = linear_sum_assignment(similarity, maximize=True)
        group, p = found.groups[name], found.permutation[name].numpy()
        units = np.arange(len(p))
        assert sorted(p) == list(units)
        assert group.after >= group.before
        assert group.before == pytest.approx(np.diagonal(similarity).mean(), rel=1e-4)
        assert group.after == pytest.approx(similarity[best].mean(), rel=1e-4)
        assert group.after == pytest.approx(similarity[units, p].mean(), rel=1e-4)
        assert group.moved == (p != units).mean()
        assert (group.units, group.dead) == (len(p), 0)


@pytest.mark.parametrize("ratio", [1e2, 1e3])
def test_a_correlation_survives_a_mean_that_is_a_thousand_spreads(ratio, images):
    spec, nets = small_pair(scale=1e-2, offset=0.0)
    name, *_ = spec.groups
    (moving, _), *_ = activations(spec, nets, images).values()
    spread = np.concatenate(moving).std()
    spec, nets = small_pair(scale=1e-2, offset=ratio * spread * 1.5)
    moving, reference = map(np.concatenate, activations(spec, nets, images)[name])
    for x in (moving, reference):
        assert (x.mean(0) / x.std(0)).min() > ratio / 5
    assert max((x.mean(0) / x.std(0)).max() for x in (moving, reference)) > ratio
    found = similarities(spec, *nets, batches(images))[name][0]
    expected = expected_similarity("correlation", moving, reference)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)


def test_the_released_variant_is_the_mean_of_every_batchs_standard_deviation(images):
    """Section 1.5 of the protocol, on batches of one size: moments and unbiased standard deviations
    averaged over the batches, 1e-4 added below."""

    def mean(each):
        return np.mean(list(each), axis=0)

    spec, nets = small_pair()
    found = similarities(spec, *nets, batches(images), std="mean_of_batches")
    for name, (moving, reference) in activations(spec, nets, images).items():
        product = mean(b.T @ a / len(a) for a, b in zip(moving, reference, strict=True))
        mean_a, mean_b = (mean(x.mean(0) for x in net) for net in (moving, reference))
        std_a, std_b = (mean(x.std(0, ddof=1) for x in net) for net in (moving, reference))
        expected = (product - np.outer(mean_b, mean_a)) / (np.outer(std_b, std_a) + 1e-4)
        np.testing.assert_allclose(found[name][0], expected, atol=2e-6, rtol=0)
        pooled = similarities(spec, *nets, batches(images))[name][0]
        assert np.abs(pooled - expected).max() > 1e-4


# -------------------------------------------------------------------------- dead units


def with_dead_units(net: nn.Module, dead: list[int], value: float = 0.0) -> nn.Module:
    """These units of the first hidden layer give the same value for every image."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        net.layers.linear0.weight[dead] = 0
        net.layers.linear0.bias[dead] = value
    return net


@pytest.mark.parametrize("objective", ["correlation", "covariance", "inner_product"])
@pytest.mark.parametrize("std", ["pooled", "mean_of_batches"])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_dead_units_make_no_nan_and_go_to_the_dead_places(objective, std, value, images):
    spec, (net, _) = small_pair()
    name = next(iter(spec.groups))
    planted = random_permutation(spec, torch.Generator().manual_seed(3))
    reference = with_dead_units(net, [2, 7], value)
    moving = with_state(reference, permute(spec, planted, reference.state_dict()))
    options = dict(objective=objective, std=std)
    found = match_activations(spec, moving, reference, batches(images), **options)
    assert found.groups[name].dead == 2
    assert np.isfinite([found.groups[name].before, found.groups[name].after]).all()
    undone = compose(found.permutation, planted)[name]
    live = [i for i in range(12) if i not in (2, 7)]
    if objective == "correlation":
        assert undone[live].tolist() == live
        assert set(undone[[2, 7]].tolist()) == {2, 7}
    again = match_activations(spec, moving, reference, batches(images), **options)
    assert torch.equal(found.permutation[name], again.permutation[name])


def test_two_dead_nets_are_not_moved(images):
    spec, (net, _) = small_pair()
    dead = with_dead_units(net, list(range(12)))
    name = next(iter(spec.groups))
    found = match_activations(spec, dead, dead, batches(images))
    assert found.permutation[name].tolist() == list(range(12))
    assert (found.groups[name].before, found.groups[name].after) == (0, 0)
    assert found.groups[name].dead == 12


# -------------------------------------------------------------------------- bad input, tables


def test_activations_that_are_not_finite_are_refused(images):
    for objective in ("correlation", "covariance", "inner_product"):
        spec, (moving, reference) = small_pair()
        with torch.no_grad():
            moving.layers.linear0.weight[3, 5] = float("nan")
        with pytest.raises(InputError, match="not finite"):
            match_activations(spec, moving, reference, batches(images), objective=objective)


def test_no_batches_are_refused():
    spec, nets = small_pair()
    with pytest.raises(InputError, match="batches is empty"):
        match_activations(spec, *nets, [])


def test_a_matching_tells_its_quality_group_by_group(images):
    spec, nets = small_pair()
    found = match_activations(spec, *nets, batches(images))
    table = found.table().set_index("group")
    assert list(table.index) == list(spec.groups)
    for name, group in found.groups.items():
        assert table.loc[name].to_dict() == pytest.approx(vars(group))
        assert found.quality()[name] == vars(group)
    assert "correlation" in repr(found)
