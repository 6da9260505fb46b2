"""Groups whose samples are other groups' units: found again, in as few passes as that takes."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from test_tracing_attention import Mixer
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.matching import match_activations
from rebasin_utils.symmetry.passes import passes
from rebasin_utils.symmetry.permutation import compose, permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec


class Grid(nn.Module):
    """Rows and columns are mixed in turn: columns and the units above are each other's samples."""

    def __init__(self):
        super().__init__()
        self.rows, self.columns = nn.Linear(5, 9), nn.Linear(6, 8)
        self.above, self.head = nn.Linear(9, 7), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.rows(x).transpose(1, 2))
        x = torch.relu(self.columns(x))
        return self.head(torch.relu(self.above(x.transpose(1, 2))).mean(2))


class Latents(nn.Module):
    """A learned grid: both its axes are groups, and its first activation shows both at once."""

    def __init__(self):
        super().__init__()
        self.slope, self.offset = (nn.Parameter(torch.randn(9, 8)) for _ in range(2))
        self.columns, self.rows = nn.Linear(8, 3), nn.Linear(9, 2)

    def forward(self, x):
        x = torch.relu(x[:, :1, None] * self.slope + self.offset)
        return self.rows(self.columns(x).transpose(1, 2))


CASES = {
    "mixer": (Mixer, (3, 12, 12), 2),
    "grid": (Grid, (6, 5), 3),
    "latents": (Latents, (4,), 2),
}


def planted(name: str, seed: int):
    """A spec, a net, its permuted copy, the permutation, and two batches of 32 inputs."""
    make, shape, _ = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = make().eval()
        batches = list(torch.randn(64, *shape).split(32))
    spec = PermutationSpec.trace(net, batches[0][:2])
    p = random_permutation(spec, torch.Generator().manual_seed(seed))
    moving = copy.deepcopy(net)
    moving.load_state_dict(permute(spec, p, net.state_dict()))
    return spec, moving, net, p, batches


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", CASES)
def test_a_planted_permutation_is_recovered_where_units_are_other_units_samples(name, seed):
    spec, moving, net, p, batches = planted(name, seed)
    found = match_activations(spec, moving, net, batches)
    for vector in compose(found.permutation, p).values():
        assert torch.equal(vector, torch.arange(len(vector)))
    for group in found.groups.values():
        assert group.after == pytest.approx(1 - group.dead / group.units, abs=0.01)


@pytest.mark.parametrize("name", CASES)
def test_the_data_are_gone_through_as_often_as_is_needed_and_no_more(name):
    spec, moving, net, _, batches = planted(name, 0)

    class Counted(list):
        times = 0

        def __iter__(self):
            self.times += 1
            return super().__iter__()

    counted = Counted(batches)
    match_activations(spec, moving, net, counted)
    assert counted.times == len(passes(spec)) == CASES[name][2]


USUAL = {
    "resnet18": torchvision.models.resnet18,
    "shufflenet": torchvision.models.shufflenet_v2_x0_5,
    "transformer": lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64),
    "swin": lambda: torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [2, 2], [4, 4]),
}


@pytest.mark.parametrize("name", USUAL)
def test_one_pass_serves_networks_whose_samples_are_the_datas_own(name):
    spec = PermutationSpec.trace(USUAL[name](), torch.zeros(1, 3, 32, 32))
    (only,) = passes(spec)
    assert list(only) == list(spec.groups)
    assert all(look.tap is spec.groups[n].tap and not look.among for n, look in only.items())


def test_batches_that_can_be_gone_through_once_are_refused_where_two_passes_are_needed():
    spec, moving, net, _, batches = planted("mixer", 0)
    with pytest.raises(InputError, match=r"an iterator.* needs 2 passes.* a list or a DataLoader"):
        match_activations(spec, moving, net, iter(batches))

    class Spent:
        left = iter(batches)

        def __iter__(self):
            return self.left

    with pytest.raises(InputError, match="nothing when gone through again"):
        match_activations(spec, moving, net, Spent())
