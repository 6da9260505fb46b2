"""The algebra of permutations, on a spec written by hand, so that no tracing is involved."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.permutation import (
    Group,
    Member,
    Pinned,
    Tap,
    compose,
    identity,
    invert,
    permute,
    random_permutation,
)
from rebasin_utils.symmetry.spec import PermutationSpec


def hand_written() -> tuple[PermutationSpec, nn.Sequential]:
    """conv(2 -> 6) - BN - flatten of 2x2 pixels - linear(24 -> 5) - linear(5 -> 3)."""
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(24, 5),
        nn.Linear(5, 3),
    )
    one = torch.arange(6)[:, None]
    channels = [
        ("0.weight", 0, one),
        ("0.bias", 0, one),
        ("3.weight", 1, torch.arange(24).view(6, 4)),
    ]
    channels += [(f"1.{n}", 0, one) for n in ("weight", "bias", "running_mean", "running_var")]
    hidden = [("3.weight", 0), ("3.bias", 0), ("4.weight", 1)]
    groups = {
        "0": Group("0", 6, tuple(Member(*m) for m in channels), Tap("_1", "1", (1,), one)),
        "3": Group(
            "3",
            5,
            tuple(Member(t, a, torch.arange(5)[:, None]) for t, a in hidden),
            Tap("_3", "3", (1,), torch.arange(5)[:, None]),
        ),
    }
    shapes = {name: tuple(t.shape) for name, t in net.state_dict().items()}
    pinned = (Pinned("0.weight", 1, 2, "model input"), Pinned("4.weight", 0, 3, "model output"))
    return PermutationSpec(groups, pinned, shapes), net


@pytest.fixture
def case():
    torch.manual_seed(0)
    spec, net = hand_written()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + ("var" in name))
    generator = torch.Generator().manual_seed(1)
    p, q = (random_permutation(spec, generator) for _ in range(2))
    return spec, net.eval(), p, q


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_place_i_of_the_result_takes_unit_p_i(case):
    spec, net, p, _ = case
    state = net.state_dict()
    moved = permute(spec, p, state)
    assert torch.equal(moved["0.weight"], state["0.weight"][p["0"]])
    assert torch.equal(moved["1.running_var"], state["1.running_var"][p["0"]])
    columns = state["3.weight"].view(5, 6, 4)[p["3"]][:, p["0"]].flatten(1)
    assert torch.equal(moved["3.weight"], columns)
    assert torch.equal(moved["4.bias"], state["4.bias"])


def test_a_permuted_network_computes_the_same_function(case):
    spec, net, p, _ = case
    x = torch.randn(3, 2, 2, 2)
    before = net(x)
    _, other = hand_written()
    other.eval().load_state_dict(permute(spec, p, net.state_dict()))
    assert not torch.equal(other[0].weight, net[0].weight)
    assert (other(x) - before).abs().max() < 1e-5 * before.abs().max()


def test_permuting_is_undone_exactly_by_the_inverse(case):
    spec, net, p, _ = case
    state = net.state_dict()
    assert same(permute(spec, invert(p), permute(spec, p, state)), state)
    assert same(compose(invert(p), p), identity(spec))
    assert same(compose(p, invert(p)), identity(spec))
    assert same(permute(spec, identity(spec), state), state)


def test_compose_applies_its_second_argument_first(case):
    spec, net, p, q = case
    state = net.state_dict()
    assert same(permute(spec, compose(p, q), state), permute(spec, p, permute(spec, q, state)))
    assert not same(compose(p, q), compose(q, p))


def test_inputs_are_not_mutated_and_results_share_no_memory(case):
    spec, net, p, _ = case
    state = {n: t.clone() for n, t in net.state_dict().items()}
    kept = {n: t.clone() for n, t in state.items()}
    vectors = {n: v.clone() for n, v in p.items()}
    moved = permute(spec, p, state)
    for tensor in moved.values():
        tensor.zero_()
    invert(p), compose(p, p)
    assert same(state, kept)
    assert same(p, vectors)


def test_permuting_commutes_with_masking_and_keeps_every_density(case):
    spec, net, p, _ = case
    weights = {n: net.state_dict()[n] for n in ("0.weight", "3.weight")}
    masks = {n: torch.rand_like(w) < 0.3 for n, w in weights.items()}
    moved_masks = permute(spec, p, masks)
    first_masked = permute(spec, p, {n: weights[n] * masks[n] for n in weights})
    moved = permute(spec, p, weights)
    assert same(first_masked, {n: moved[n] * moved_masks[n] for n in weights})
    for name, mask in masks.items():
        assert moved_masks[name].dtype == torch.bool
        assert moved_masks[name].sum() == mask.sum()


def test_momentum_and_signs_move_like_weights(case):
    spec, net, p, _ = case
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(2, 2, 2, 2)).square().sum().backward()
    optimiser.step()
    momentum = {n: optimiser.state[w]["momentum_buffer"] for n, w in net.named_parameters()}
    moved = permute(spec, p, momentum)
    assert torch.equal(moved["0.bias"], momentum["0.bias"][p["0"]])
    signs = {n: t.sign().to(torch.int8) for n, t in momentum.items()}
    assert same(permute(spec, p, signs), {n: t.sign().to(torch.int8) for n, t in moved.items()})


def test_a_net_pruned_with_torch_prune_is_permuted_under_its_own_names(case):
    spec, net, p, _ = case
    x = torch.randn(3, 2, 2, 2)
    for i in (0, 3):
        prune.l1_unstructured(net[i], "weight", 0.5)
    before = net(x)
    moved = permute(spec, p, net.state_dict())
    assert {"0.weight_orig", "0.weight_mask"} <= moved.keys()
    _, other = hand_written()
    for i in (0, 3):
        prune.identity(other[i], "weight")
    other.eval().load_state_dict(moved)
    assert (other(x) - before).abs().max() < 1e-5 * before.abs().max()
    assert torch.equal(moved["0.weight_mask"].sum(), net[0].weight_mask.sum())


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda p, s: s.update(extra=torch.ones(1)), "'extra' is not in the traced model's state"),
        (lambda p, s: s.update({"0.bias": torch.ones(7)}), r"'0.bias' has shape \(7,\)"),
        (lambda p, s: p.pop("3"), "lacks the group '3'"),
        (lambda p, s: p.update(x=torch.arange(2)), "a group 'x' that the spec does not know"),
        (
            lambda p, s: p.update({"0": torch.zeros(6, dtype=torch.int64)}),
            "group '0' is not a perm",
        ),
        (lambda p, s: p.update({"0": torch.arange(5)}), "not a permutation of its 6 units"),
        (lambda p, s: p.update({"0": torch.arange(6.0)}), "not a permutation of its 6 units"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(case, break_it, message):
    spec, net, p, _ = case
    state = dict(net.state_dict())
    break_it(p, state)
    with pytest.raises(InputError, match=message) as error:
        permute(spec, p, state)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: net, r"state is a Sequential: give its state_dict\(\)"),
        (lambda net: list(net.parameters()), "state is a list: give a dict of tensors by name"),
        (lambda net: {"0.bias": [1.0] * 6}, "state.'0.bias'. is a list: give a tensor"),
    ],
)
def test_a_module_or_a_list_where_a_state_is_meant_is_named(case, make, message):
    spec, net, p, _ = case
    with pytest.raises(InputError, match=message):
        permute(spec, p, make(net))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([0, 1, 2], "the permutation is a list: give a dict with an index vector per group"),
        (torch.arange(6), "the permutation is a Tensor: give a dict"),
        ({"0": [0, 1, 2]}, "the index vector of group '0' is a list: give a tensor"),
        ({"0": torch.arange(6) + 1}, "group '0' is not a permutation of its 6 units"),
        ({"0": torch.arange(6) > 0}, "group '0' is not a permutation of its 6 units"),
        ({"0": torch.tensor(0)}, "group '0' is not a permutation of its 1 units"),
    ],
)
def test_what_is_no_permutation_is_refused_everywhere(case, wrong, message):
    spec, net, p, _ = case
    for call in (
        lambda: permute(spec, wrong, net.state_dict()),
        lambda: invert(wrong),
        lambda: compose(wrong, p),
        lambda: compose(p, wrong),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_a_seed_where_a_generator_is_meant_is_named(case):
    spec, *_ = case
    with pytest.raises(InputError, match=r"generator = 0: give a torch\.Generator"):
        random_permutation(spec, 0)


def test_permutations_of_different_nets_do_not_compose(case):
    _, _, p, _ = case
    with pytest.raises(InputError, match="only one of the two"):
        compose(p, {"0": p["0"]})
    with pytest.raises(InputError, match="'3' has 5 units in one permutation and 4 in the other"):
        compose(p, {**p, "3": torch.arange(4)})


def test_random_permutations_depend_on_the_generator_alone(case):
    spec, *_ = case
    torch.manual_seed(7)
    first = random_permutation(spec, torch.Generator().manual_seed(3))
    torch.manual_seed(8)
    assert same(first, random_permutation(spec, torch.Generator().manual_seed(3)))
    assert not same(first, random_permutation(spec, torch.Generator().manual_seed(4)))


def test_the_report_counts_free_and_pinned_positions(case):
    spec, *_ = case
    report = spec.report()
    assert report.groups["units"].tolist() == [6, 5]
    assert report.free_share == (6 * 6 + 24 + 15) / (6 * 6 + 24 + 15 + 5)
    assert "model input" in str(report)
    assert "model input" in report._repr_html_()
