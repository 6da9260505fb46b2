"""Tickets land on their targets, share one trunk, and are those of torch.nn.utils.prune.

Under LRR they come of an init, and under AWS its norm layers are interpolated.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from rebasin_utils.errors import InputError
from rebasin_utils.nets import masks, models
from rebasin_utils.training import norms, pruning
from rebasin_utils.training.pruning import Round, schedule
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, train

PAPER = (0.80, 0.90, 0.95, 0.97)

targets = st.lists(
    st.floats(0, 0.995) | st.sampled_from([0.0, 0.2, 0.36, *PAPER]), min_size=1, max_size=6
)


def serving(rounds: list[Round], target: float) -> Round:
    (only,) = [r for r in rounds if target in r.targets]
    return only


# -------------------------------------------------------------------------- the schedule


@given(targets)
@settings(deadline=None)
def test_every_target_is_hit_exactly_by_exactly_one_round(chosen):
    rounds = schedule(chosen)
    for target in chosen:
        assert serving(rounds, target).sparsity == pytest.approx(target, abs=1e-9)
    assert sorted(t for r in rounds for t in r.targets) == sorted(set(chosen))


@given(targets, st.floats(0, 0.02))
@settings(deadline=None)
def test_with_a_tolerance_no_target_is_missed_by_more(chosen, tolerance):
    rounds = schedule(chosen, tolerance)
    for target in chosen:
        assert -1e-9 <= target - serving(rounds, target).sparsity <= tolerance + 1e-8


@given(targets, st.floats(0, 0.02))
@settings(deadline=None)
def test_a_round_prunes_at_most_a_fifth_of_what_a_full_round_left(chosen, tolerance):
    rounds = schedule(chosen, tolerance)
    trunk = {r.number: r.sparsity for r in rounds if r.full} | {0: 0.0}
    for r in rounds:
        if r.number:
            before = trunk[r.number - 1]  # the round that it starts from is in the schedule
            assert before < r.sparsity <= 1 - 0.8 * (1 - before) + 1e-9
    assert len({(r.number, r.sparsity) for r in rounds}) == len(rounds)


@given(targets, targets)
@settings(deadline=None)
def test_more_targets_leave_the_rounds_of_the_others_as_they_are(few, more):
    places = {(r.number, r.sparsity) for r in schedule(few)}
    assert places <= {(r.number, r.sparsity) for r in schedule(few + more)}


def test_the_papers_targets_cost_nineteen_rounds_when_hit_exactly():
    rounds = schedule(PAPER)
    assert len(rounds) == 19
    assert [serving(rounds, t).number for t in PAPER] == [8, 11, 14, 16]
    assert [serving(rounds, t).sparsity for t in PAPER] == list(PAPER)


def test_the_released_tolerance_ends_the_ninety_five_percent_at_945024():
    rounds = schedule(PAPER, tolerance=0.005)
    assert len(rounds) == 18
    assert [serving(rounds, t).number for t in PAPER] == [8, 11, 13, 16]
    assert [round(serving(rounds, t).sparsity, 6) for t in PAPER] == [0.8, 0.9, 0.945024, 0.97]


def test_full_rounds_go_the_way_of_four_fifths():
    trunk = [r.sparsity for r in schedule([0.97]) if r.full]
    assert [round(s, 4) for s in trunk] == [
        0.2, 0.36, 0.488, 0.5904, 0.6723, 0.7379, 0.7903, 0.8322, 0.8658, 0.8926, 0.9141, 0.9313,
        0.945, 0.956, 0.9648,
    ]  # fmt: skip


@given(targets, st.floats(0.05, 0.6))
@settings(deadline=None)
def test_at_another_rate_every_target_is_hit_by_rounds_of_that_rate(chosen, rate):
    rounds = schedule(chosen, rate=rate)
    trunk = {r.number: r.sparsity for r in rounds if r.full} | {0: 0.0}
    for target in chosen:
        assert serving(rounds, target).sparsity == pytest.approx(target, abs=1e-9)
    for r in rounds:
        if r.full:
            assert r.sparsity == pytest.approx(pruning.full_sparsity(r.number, rate), abs=1e-9)
        if r.number:
            before = trunk[r.number - 1]
            assert before < r.sparsity <= 1 - (1 - rate) * (1 - before) + 1e-9


@pytest.mark.parametrize("bad", [0.0, 1.0, -0.2, float("nan")])
def test_a_rate_outside_zero_and_one_is_refused(bad):
    with pytest.raises(InputError, match=r"rate = .*above 0 and below 1"):
        schedule([0.5], rate=bad)


def test_no_target_asks_for_no_round_and_zero_for_the_dense_net():
    assert schedule([]) == []
    assert schedule([0.0]) == [Round(0, 0.0, (0.0,))]


def test_branches_and_trunk_have_different_names():
    names = [r.name for r in schedule(PAPER)]
    assert len(set(names)) == 19
    assert "round8-S0.8" in names
    assert "round8" in names


@pytest.mark.parametrize("bad", [1.0, -0.1, 1.5, float("nan")])
def test_a_sparsity_outside_zero_and_one_is_refused(bad):
    with pytest.raises(InputError, match=r"sparsity = .*at least 0 and below 1"):
        schedule([0.5, bad])


# -------------------------------------------------------------------------- one round


def torchs_rounds(model: nn.Module, names: tuple[str, ...], target: float):
    """The released code's loop: the mask after every round, of the weights as they are."""
    weights = [(model.get_submodule(n.removesuffix(".weight")), "weight") for n in names]
    total = sum(m.weight.numel() for m, _ in weights)
    sparsity = 0.0
    while target - sparsity > 1 / total:
        amount = min(0.2, (target - sparsity) / (1 - sparsity))
        prune.global_unstructured(weights, prune.L1Unstructured, amount=amount)
        kept = {n: m.weight_mask.bool() for n, (m, _) in zip(names, weights, strict=True)}
        sparsity = masks.sparsity(kept)
        yield kept


def our_rounds(state: masks.State, names: tuple[str, ...], target: float):
    trunk, rounds = masks.dense_mask(state, names), schedule([target])
    for r in rounds:
        mask = pruning.prune(state, trunk, r.sparsity)
        trunk = mask if r.full else trunk
        yield mask


@pytest.mark.parametrize("target", [0.36, 0.6, 0.73])
def test_every_round_keeps_the_weights_that_torchs_global_pruning_keeps(target):
    """5^6 weights in all, so that six rounds of four fifths need no rounding."""
    model = nn.Sequential(nn.Linear(100, 100), nn.ReLU(), nn.Linear(75, 75))
    generator = torch.Generator().manual_seed(0)
    state = {n: torch.randn(t.shape, generator=generator) for n, t in model.state_dict().items()}
    model.load_state_dict(state)
    names = masks.prunable(model)
    ours = list(our_rounds(state, names, target))
    theirs = list(torchs_rounds(model, names, target))
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(mine[n], other[n]) for n in names)


def test_on_resnet20_the_counts_agree_with_torchs_up_to_its_rounding_of_every_round():
    model = models.build("resnet20", (3, 32, 32), 10)
    state = {n: t.clone() for n, t in model.state_dict().items()}
    names = masks.prunable(model)
    ours = [masks.count(m) for m in our_rounds(state, names, 0.9)]
    theirs = [masks.count(m) for m in torchs_rounds(model, names, 0.9)]
    assert len(ours) == len(theirs) == 11
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 3
    assert ours[-1] == 268_336 - round(0.9 * 268_336)


@given(st.floats(0, 0.99))
@settings(deadline=None, max_examples=30)
def test_pruning_lands_on_its_sparsity_to_half_a_weight(sparsity):
    state = {"a": torch.randn(37, 11), "b": torch.randn(53)}
    mask = pruning.prune(state, masks.dense_mask(state, ("a", "b")), sparsity)
    total = 37 * 11 + 53
    assert abs(masks.sparsity(mask) - sparsity) <= 0.5 / total + 1e-12


# -------------------------------------------------------------------------- rounds of training

TUNE = Recipe(epochs=1, lr=0.02, batch_size=64)


def nets(n: int) -> list[nn.Module]:
    return [models.build("mlp", (1, 14, 14), 10, seed=i) for i in range(n)]


def draw(images, seeds=(5, 6), chosen=(0.5, 0.7)):
    """Every round of the schedule for two nets: {(number, sparsity): [(mask, trained), …]}."""
    model, *_ = built = nets(len(seeds))
    states = [net.state_dict() for net in built]
    before = [masks.dense_mask(s, masks.prunable(model)) for s in states]
    done, trunk = {}, {0: (states, before)}
    for r in schedule(chosen):
        states, before = trunk[r.number - 1]
        result = pruning.prune_and_tune(model, states, before, seeds, r, TUNE, images)
        done[r.number, r.sparsity] = result
        if r.full:
            trunk[r.number] = [t.state for _, t in result], [m for m, _ in result]
    return done


@pytest.fixture(scope="module")
def drawn(images):
    return draw(images)


def test_masks_are_nested_along_the_trunk_and_its_branches(drawn):
    for (number, sparsity), result in drawn.items():
        before = drawn.get((number - 1, 1 - 0.8 ** (number - 1)))
        if before:
            for (mask, _), (wider, _) in zip(result, before, strict=True):
                assert not any((mask[n] & ~wider[n]).any() for n in mask)
        for mask, trained in result:
            assert masks.sparsity(mask) == pytest.approx(sparsity, abs=1e-5)
            assert not any(trained.state[n][~mask[n]].any() for n in mask)


def test_a_round_drops_the_smallest_of_the_tuned_weights(drawn):
    first, second = (drawn[r.number, r.sparsity] for r in schedule([0.7])[:2])
    for (wider, trained), (mask, _) in zip(first, second, strict=True):
        dropped = torch.cat([trained.state[n][wider[n] & ~mask[n]].abs() for n in mask])
        kept = torch.cat([trained.state[n][mask[n]].abs() for n in mask])
        assert dropped.max() <= kept.min()


def test_a_trajectory_does_not_depend_on_the_nets_beside_it(images, drawn):
    alone = draw(images, seeds=(5,))
    for at, ((mask, trained),) in alone.items():
        together_mask, together = drawn[at][0]
        assert all(torch.equal(mask[n], together_mask[n]) for n in mask)
        assert all(torch.equal(trained.state[n], together.state[n]) for n in trained.state)


def test_the_data_order_of_a_round_depends_on_the_seed_and_the_round(images):
    (net,) = nets(1)
    state = net.state_dict()
    everything = masks.dense_mask(state, masks.prunable(net))

    def tuned(seed: int, number: int) -> masks.State:
        step = Round(number, 0.2)
        ((_, trained),) = pruning.prune_and_tune(
            net, [state], [everything], [seed], step, TUNE, images
        )
        return trained.state

    def same(a: masks.State, b: masks.State) -> bool:
        return all(torch.equal(a[n], b[n]) for n in a)

    assert same(tuned(5, 1), tuned(5, 1))
    assert not same(tuned(5, 1), tuned(6, 1))
    assert not same(tuned(5, 1), tuned(5, 2))


def test_round_zero_is_the_dense_net_itself(images):
    (net,) = nets(1)
    state = net.state_dict()
    everything = masks.dense_mask(state, masks.prunable(net))
    (step,) = schedule([0.0])
    ((mask, trained),) = pruning.prune_and_tune(net, [state], [everything], [0], step, TUNE, images)
    assert masks.sparsity(mask) == 0
    assert all(torch.equal(trained.state[n], state[n]) for n in state)
    assert trained.losses == []


# -------------------------------------------------------------------------- LRR and AWS

WARM_UP = Recipe(epochs=3, lr=0.1, batch_size=64, schedule="constant")
ROUND = Recipe(epochs=2, lr=0.1, batch_size=64, schedule="constant")
ROUNDS = schedule([0.0, pruning.full_sparsity(2)])


def rewind_rates(images, seeds=(5, 6), name="mlp_bn", **options):
    """Every round of LRR, or AWS, for nets of one architecture: [[(mask, trained), …], …]."""
    built = [models.build(name, (1, 14, 14), 10, seed=i) for i in range(len(seeds))]
    states = [net.state_dict() for net in built]
    names = masks.prunable(built[0], include_classifier=False)
    before, left = [masks.dense_mask(s, names) for s in states], []
    for step in ROUNDS:
        result = pruning.prune_and_tune(
            built[0], states, before, seeds, step, ROUND, images, warm_up=WARM_UP, **options
        )
        before, states = [m for m, _ in result], [t.state for _, t in result]
        left.append(result)
    return left


def same_states(first: masks.State, second: masks.State) -> bool:
    return all(torch.equal(first[n], second[n]) for n in first)


def test_lrr_begins_with_a_dense_warm_up_of_the_init(images):
    warm_up, *_ = rewind_rates(images)
    init = models.build("mlp_bn", (1, 14, 14), 10, seed=0).state_dict()
    mask, trained = warm_up[0]
    assert masks.sparsity(mask) == 0
    job = Job(init, pruning._seed(5, 0))
    assert same_states(
        trained.state, train(models.build("mlp_bn", (1, 14, 14), 10), job, WARM_UP, images).state
    )
    assert len(trained.losses) == 3


def test_a_round_of_lrr_goes_on_from_the_weights_as_they_are_at_the_rate_of_the_warm_up(images):
    net = models.build("mlp_bn", (1, 14, 14), 10)
    left = rewind_rates(images)
    for (number, earlier), later in zip(enumerate(left, start=1), left[1:], strict=False):
        for seed, (wider, before), (mask, trained) in zip((5, 6), earlier, later, strict=True):
            assert masks.sparsity(mask) == pytest.approx(1 - 0.8**number, abs=1e-5)
            assert same_states(mask, pruning.prune(before.state, wider, 1 - 0.8**number))
            job = Job(before.state, pruning._seed(seed, number), mask)
            assert same_states(trained.state, train(net, job, ROUND, images).state)
            assert len(trained.losses) == 2


def test_nets_drawn_by_lrr_and_aws_do_not_depend_on_those_beside_them(images):
    for seeds in (None, (8, 9)):
        together = rewind_rates(images, aws_seeds=seeds)
        alone = rewind_rates(images, (5,), aws_seeds=seeds and seeds[:1])
        for both, (only,) in zip(together, alone, strict=True):
            assert same_states(both[0][0], only[0])
            assert same_states(both[0][1].state, only[1].state)


def test_aws_without_interpolation_is_lrr_to_the_bit(images, monkeypatch):
    plain = rewind_rates(images)
    interpolated = rewind_rates(images, aws_seeds=(8, 9))
    assert not same_states(plain[0][0][1].state, interpolated[0][0][1].state)  # in the warm-up
    monkeypatch.setattr(norms, "draws", lambda seed, epoch, steps: torch.zeros(steps))
    for lrr, aws in zip(plain, rewind_rates(images, aws_seeds=(8, 9)), strict=True):
        for (mask, trained), (other_mask, other) in zip(lrr, aws, strict=True):
            assert same_states(mask, other_mask)
            assert same_states(trained.state, other.state)
            assert trained.losses == other.losses


def test_every_round_of_aws_has_draws_of_its_own(images, monkeypatch):
    seen, draws = [], norms.draws
    monkeypatch.setattr(norms, "draws", lambda *of: seen.append(of) or draws(*of))
    rewind_rates(images, aws_seeds=(8, 9))
    assert len({(seed, epoch) for seed, epoch, _ in seen}) == 2 * (3 + 2 + 2)


def test_a_round_of_aws_resumes_from_its_files(images, tmp_path):
    net = models.build("mlp_bn", (1, 14, 14), 10)
    state, epochs = net.state_dict(), []
    mask = masks.dense_mask(state, masks.prunable(net, include_classifier=False))

    def second_round(**options):
        return pruning.prune_and_tune(
            net, [state] * 2, [mask] * 2, (5, 6), Round(2, 0.36), ROUND, images, aws_seeds=(8, 9),
            progress=epochs.append, **options,
        )  # fmt: skip

    expected = second_round()
    files = [tmp_path / "a", tmp_path / "b"]
    second_round(checkpoints=files, checkpoint_seconds=0)  # they stay at its first epoch
    resumed = second_round(checkpoints=files)
    assert epochs == [2, 2, 2, 2, 2]  # of two nets each
    for (_, a), (_, b) in zip(expected, resumed, strict=True):
        assert same_states(a.state, b.state)


def test_nets_without_norm_layers_are_refused_by_aws_and_pruned_by_lrr(images):
    assert len(rewind_rates(images, name="mlp")) == 3
    with pytest.raises(InputError, match="MLP has no batch or layer norm"):
        rewind_rates(images, name="mlp", aws_seeds=(8, 9))
