"""Nets that are not of the spec's architecture are refused before anything is computed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets import models
from rebasin_utils.symmetry.matching import match_activations, similarities
from rebasin_utils.symmetry.permutation import identity, permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.weight_matching import match_weights


def net(width: int = 8, classes: int = 3, *, depth: int = 1, bias: bool = True) -> nn.Module:
    """Convolutions of one width, depth + 1 of them; a pooled classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(width + depth)
        layers = [nn.Conv2d(2, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=bias), nn.ReLU()]
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
        return nn.ModuleDict({"features": nn.Sequential(*layers), "top": pooled})


class Net(nn.Module):
    def __init__(self, **kind):
        super().__init__()
        self.parts = net(**kind)

    def forward(self, x):
        return self.parts["top"](self.parts["features"](x))


X = torch.randn(64, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def spec() -> PermutationSpec:
    return PermutationSpec.trace(Net(), X)


class Untouchable(list):
    def __iter__(self):
        raise AssertionError("data were read before the nets were looked at")


OTHERS = {
    "wider": ({"width": 16}, r"has shape \(16, 2, 3, 3\), the spec was traced with \(8, 2, 3, 3\)"),
    "narrower": ({"width": 4}, "has shape"),
    "deeper": ({"depth": 2}, "tensor 'parts.features.4.weight' is not in the traced model's state"),
    "without biases": ({"bias": False}, "lacks the tensor 'parts.features.2.bias'"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("place", ["moving", "reference"])
def test_nets_of_another_architecture_are_refused_in_one_sentence(name, place):
    kind, message = OTHERS[name]
    own, other = Net().eval(), Net(**kind).eval()
    pair = (other, own) if place == "moving" else (own, other)
    for match in (match_activations, similarities):
        with pytest.raises(InputError, match=f"^{place}.*another architecture.*{message}"):
            match(spec(), *pair, Untouchable([X]))
    with pytest.raises(InputError, match=f"{place} state.*another architecture.*{message}"):
        match_weights(spec(), *(n.state_dict() for n in pair))


def test_both_nets_of_another_width_are_refused():
    for match in (match_activations, similarities):
        with pytest.raises(InputError, match="another architecture"):
            match(spec(), Net(width=16), Net(width=16), [X])


def test_nets_may_differ_in_their_classes():
    """A spec of 3 classes, a net of 5 and its permuted copy with a head of 7."""
    own = spec()
    reference = Net(classes=5).eval()
    planted = random_permutation(own, torch.Generator().manual_seed(0))
    moving = Net(classes=7).eval()
    body = {n: t for n, t in reference.state_dict().items() if "top" not in n}
    moving.load_state_dict(permute(own, planted, moving.state_dict() | body))
    for found in (
        match_activations(own, moving, reference, [X]).permutation,
        match_weights(own, moving.state_dict(), reference.state_dict()).permutation,
    ):
        moved = permute(own, found, moving.state_dict())
        assert all(torch.equal(moved[n], t) for n, t in body.items())
        assert moved["parts.top.2.weight"].shape == (7, 8)


def test_a_matching_of_other_inputs_is_not_refused():
    """The spec of one image channel serves three: no group moves them."""
    images = [torch.randn(16, 3, 14, 14, generator=torch.Generator().manual_seed(1))]
    grey = PermutationSpec.trace(
        models.build("resnet8", (1, 14, 14), 10), torch.zeros(1, 1, 14, 14)
    )
    colour = models.build("resnet8", (3, 14, 14), 10, seed=0).eval()
    planted = random_permutation(grey, torch.Generator().manual_seed(0))
    moving = copy.deepcopy(colour)
    moving.load_state_dict(permute(grey, planted, colour.state_dict()))
    moved = permute(
        grey, match_activations(grey, moving, colour, images).permutation, moving.state_dict()
    )
    assert all(torch.equal(moved[n], t) for n, t in colour.state_dict().items())


def test_a_state_of_another_width_is_not_permuted():
    own = spec()
    with pytest.raises(InputError, match=r"has shape \(16, 2, 3, 3\)"):
        permute(own, identity(own), Net(width=16).state_dict())
