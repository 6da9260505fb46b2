"""Weight matching climbs to the best permutation there is, and needs no data for it."""

from __future__ import annotations

import copy
from itertools import pairwise, permutations, product

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn.utils import prune

from rebasin_utils.errors import InputError
from rebasin_utils.nets import data, models
from rebasin_utils.nets.models import MLP
from rebasin_utils.symmetry.permutation import (
    compose,
    identity,
    invert,
    permute,
    random_permutation,
)
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.weight_matching import match_weights
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, train_many

SHAPE = (1, 14, 14)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spec_of(net: nn.Module, shape: tuple[int, ...] = SHAPE) -> PermutationSpec:
    return PermutationSpec.trace(net, torch.zeros(2, *shape))


def entering(spec: PermutationSpec) -> set[str]:
    names = {m.tensor for g in spec.groups.values() for m in g.members}
    return {n for n in names if not n.endswith(("running_mean", "running_var"))}


def inner(spec: PermutationSpec, p, moving, reference) -> float:
    """What is to be maximised, written down a second time."""
    moved = permute(spec, p, moving)
    return sum((moved[n].double() * reference[n].double()).sum().item() for n in entering(spec))


@pytest.fixture(scope="module", params=["mlp", "resnet8"])
def trained(request):
    """Two briefly trained nets of one kind, and their spec."""
    images = data.load("fashion-mnist-10k", "train", pool=2, limit=1024)
    nets = [models.build(request.param, SHAPE, 10, seed=seed) for seed in (0, 1)]
    recipe = Recipe(epochs=3, lr=0.05, batch_size=64)
    jobs = [Job(net.state_dict(), seed) for seed, net in enumerate(nets)]
    states = [dict(t.state) for t in train_many(nets[0], jobs, recipe, images)]
    return spec_of(nets[0]), *states


# -------------------------------------------------------------------------- planted permutations


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.20])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_planted_permutation_is_found_for_every_unit(trained, noise, seed):
    """`moving` is the reference with its units shuffled and its weights multiplied by 1 ± noise."""
    spec, state, _ = trained
    planted = random_permutation(spec, seeded(seed))
    generator = seeded(100 + seed)
    noisy = {
        n: t * (1 + noise * torch.randn(t.shape, generator=generator))
        if t.is_floating_point()
        else t
        for n, t in state.items()
    }
    matching = match_weights(spec, permute(spec, planted, noisy), state)
    found = compose(matching.permutation, planted)
    wrong = {n: int((p != torch.arange(len(p))).sum()) for n, p in found.items()}
    assert not any(wrong.values()), wrong
    assert matching.converged


def test_a_net_matches_itself_without_moving_anything(trained):
    spec, state, _ = trained
    matching = match_weights(spec, state, state)
    assert all(
        torch.equal(p, q)
        for p, q in zip(matching.permutation.values(), identity(spec).values(), strict=True)
    )
    assert matching.objective == pytest.approx(matching.norms, rel=1e-6)
    assert matching.objective == pytest.approx(matching.unmatched, rel=1e-12)


# -------------------------------------------------------------------------------- the objective


@pytest.mark.parametrize("seed", range(4))
def test_a_tiny_net_is_matched_as_well_as_by_trying_every_permutation(seed):
    nets = [MLP((1, 2, 2), 3, hidden=(4, 3)) for _ in range(2)]
    generator = seeded(seed)
    moving, reference = (
        {n: torch.randn(t.shape, generator=generator) for n, t in net.state_dict().items()}
        for net in nets
    )
    spec = spec_of(nets[0], (1, 2, 2))
    every = product(*(permutations(range(g.size)) for g in spec.groups.values()))
    candidates = [
        dict(zip(spec.groups, map(torch.tensor, chosen), strict=True)) for chosen in every
    ]
    best = max(inner(spec, p, moving, reference) for p in candidates)
    matching = match_weights(spec, moving, reference, restarts=20, generator=seeded(seed))
    assert len(candidates) == 144
    assert matching.objective == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("restarts", [1, 4])
def test_the_history_never_decreases_and_ends_at_the_objective_of_the_permutation(
    trained, restarts
):
    spec, moving, reference = trained
    matching = match_weights(spec, moving, reference, restarts=restarts, generator=seeded(3))
    assert all(before <= after for before, after in pairwise(matching.history))
    assert matching.history[0] < matching.history[-1]
    assert matching.objective == max(matching.starts)
    assert len(matching.starts) == restarts
    assert matching.sweeps == len(matching.history) - 1
    exact = inner(spec, matching.permutation, moving, reference)
    assert matching.objective == pytest.approx(exact, rel=1e-6)
    assert matching.unmatched == pytest.approx(
        inner(spec, identity(spec), moving, reference), rel=1e-5, abs=1e-3
    )
    assert matching.unmatched < matching.objective < matching.norms


def test_no_single_group_can_be_matched_better(trained):
    """Coordinate ascent ends where the best permutation of any one group is the one it has."""
    spec, moving, reference = trained
    for seed in range(3):
        matching = match_weights(spec, moving, reference, generator=seeded(seed))
        moved = permute(spec, matching.permutation, moving)
        for group in spec.groups.values():
            members = [m for m in group.members if m.tensor in entering(spec)]
            b, a = (
                [s[m.tensor].double().movedim(m.axis, 0)[m.index].flatten(1) for m in members]
                for s in (reference, moved)
            )
            similarity = torch.cat(b, 1) @ torch.cat(a, 1).T
            best = similarity.numpy()[linear_sum_assignment(similarity, maximize=True)].sum()
            assert best == pytest.approx(similarity.trace().item(), rel=1e-6)


def test_more_starts_never_lead_lower(trained):
    spec, moving, reference = trained
    one, five = (
        match_weights(spec, moving, reference, restarts=n, generator=seeded(0)) for n in (1, 5)
    )
    assert five.objective >= one.objective
    assert five.starts[0] == one.objective


def test_the_start_grown_from_the_inputs_leads_higher_than_random_ones(trained):
    spec, moving, reference = trained
    matching = match_weights(spec, moving, reference, restarts=5)
    assert matching.starts[0] > max(matching.starts[1:])


def test_a_limit_on_sweeps_is_kept_and_reported(trained):
    spec, moving, reference = trained
    whole = match_weights(spec, moving, reference)
    cut = match_weights(spec, moving, reference, max_sweeps=1)
    assert whole.converged
    assert whole.sweeps > 1
    assert cut.sweeps == 1
    assert not cut.converged
    assert "not converged after 1 sweeps" in repr(cut)


# ---------------------------------------------------------------------- any structure of the spec


class Stream(nn.Module):
    """A residual stream through square weights: one group on both axes of a tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 10)
        self.third, self.last = nn.Linear(10, 10, bias=False), nn.Linear(10, 3)

    def forward(self, x):
        x = torch.relu(self.first(x))
        x = x + torch.relu(self.second(x))
        return self.last(x + self.third(x))


class Attention(nn.Module):
    """Attention heads (units of several slots), a sum, and the MLP that follows."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 12)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True)
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 2)

    def forward(self, x):
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.down(torch.relu(self.up(x)))


class Joined(nn.Module):
    """Concatenation, flatten with pixels, a depthwise convolution."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.depthwise = nn.Conv2d(10, 10, 3, padding=1, groups=10)
        self.head = nn.Linear(160, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.cat([self.left(x), self.right(x)], 1)
        x = torch.relu(self.depthwise(torch.relu(self.norm(x))))
        return self.last(torch.relu(self.head(x.flatten(1))))


STRUCTURES = {
    "stream": (Stream, (6,)),
    "attention": (Attention, (7, 5)),
    "joined": (Joined, (1, 4, 4)),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_any_structure_is_matched_and_no_sweep_loses(name):
    make, shape = STRUCTURES[name]
    states = []
    for seed in range(2):
        torch.manual_seed(seed)
        states.append({n: t.clone() for n, t in make().state_dict().items()})
    spec = spec_of(make(), shape)
    spec.prove(make(), torch.zeros(2, *shape))
    for seed in range(5):
        matching = match_weights(spec, *states, restarts=3, generator=seeded(seed))
        assert all(before <= after for before, after in pairwise(matching.history))
        exact = inner(spec, matching.permutation, *states)
        assert matching.objective == pytest.approx(exact, rel=1e-5)
        assert matching.objective > matching.unmatched

    planted = random_permutation(spec, seeded(0))
    matching = match_weights(spec, permute(spec, planted, states[0]), states[0])
    again = permute(spec, compose(matching.permutation, planted), states[0])
    assert all(torch.equal(again[n], t) for n, t in states[0].items())


# ---------------------------------------------------- what enters, what must not matter or change


def test_parameters_enter_and_running_statistics_do_not(trained):
    spec, moving, reference = trained
    before = match_weights(spec, moving, reference)
    noisy = {n: torch.rand_like(t) if "running" in n else t for n, t in reference.items()}
    after = match_weights(spec, moving, noisy)
    assert after.history == before.history
    louder = {n: 3 * t if n.endswith("bias") else t for n, t in reference.items()}
    assert match_weights(spec, moving, louder).unmatched != before.unmatched


def test_states_are_left_alone_and_may_differ_in_precision(trained):
    spec, moving, reference = trained
    double = {n: t.double() if t.is_floating_point() else t for n, t in moving.items()}
    kept = copy.deepcopy([double, reference])
    mixed = match_weights(spec, double, reference)
    assert mixed.history == match_weights(spec, moving, reference).history
    for state, before in zip((double, reference), kept, strict=True):
        assert all(torch.equal(state[n], t) for n, t in before.items())
        assert all(state[n].dtype == t.dtype for n, t in before.items())

    half = {n: t.bfloat16() if t.is_floating_point() else t for n, t in moving.items()}
    planted = random_permutation(spec, seeded(0))
    matching = match_weights(spec, permute(spec, planted, half), double)
    found = compose(matching.permutation, planted)
    assert all(torch.equal(p, torch.arange(len(p))) for p in found.values())


def test_masked_weights_count_as_zero():
    net, other = (models.build("mlp", SHAPE, 10, seed=seed) for seed in (0, 1))
    spec = spec_of(net)
    dense = copy.deepcopy(net)
    for module in net.modules():
        if isinstance(module, nn.Linear):
            prune.l1_unstructured(module, "weight", 0.8)
    masked = {
        n: net.state_dict()[f"{n}_orig"] * net.state_dict()[f"{n}_mask"]
        if f"{n}_mask" in net.state_dict()
        else t
        for n, t in dense.state_dict().items()
    }
    pruned, plain = (match_weights(spec, s, other.state_dict()) for s in (net.state_dict(), masked))
    assert pruned.history == plain.history
    assert pruned.objective < match_weights(spec, dense.state_dict(), other.state_dict()).objective


def test_the_result_depends_on_the_generator_and_not_on_the_number_of_threads(trained):
    spec, moving, reference = trained
    moving = {n: t.clone() for n, t in moving.items()}
    first = next(n for n in moving if moving[n].ndim > 1)
    for member in spec.groups[next(iter(spec.groups))].members:  # two units that are copies
        moving[member.tensor].movedim(member.axis, 0)[1] = moving[member.tensor].movedim(
            member.axis, 0
        )[0]
    assert torch.equal(moving[first][0], moving[first][1])
    results = []
    for threads in (1, 2, 1):
        torch.set_num_threads(threads)
        torch.manual_seed(threads)
        try:
            results.append(match_weights(spec, moving, reference, restarts=2, generator=seeded(5)))
        finally:
            torch.set_num_threads(1)
    for result in results[1:]:
        assert result.history == pytest.approx(results[0].history, rel=1e-9)
        assert all(torch.equal(p, results[0].permutation[n]) for n, p in result.permutation.items())
    assert (
        match_weights(spec, moving, reference).history
        == match_weights(spec, moving, reference).history
    )


def test_matching_back_undoes_matching(trained):
    """The same problem from the other side has the same optimum, up to where the ascent ends."""
    spec, moving, reference = trained
    there = match_weights(spec, moving, reference)
    back = invert(there.permutation)
    assert inner(spec, back, reference, moving) == pytest.approx(there.objective, rel=1e-6)


def test_a_matching_says_how_it_went(trained):
    spec, moving, reference = trained
    text = repr(match_weights(spec, moving, reference, restarts=2))
    assert f"in {len(spec.groups)} groups" in text
    assert "converged after" in text
    assert "best of 2 starts" in text
    assert len(text) < 250


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda s: s.pop("layers.linear1.weight"), {}, "lacks the tensor 'layers.linear1.weight'"),
        (lambda s: s["layers.linear0.bias"].fill_(torch.nan), {}, "'layers.linear0.bias' is not"),
        (lambda s: s.update({"layers.linear1.bias": torch.ones(3)}), {}, r"has shape \(3,\)"),
        (lambda s: None, {"restarts": 0}, "restarts = 0"),
        (lambda s: None, {"max_sweeps": 0}, "max_sweeps = 0"),
    ],
)
def test_what_cannot_be_matched_is_refused_in_one_sentence(change, options, message):
    net = models.build("mlp", SHAPE, 10)
    state = {n: t.clone() for n, t in net.state_dict().items()}
    change(state)
    with pytest.raises(InputError, match=message) as error:
        match_weights(spec_of(net), state, net.state_dict(), **options)
    assert "\n" not in str(error.value)
