"""A mask keeps exactly as many weights as it says, and every count of it agrees."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets import masks, models


@st.composite
def pruned_states(draw):
    """A state with many equal magnitudes, a mask on it, and how many weights to keep."""
    shapes = draw(st.lists(st.sampled_from([(3,), (4, 5), (2, 3, 2, 2)]), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    levels = draw(st.integers(1, 4))
    state, mask = {}, {}
    for i, shape in enumerate(shapes):
        whole = torch.randint(-levels, levels + 1, shape, generator=generator)
        state[f"layer{i}.weight"] = whole.float()
        mask[f"layer{i}.weight"] = torch.rand(shape, generator=generator) < 0.7
    return state, mask, draw(st.integers(0, masks.count(mask)))


@given(pruned_states())
@settings(deadline=None)
def test_pruning_keeps_exactly_the_number_asked_for_even_among_equals(case):
    state, mask, keep = case
    assert masks.count(masks.global_magnitude(state, mask, keep)) == keep


@given(pruned_states())
@settings(deadline=None)
def test_pruning_never_brings_a_weight_back(case):
    state, mask, keep = case
    new = masks.global_magnitude(state, mask, keep)
    assert new.keys() == mask.keys()
    assert all(new[n].shape == mask[n].shape and new[n].dtype == torch.bool for n in mask)
    assert not any((new[n] & ~mask[n]).any() for n in mask)


@given(pruned_states())
@settings(deadline=None)
def test_one_threshold_serves_the_whole_network(case):
    state, mask, keep = case
    new = masks.global_magnitude(state, mask, keep)
    kept = torch.cat([state[n][new[n]].abs() for n in mask])
    dropped = torch.cat([state[n][mask[n] & ~new[n]].abs() for n in mask])
    if len(kept) and len(dropped):
        assert kept.min() >= dropped.max()


@given(pruned_states())
@settings(deadline=None)
def test_pruning_leaves_its_inputs_alone(case):
    state, mask, keep = case
    before = [t.clone() for d in (state, mask) for t in d.values()]
    masks.global_magnitude(state, mask, keep)
    masks.random_layerwise(mask, torch.Generator().manual_seed(0))
    masks.apply(mask, state)
    after = [t for d in (state, mask) for t in d.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_equal_magnitudes_are_kept_in_the_order_of_the_state():
    state = {"a": torch.tensor([1.0, -1.0, 1.0]), "b": torch.tensor([-1.0, 1.0])}
    mask = {"a": torch.tensor([False, True, True]), "b": torch.ones(2, dtype=torch.bool)}
    new = masks.global_magnitude(state, mask, keep=3)
    assert new["a"].tolist() == [False, True, True]
    assert new["b"].tolist() == [True, False]


def test_a_kept_weight_of_zero_comes_before_a_pruned_one_of_any_size():
    state = {"a": torch.tensor([1e9, 0.0])}
    mask = {"a": torch.tensor([False, True])}
    assert masks.global_magnitude(state, mask, keep=1)["a"].tolist() == [False, True]


@pytest.mark.parametrize("keep", [-1, 3])
def test_keeping_more_than_there_is_or_less_than_nothing_is_refused(keep):
    mask = {"a": torch.tensor([True, True, False])}
    with pytest.raises(InputError, match=f"keep = {keep}.*2 weights"):
        masks.global_magnitude({"a": torch.ones(3)}, mask, keep)


@given(pruned_states(), st.integers(0, 1000))
@settings(deadline=None)
def test_a_random_mask_has_the_same_density_in_every_layer(case, seed):
    _, mask, _ = case
    drawn = masks.random_layerwise(mask, torch.Generator().manual_seed(seed))
    again = masks.random_layerwise(mask, torch.Generator().manual_seed(seed))
    assert {n: int(m.sum()) for n, m in drawn.items()} == {n: int(m.sum()) for n, m in mask.items()}
    assert all(drawn[n].shape == mask[n].shape for n in mask)
    assert all(torch.equal(drawn[n], again[n]) for n in mask)


def test_a_random_mask_overlaps_the_ticket_at_chance_level():
    generator = torch.Generator().manual_seed(0)
    mask = {"a": torch.zeros(200, 500, dtype=torch.bool)}
    mask["a"][:, :50] = True  # structured, to be destroyed
    drawn = masks.random_layerwise(mask, generator)
    assert masks.overlap(mask, drawn) == pytest.approx(1 - masks.sparsity(mask), abs=0.01)


@pytest.fixture(scope="module")
def pruned():
    """A ResNet8 and a mask of it at 80%."""
    model = models.build("resnet8", (1, 8, 8), 10, seed=0)
    state = model.state_dict()
    dense = masks.dense_mask(state, masks.prunable(model))
    return model, masks.global_magnitude(state, dense, keep=masks.count(dense) // 5)


def test_applying_a_mask_zeroes_what_it_drops_and_nothing_else(pruned):
    model, mask = pruned
    state = model.state_dict()
    applied = masks.apply(mask, state)
    assert applied.keys() == state.keys()
    for name, tensor in applied.items():
        kept = mask.get(name, torch.ones_like(tensor, dtype=torch.bool))
        assert torch.equal(tensor[kept], state[name][kept])
        assert not tensor[~kept].any()
        assert tensor.data_ptr() != state[name].data_ptr()


@pytest.mark.parametrize("name", models.MODELS)
def test_the_classifier_is_left_out_of_pruning_when_asked_for(name):
    model = models.build(name, (3, 32, 32), 10)
    head = dict.fromkeys(("resnet50_small", "resnet50", "resnet14_bottleneck"), "fc")
    of_a_sequence = (
        "mobilenet_v2_small",
        "mobilenet_v2",
        "efficientnet_b0_small",
        "efficientnet_b0_small_dropout",
    )
    head |= dict.fromkeys(of_a_sequence, "classifier.1")
    assert masks.classifier(model) == head.get(name, "classifier")
    left = masks.prunable(model, include_classifier=False)
    assert set(masks.prunable(model)) - set(left) == {f"{masks.classifier(model)}.weight"}
    everything = masks.prunable(model, include_shortcuts=True, include_classifier=False)
    assert set(everything) == set(left) | set(getattr(model, "not_prunable", ()))


def test_a_net_without_a_linear_layer_has_no_classifier_to_leave_out():
    model = nn.Sequential(nn.Conv2d(1, 10, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert masks.prunable(model) == ("0.weight",)
    with pytest.raises(InputError, match="Sequential has no linear layer"):
        masks.prunable(model, include_classifier=False)


def test_a_rescaled_init_hands_on_the_variance_of_a_dense_one():
    """Layer by layer, on inputs of unit variance, at another density in every layer."""
    generator = torch.Generator().manual_seed(0)
    state, mask = {}, {}
    for name, keep in (("a", 0.5), ("b", 0.05), ("c", 0.01)):
        state[name] = (2 / 2000) ** 0.5 * torch.randn(300, 2000, generator=generator)
        mask[name] = torch.rand(300, 2000, generator=generator) < keep
    x = torch.randn(2000, 500, generator=generator)
    sparse = masks.apply(mask, state)
    for name, weight in masks.rescaled(mask, sparse).items():
        assert (weight @ x).var().item() == pytest.approx(2, rel=0.1)
        density = mask[name].float().mean().item()
        assert (sparse[name] @ x).var().item() == pytest.approx(2 * density, rel=0.1)


def test_rescaling_leaves_signs_masks_and_what_has_no_mask_as_they_are(pruned):
    model, mask = pruned
    state = masks.apply(mask, model.state_dict())
    before = {n: t.clone() for n, t in state.items()}
    new = masks.rescaled(mask, state)
    for name, tensor in new.items():
        assert torch.equal(tensor.sign(), state[name].sign())
        assert tensor.dtype == state[name].dtype
        assert name in mask or torch.equal(tensor, state[name])
    assert all(torch.equal(state[n], t) for n, t in before.items())


def test_a_layer_without_weights_left_stays_as_it_is():
    state = {"a": torch.ones(3)}
    new = masks.rescaled({"a": torch.zeros(3, dtype=torch.bool)}, state)
    assert torch.equal(new["a"], state["a"])


def test_both_sparsities_are_the_shares_of_zeros_that_one_can_count(pruned):
    model, mask = pruned
    ones = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    applied = masks.apply(mask, ones)
    zeros = sum(int((t == 0).sum()) for t in applied.values())
    prunable = sum(applied[n].numel() for n in masks.prunable(model))
    everything = sum(t.numel() for t in applied.values())
    assert masks.sparsity(mask) == pytest.approx(zeros / prunable, abs=1e-12)
    assert masks.global_sparsity(mask, model) == pytest.approx(zeros / everything, abs=1e-12)
    assert masks.global_sparsity(mask, model) < masks.sparsity(mask)


def test_the_report_agrees_with_the_counts(pruned):
    _, mask = pruned
    table = masks.report(mask).set_index("layer")
    layers, whole = table.iloc[:-1], table.iloc[-1]
    assert list(layers.index) == [name.removesuffix(".weight") for name in mask]
    assert layers["kept"].sum() == whole["kept"] == masks.count(mask)
    assert layers["weights"].sum() == whole["weights"]
    assert 1 - whole["density"] == pytest.approx(masks.sparsity(mask), abs=1e-12)
    for name, kept in mask.items():
        row = layers.loc[name.removesuffix(".weight")]
        assert row["density"] == pytest.approx(kept.float().mean().item(), abs=1e-6)


def test_overlap_is_one_with_what_contains_it_and_zero_with_what_it_lacks(pruned):
    _, mask = pruned
    everything = {n: torch.ones_like(m) for n, m in mask.items()}
    opposite = {n: ~m for n, m in mask.items()}
    assert masks.overlap(mask, mask) == 1
    assert masks.overlap(mask, everything) == 1
    assert masks.overlap(everything, mask) == pytest.approx(1 - masks.sparsity(mask))
    assert masks.overlap(mask, opposite) == 0


def test_a_dense_mask_keeps_everything():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    mask = masks.dense_mask(model.state_dict(), masks.prunable(model))
    assert mask.keys() == {"0.weight", "2.weight"}
    assert masks.count(mask) == 4 * 3 + 3 * 2
    assert masks.sparsity(mask) == masks.global_sparsity(mask, model) == 0


# -------------------------------------------------------------------------- rescaled to the mask


@pytest.fixture
def layer() -> tuple[masks.Mask, masks.State]:
    """Four units of 60 weights, of which they keep 30, 20, 1 and none."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.3 + torch.randn(4, 15, 2, 2, generator=generator)
    kept = torch.zeros(4, 60, dtype=torch.bool)
    for unit, count in enumerate((30, 20, 1, 0)):
        kept[unit, :count] = True
    return {"w": kept.view_as(weight)}, {"w": weight, "bias": torch.ones(4)}


def test_rescaled_units_have_the_spread_of_what_they_keep(layer):
    """As the mask is not there yet: Kaiming's √(2 / fan-in), unit by unit."""
    mask, state = layer
    units = masks.sparse_aware(mask, state, "neuron")["w"].flatten(1)
    weight = state["w"].flatten(1)
    normal = (weight - weight.mean(1, keepdim=True)) / weight.std(1, keepdim=True)
    for unit, count in enumerate((30, 20, 1)):
        expected = normal[unit] * (2 / count) ** 0.5 * mask["w"].flatten(1)[unit]
        torch.testing.assert_close(units[unit], expected)
    assert not units[3].any()


def test_rescaling_forgets_the_scale_and_the_mean_and_nothing_else(layer):
    mask, state = layer
    found = masks.sparse_aware(mask, state)
    moved = masks.sparse_aware(mask, {"w": 5 * state["w"], "bias": state["bias"]})
    torch.testing.assert_close(found, moved)
    assert torch.equal(found["bias"], state["bias"])
    assert torch.equal(found["w"] != 0, mask["w"])
    by_unit = masks.sparse_aware(mask, state, "neuron")
    assert not torch.allclose(found["w"], by_unit["w"])
