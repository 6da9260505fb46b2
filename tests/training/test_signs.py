"""Signs are those of the state that was trained under the mask, and say what they can say."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets import masks, models
from rebasin_utils.symmetry.permutation import permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.training import pruning, signs
from rebasin_utils.training.recipes import Recipe

SHAPE = (1, 14, 14)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sparse(name: str = "mlp_bn", keep: float = 0.2, seed: int = 0):
    """A net whose norm layers are not the defaults, its classifier unpruned: (net, state, mask)."""
    net = models.build(name, SHAPE, 10, seed=seed)
    state, drawn = net.state_dict(), generator(seed)
    for tensor_name, tensor in state.items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            state[tensor_name] = torch.randn(tensor.shape, generator=drawn)
            if tensor_name.endswith("running_var"):
                state[tensor_name] = 0.5 + torch.rand(tensor.shape, generator=drawn)
    dense = masks.dense_mask(state, masks.prunable(net, include_classifier=False))
    mask = masks.global_magnitude(state, dense, keep=round(keep * masks.count(dense)))
    state = masks.apply(mask, state)
    net.load_state_dict(state)
    return net.eval(), state, mask


def same(first, second) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# -------------------------------------------------------------------------- signed masks


def test_a_signed_mask_is_the_sign_of_every_kept_weight_and_zero_elsewhere():
    _, state, mask = sparse()
    signed = signs.of(state, mask)
    assert signed.keys() == mask.keys()
    for name, s in signed.items():
        assert s.dtype == torch.int8
        assert torch.equal(s.abs().bool(), mask[name])
        assert torch.equal(s * state[name].abs(), state[name])
    assert same(signs.mask_of(signed), mask)


@pytest.mark.parametrize("bad", [0.0, -0.0, float("nan")])
def test_a_kept_weight_without_a_sign_is_refused(bad):
    _, state, mask = sparse()
    name = "layers.linear1.weight"
    row, column = mask[name].nonzero()[0]
    state[name][row, column] = bad
    kept = int(mask[name].sum())
    with pytest.raises(InputError, match=f"{name}: 1 of {kept} kept .* no sign"):
        signs.of(state, mask)


@pytest.mark.parametrize("bad", [1e-30, -1.0, float("nan")])
def test_a_state_that_the_mask_was_not_applied_to_is_refused(bad):
    _, state, mask = sparse()
    spoilt = {n: t.clone() for n, t in state.items()}
    row, column = (~mask["layers.linear1.weight"]).nonzero()[0]
    spoilt["layers.linear1.weight"][row, column] = bad
    with pytest.raises(
        InputError, match=r"layers.linear1.weight: 1 of \d+ pruned .* apply the mask"
    ):
        signs.of(spoilt, mask)
    if bad == bad:  # a number
        assert same(signs.of(masks.apply(mask, spoilt), mask), signs.of(state, mask))


def test_the_report_counts_what_is_kept_and_what_of_it_is_positive():
    _, state, mask = sparse()
    signed = signs.of(state, mask)
    table = signs.report(signed)
    assert table.drop(columns="positive").equals(masks.report(mask))
    for s, share in zip(signed.values(), table["positive"].iloc[:-1], strict=True):
        assert share == pytest.approx((s[s != 0] == 1).double().mean().item())
    together = torch.cat([s[s != 0] for s in signed.values()])
    assert table["positive"].iloc[-1] == pytest.approx((together == 1).double().mean().item())


@pytest.mark.parametrize("name", ["mlp", "mlp_bn", "mlp_ln", "resnet8"])
def test_signs_are_permuted_like_the_weights_they_are_of(name):
    net, state, mask = sparse(name)
    spec = PermutationSpec.trace(net, torch.zeros(2, *SHAPE))
    p = random_permutation(spec, generator())
    signed = signs.of(state, mask)
    moved = permute(spec, p, signed)
    assert same(moved, signs.of(permute(spec, p, state), permute(spec, p, mask)))
    assert not same(moved, signed)
    assert all(s.dtype == torch.int8 for s in moved.values())


def test_signs_leave_their_inputs_alone():
    net, state, mask = sparse()
    signed = signs.of(state, mask)
    before = copy.deepcopy((state, mask, signed, net.state_dict()))
    signs.transfer(state, signed)
    signs.shuffled(signed, generator())
    signs.canonical(net, state)
    signs.agreement(state, signed, mask)
    after = (state, mask, signed, net.state_dict())
    assert all(same(a, b) for a, b in zip(before, after, strict=True))


# -------------------------------------------------------------------------- of which round


@pytest.fixture(scope="module")
def rounds(images):
    """What LRR leaves after its warm-up and two rounds: [(mask, state), …]."""
    net = models.build("mlp_bn", SHAPE, 10)
    state = net.state_dict()
    mask = masks.dense_mask(state, masks.prunable(net, include_classifier=False))
    recipe = Recipe(epochs=1, lr=0.1, batch_size=64, schedule="constant")
    left = []
    for step in pruning.schedule([0.0, pruning.full_sparsity(2)]):
        ((mask, trained),) = pruning.prune_and_tune(
            net, [state], [mask], [5], step, recipe, images, warm_up=recipe
        )
        state = trained.state
        left.append((mask, state))
    return left


def test_the_state_that_a_round_leaves_has_a_sign_for_every_weight_of_its_mask(rounds):
    for mask, state in rounds:
        signed = signs.of(state, mask)
        assert sum(int(s.count_nonzero()) for s in signed.values()) == masks.count(mask)


def test_signs_of_another_round_than_the_masks_are_refused(rounds):
    for (wider, earlier), (mask, later) in pairwise(rounds):
        with pytest.raises(InputError, match="kept numbers are zero"):
            signs.of(later, wider)
        with pytest.raises(InputError, match="pruned numbers are not zero"):
            signs.of(earlier, mask)


# -------------------------------------------------------------------------- transfer


def test_a_transfer_has_the_magnitudes_of_the_init_and_the_signs_of_the_donor():
    net, state, mask = sparse()
    init = models.build("mlp_bn", SHAPE, 10, seed=7).state_dict()
    signed = signs.of(state, mask)
    start = signs.transfer(init, signed)
    assert start.keys() == init.keys()
    for name, tensor in start.items():
        assert tensor.dtype == init[name].dtype
        if name in mask:
            assert torch.equal(tensor.abs(), init[name].abs() * mask[name])
            assert torch.equal(tensor.sign(), signed[name].float())
        else:
            assert torch.equal(tensor, init[name])
    net.load_state_dict(start)


@pytest.mark.parametrize("classifier", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_signs_of_classifier_and_biases_are_handed_on_only_when_asked_for(classifier, biases):
    net, state, mask = sparse("mlp")
    init = models.build("mlp", SHAPE, 10, seed=7).state_dict()
    signed = signs.of(state, mask)
    if classifier:
        signed |= signs.of_classifier(net, state)
    if biases:
        signed |= signs.of_biases(net, state, mask)
    start = signs.transfer(init, signed)
    handed_on = {
        name: torch.equal(start[name].sign(), state[name].sign())
        and torch.equal(start[name].abs(), init[name].abs())
        for name in init
        if name not in mask
    }
    assert handed_on == {
        **{f"layers.linear{i}.bias": biases for i in range(3)},
        **{f"classifier.{kind}": classifier for kind in ("weight", "bias")},
    }


def test_layers_without_a_bias_have_no_signs_of_biases():
    net, state, mask = sparse("mlp_bn")
    assert signs.of_biases(net, state, mask) == {}


def test_a_bias_of_zero_has_no_sign_to_hand_on():
    net, state, mask = sparse("mlp")
    state["layers.linear2.bias"][4] = 0
    with pytest.raises(InputError, match=r"layers.linear2.bias: 1 of 128"):
        signs.of_biases(net, state, mask)


def test_a_signed_mask_of_another_architecture_is_refused():
    _, state, mask = sparse("mlp_bn")
    signed = signs.of(state, mask)
    init = models.build("resnet8", SHAPE, 10).state_dict()
    with pytest.raises(InputError, match=r"layers.linear0.weight: .* the init has not"):
        signs.transfer(init, signed)


@given(st.integers(0, 2**31))
@settings(deadline=None, max_examples=20)
def test_shuffled_signs_keep_the_mask_and_every_layers_share_of_positive_ones(seed):
    _, state, mask = sparse()
    signed = signs.of(state, mask)
    dealt = signs.shuffled(signed, generator(seed))
    assert signs.report(dealt).equals(signs.report(signed))
    assert same(signs.mask_of(dealt), mask)
    assert same(dealt, signs.shuffled(signed, generator(seed)))
    for name, s in dealt.items():
        share = (signed[name][mask[name]] == 1).double().mean().item()
        by_chance = share**2 + (1 - share) ** 2
        found = signs.agreement({name: s}, signed, {name: mask[name]})
        assert found == pytest.approx(by_chance, abs=5 / int(mask[name].sum()) ** 0.5)


# -------------------------------------------------------------------------- agreement


def test_signs_agree_with_themselves_and_with_no_opposite():
    _, state, mask = sparse()
    signed = signs.of(state, mask)
    opposite = {n: -s for n, s in signed.items()}
    assert signs.agreement(state, signed, mask) == signs.agreement(signed, state, mask) == 1
    assert signs.agreement(state, opposite, mask) == 0


def test_the_signs_of_two_inits_agree_at_chance_level():
    _, state, mask = sparse("mlp")
    other = models.build("mlp", SHAPE, 10, seed=9).state_dict()
    n = masks.count(mask)
    assert signs.agreement(state, other, mask) == pytest.approx(0.5, abs=2.5 / n**0.5)


def test_agreement_counts_kept_weights_only_and_a_zero_never():
    first = {"a": torch.tensor([1.0, -2.0, 0.0, 3.0, -1.0])}
    second = {"a": torch.tensor([2.0, -0.1, 0.0, -3.0, 1.0])}
    mask = {"a": torch.tensor([True, True, True, True, False])}
    assert signs.agreement(first, second, mask) == 0.5
    assert signs.agreement(first, second, {"a": torch.zeros(5, dtype=torch.bool)}) == 0


# -------------------------------------------------------------------------- canonical form


@pytest.mark.parametrize("name", ["mlp_bn", "resnet8", "vgg11_bn"])
def test_the_canonical_form_is_the_same_function_with_no_gamma_below_zero(name):
    shape = (1, 16, 16)
    net = models.build(name, shape, 10).eval()
    state, drawn = copy.deepcopy(net.state_dict()), generator(1)
    for key, tensor in state.items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            state[key] = torch.randn(tensor.shape, generator=drawn).abs_().add_(0.5)
            if not key.endswith("running_var"):
                state[key] *= torch.randint(0, 2, tensor.shape, generator=drawn) * 2 - 1
    x = torch.randn(4, *shape, generator=drawn)
    form = signs.canonical(net, state)
    assert 0.3 < signs.negative_gammas(net, state) < 0.7
    assert signs.negative_gammas(net, form) == 0
    answers = []
    for s in (state, form):
        net.load_state_dict(s)
        answers.append((net.eval()(x), net.train()(x)))
    for a, b in zip(*answers, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert same(signs.canonical(net, form), form)
    assert not same(form, state)
    assert all(torch.equal(form[n].abs(), t.abs()) for n, t in state.items())


def test_negated_units_have_one_canonical_form_and_so_the_same_signs():
    net, state, mask = sparse("mlp_bn")
    turned = {n: t.clone() for n, t in state.items()}
    for key in ("linear1.weight", "bn1.weight", "bn1.running_mean"):
        turned[f"layers.{key}"][::3] *= -1
    assert signs.agreement(state, turned, mask) < 0.95
    forms = [signs.canonical(net, s) for s in (state, turned)]
    assert same(*forms)
    assert same(*(signs.of(form, mask) for form in forms))


def test_the_canonical_form_keeps_what_is_pruned_at_plain_zero():
    net, state, mask = sparse("mlp_bn")
    form = signs.canonical(net, state)
    for name, kept in mask.items():
        pruned = form[name][~kept]
        assert not pruned.any()
        assert not pruned.signbit().any()


class Shared(nn.Module):
    """One linear layer's outputs go to a batch norm and elsewhere, another's through two norms."""

    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten()
        self.seen, self.bn = nn.Linear(196, 8), nn.BatchNorm1d(8)
        self.plain, self.first, self.second = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, images):
        h = self.seen(self.flatten(images))
        return self.second(self.first(self.plain(self.bn(h) + h)))


def test_what_cannot_be_negated_alone_stays_as_it_is():
    net = Shared().eval()
    state = net.state_dict()
    for name in ("bn", "first", "second"):
        state[f"{name}.weight"] = -torch.ones(8)
    form = signs.canonical(net, state)
    changed = {n for n in state if not torch.equal(form[n], state[n])}
    assert changed == {"first.weight", "plain.weight", "plain.bias"}  # its running mean is 0
    x = torch.randn(3, *SHAPE, generator=generator())
    answers = []
    for s in (state, form):
        net.load_state_dict(s)
        answers.append(net(x))
    torch.testing.assert_close(*answers)


@pytest.mark.parametrize("name", ["mlp", "mlp_ln"])
def test_nets_without_batch_norm_are_their_own_canonical_form(name):
    net, state, _ = sparse(name)
    assert same(signs.canonical(net, state), state)
    assert signs.negative_gammas(net, state) == 0
