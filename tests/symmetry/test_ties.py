"""Units that are alike at their tap: told apart by other activations, then by weights."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

from rebasin_utils.landscape.interpolation import lerp
from rebasin_utils.symmetry.assignment import best_assignment
from rebasin_utils.symmetry.matching import PRECISION, match_activations, similarities
from rebasin_utils.symmetry.permutation import compose, permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec


class Residual(nn.Module):
    """Two residual blocks around a stream of 16 units."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
        self.up = nn.ModuleList(nn.Linear(16, 24) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(24, 16) for _ in range(2))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for up, down in zip(self.up, self.down, strict=True):
            x = torch.relu(x + down(torch.relu(up(x))))
        return self.head(x)


def killed(seed: int, *, everywhere: bool = False) -> nn.Module:
    """A net with four units of its stream dead after the last block, or after every sum."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Residual().eval()
        dead = torch.randperm(16)[:4]
    with torch.no_grad():
        for linear in (net.stem, *net.down) if everywhere else net.down[1:]:
            linear.bias[dead] = -50.0
            if everywhere:
                linear.weight[dead] = 0.0
    return net


def permuted(net: nn.Module, spec: PermutationSpec, seed: int):
    p = random_permutation(spec, torch.Generator().manual_seed(seed))
    moving = copy.deepcopy(net)
    moving.load_state_dict(permute(spec, p, net.state_dict()))
    return p, moving


def inputs(seed: int, *shape: int) -> list[torch.Tensor]:
    return list(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).split(64))


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_units_that_are_dead_at_the_tap_are_recovered(seed, everywhere):
    """Alive before the last ReLU and in earlier blocks; or nowhere, so that weights must tell."""
    net = killed(seed, everywhere=everywhere)
    batches = inputs(seed, 256, 6)
    spec = PermutationSpec.trace(net, batches[0])
    p, moving = permuted(net, spec, seed)
    found = match_activations(spec, moving, net, iter(batches))
    assert found.groups["stem"].dead == 4
    for vector in compose(found.permutation, p).values():
        assert torch.equal(vector, torch.arange(len(vector)))


def test_a_dead_unit_goes_where_it_acts_alike_in_earlier_blocks_whatever_its_weights_say():
    """The moving net's head is drawn anew, large: by weights alone the dead units would be lost."""
    for seed in range(5):
        net = killed(seed)
        batches = inputs(seed, 256, 6)
        spec = PermutationSpec.trace(net, batches[0])
        p, moving = permuted(net, spec, seed)
        with torch.no_grad():
            moving.head.weight.normal_(std=100, generator=torch.Generator().manual_seed(seed))
        found = match_activations(spec, moving, net, batches)
        undone = compose(found.permutation, p)["stem"]
        assert torch.equal(undone, torch.arange(16))


@pytest.mark.parametrize("seed", range(5))
def test_units_that_the_tap_tells_apart_stay_where_it_puts_them(seed):
    """Two nets that are not alike; what settles their dead units may change as it will."""
    moving, reference = killed(seed), killed(seed + 100)
    batches = inputs(seed, 256, 6)
    spec = PermutationSpec.trace(moving, batches[0])
    found = match_activations(spec, moving, reference, batches)
    whole = best_assignment(similarities(spec, moving, reference, batches)["stem"][0], PRECISION)
    live = [i for i in range(16) if reference.down[1].bias[i] > -40]
    taken = found.permutation["stem"][live]
    alive = moving.down[1].bias[taken] > -40
    assert torch.equal(taken[alive], torch.from_numpy(whole)[live][alive])
    assert found.groups["stem"].dead == 4


def test_a_fresh_resnet50_is_aligned_to_a_permuted_copy_of_itself():
    """As it is made: with a tenth of its units dead behind their ReLU."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.resnet50().eval()
    batches = inputs(0, 8, 3, 64, 64)
    spec = PermutationSpec.trace(net, batches[0][:1])
    _, moving = permuted(net, spec, 1)
    found = match_activations(spec, moving, net, batches)
    assert sum(group.dead for group in found.groups.values()) > 1000
    moved = permute(spec, found.permutation, moving.state_dict())
    assert all(torch.equal(moved[name], t) for name, t in net.state_dict().items())
    middle = copy.deepcopy(net)
    middle.load_state_dict(lerp(moved, net.state_dict(), 0.5))
    with torch.no_grad():
        torch.testing.assert_close(middle(batches[0]), net(batches[0]))


class Square(nn.Module):
    """A stream with a square weight in it: the group has both axes of one tensor."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.head(torch.relu(x + self.mix(x)))


@pytest.mark.parametrize("seed", range(20))
def test_weights_tell_dead_units_apart_where_a_group_has_both_axes_of_a_tensor(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Square().eval()
        dead = torch.randperm(16)[:4]
    with torch.no_grad():
        for linear in (net.stem, net.mix):
            linear.weight[dead], linear.bias[dead] = 0.0, -1.0
    batches = inputs(seed, 256, 6)
    spec = PermutationSpec.trace(net, batches[0])
    p, moving = permuted(net, spec, seed)
    undone = compose(match_activations(spec, moving, net, batches).permutation, p)
    assert torch.equal(undone["stem"], torch.arange(16))
