"""Matching that stops by itself has seen enough, reads no more, and says when it has not."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.assignment import best_assignment
from rebasin_utils.symmetry.enough import EXPECTED, FACTOR, bound, together
from rebasin_utils.symmetry.matching import PRECISION, match_activations, similarities
from rebasin_utils.symmetry.moments import Moments
from rebasin_utils.symmetry.permutation import permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec


def net(seed: int, units: int = 24) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, units), nn.ReLU(), nn.Linear(units, units), nn.ReLU(), nn.Linear(units, 4)
    )


def alike(first: nn.Module, seed: int, share: float = 0.5) -> nn.Sequential:
    """A net that has something of another in another order: weights mixed, units permuted."""
    other, spec = net(seed, len(first[0].weight)), spec_of(first)
    mixed = {
        name: (1 - share) * tensor + share * other.state_dict()[name]
        for name, tensor in first.state_dict().items()
    }
    generator = torch.Generator().manual_seed(seed)
    other.load_state_dict(permute(spec, random_permutation(spec, generator), mixed))
    return other


def spec_of(model: nn.Module) -> PermutationSpec:
    return PermutationSpec.trace(model, torch.zeros(2, 12))


def data(batches: int, seed: int, size: int = 100) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(12, 12, generator=torch.Generator().manual_seed(7))
    return [torch.randn(size, 12, generator=generator) @ mix for _ in range(batches)]


def test_what_has_not_seen_enough_is_the_exact_matching_of_all_data_and_says_so():
    reference = net(0)
    moving = alike(reference, 1, share=0.9)
    spec, batches = spec_of(reference), data(14, seed=2)
    exact = match_activations(spec, moving, reference, batches)
    with pytest.warns(UserWarning, match=r"until = 1e-09: the data ended before 2 of 2 groups"):
        stopped = match_activations(spec, moving, reference, batches, until=1e-9)
    for name, p in exact.permutation.items():
        assert torch.equal(stopped.permutation[name], p)
        assert stopped.groups[name].after == pytest.approx(exact.groups[name].after, abs=1e-6)
        assert stopped.enough[name].samples == 1400
        assert stopped.enough[name].regret > 1e-9


@pytest.mark.parametrize("std", ["pooled", "mean_of_batches"])
def test_two_halves_joined_are_the_whole(std):
    first, second, whole = (Moments("correlation", std) for _ in range(3))
    generator = torch.Generator().manual_seed(0)
    for i in range(7):
        b = 5 + torch.randn(60, 9, generator=generator)
        a = b @ torch.randn(9, 9, generator=generator) + 3
        (second if i % 2 else first).add(b, a)
        if i == 0:
            second.share_shifts(first)
        whole.add(b, a)
    joined = first.joined(second)
    np.testing.assert_allclose(joined.similarity()[0], whole.similarity()[0], atol=1e-6)
    again = first.joined(second)  # joining changes neither
    np.testing.assert_array_equal(again.similarity()[0], joined.similarity()[0])


def test_a_copy_is_known_at_the_first_look_and_no_more_is_read():
    reference = net(0)
    spec = spec_of(reference)
    generator = torch.Generator().manual_seed(3)
    planted = random_permutation(spec, generator)
    moving = net(0)
    moving.load_state_dict(permute(spec, planted, reference.state_dict()))
    read = []

    def batches():
        for batch in data(100, seed=4):
            read.append(len(batch))
            yield batch

    matching = match_activations(spec, moving, reference, batches(), until=0.01)
    assert sum(read) == 600
    for found in matching.enough.values():
        assert found.samples == 600
        assert found.regret < 1e-6
    assert matching.regret < 1e-6
    for name, p in matching.permutation.items():
        assert torch.equal(planted[name][p], torch.arange(len(p)))


def test_a_stricter_limit_reads_more_and_the_same_limit_the_same():
    reference = net(0)
    moving, spec = alike(reference, 5, share=0.8), spec_of(reference)
    seen = [
        match_activations(spec, moving, reference, data(600, seed=6), until=until)
        for until in (0.05, 0.05, 0.002)
    ]
    read = [max(found.samples for found in m.enough.values()) for m in seen]
    assert read[0] == read[1] < read[2]
    assert seen[0].enough == seen[1].enough
    for m, until in zip(seen, (0.05, 0.05, 0.002), strict=True):
        assert m.regret <= until


def test_groups_that_have_seen_enough_see_no_more():
    reference = net(0)
    moving, spec = net(0), spec_of(reference)
    with torch.no_grad():
        moving[2].weight.copy_(alike(reference, 8, share=0.9)[2].weight)  # the first layer is known
    found = match_activations(spec, moving, reference, data(600, seed=9), until=0.002).enough
    first, second = found.values()
    assert first.samples == 600
    assert second.samples > first.samples


@pytest.mark.parametrize("units", [24, 48])
def test_the_bound_holds_on_data_that_was_not_seen(units):
    """Regret on 40,000 other samples, for nets that have ever less in common."""
    others = data(40, seed=10, size=1000)
    lacking, bounds, of_group = [], [], []
    for seed in range(40):
        reference = net(100 + seed, units)
        moving, spec = alike(reference, 200 + seed, share=0.6 + 0.009 * seed), spec_of(reference)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for some there are too few
            matching = match_activations(
                spec, moving, reference, data(48, seed=seed + 300), until=0.02
            )
        best = lacks = 0.0
        for name, (matrix, _) in similarities(spec, moving, reference, others).items():
            rows = np.arange(len(matrix))
            most = matrix[rows, best_assignment(matrix, PRECISION)].sum()
            own = most - matrix[rows, matching.permutation[name].numpy()].sum()
            of_group.append(own / most <= matching.enough[name].regret)
            best, lacks = best + most, lacks + own
        lacking.append(lacks / best)
        bounds.append(matching.regret)
    assert np.mean(np.array(lacking) <= bounds) >= 0.95
    assert np.mean(of_group) >= 0.9
    assert np.mean(bounds) < 4 * np.mean(lacking)


def test_without_groups_or_without_a_limit_there_is_no_bound():
    layer, reference = nn.Linear(12, 3), net(0)
    for model, until in ((layer, 0.1), (layer, None), (reference, None)):
        found = match_activations(spec_of(model), model, model, data(4, seed=1), until=until)
        assert not found.enough
        assert found.regret == math.inf


def test_groups_together_are_bounded_by_less_than_one_by_one():
    """By as much as independent draws even out."""
    assert together([7]) == 1
    expected, deviation = EXPECTED / FACTOR, 1 - EXPECTED / FACTOR
    assert together([5] * 9) == pytest.approx(expected + deviation / 3)
    assert together([5] * 4) < together([2, 2, 2, 14]) < 1


@pytest.mark.parametrize("shift", [0.0, -0.5])  # of totals that are positive, and some that are not
def test_a_look_that_ends_early_decides_what_a_whole_one_does(shift):
    random = np.random.default_rng(0)
    looked = []
    for noise in np.geomspace(0.003, 1, 60):
        signal = random.random((12, 12)) + shift
        whole, *parts = (signal + noise * random.standard_normal((12, 12)) for _ in range(7))
        halves = list(zip(parts[::2], parts[1::2], strict=True))
        regret = bound(halves, whole, PRECISION, math.inf)
        for until in (0.001, 0.02, 0.2):
            left = iter(halves)
            found = bound(left, whole, PRECISION, until)
            assert found == regret if regret <= until else until < found <= regret
            looked.append(3 - len(list(left)))
    assert set(looked) == {1, 2, 3}


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_nothing_is_known_of_fewer_than_four_batches(batches):
    reference = net(0)
    with pytest.warns(UserWarning, match="may lack inf"):
        match_activations(spec_of(reference), net(1), reference, data(batches, 0, 900), until=0.5)


def test_no_data_are_refused_as_ever():
    reference = net(0)
    with pytest.raises(InputError, match="batches is empty"):
        match_activations(spec_of(reference), net(1), reference, [], until=0.5)


@pytest.mark.parametrize("until", [0, 1, -0.1, float("nan"), 2])
def test_a_limit_that_is_no_share_is_refused(until):
    reference = net(0)
    with pytest.raises(InputError, match=f"until = {until}: must be a share"):
        match_activations(spec_of(reference), net(1), reference, data(2, 0), until=until)
