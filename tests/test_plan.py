"""An artifact's key changes with what it depends on, and with nothing else."""

from __future__ import annotations

import pytest

from rebasin_utils import plan as plan_module
from rebasin_utils.plan import STAGES, Plan, derive_seed
from rebasin_utils.settings import Settings
from rebasin_utils.training import Recipe

BASE = Settings(
    name="base",
    dataset="fashion-mnist",
    model="resnet8",
    dense=Recipe(epochs=10, lr=0.1),
    imp=Recipe(epochs=2, lr=0.01),
    sparsities=(0.5, 0.9),
    rewind_epochs=(0, 3),
    seeds=3,
    tickets_of_b=True,
    cell=(0.5, 3),
    match_epochs=(1,),
    ensemble_size=2,
    plane_points=3,
)

EVERYTHING = set(STAGES)
DENSE_AND_BELOW = EVERYTHING
SPARSE_AND_BELOW = {"sparse", "segment", "diversity", "plane"}
IMP_AND_BELOW = {"imp"} | SPARSE_AND_BELOW
MATCHING_AND_BELOW = {"matching", "connectivity", "sparse", "diversity", "plane"}
REWIND_AND_BELOW = {"rewind", "matching"} | SPARSE_AND_BELOW  # early matching takes rewind states
PATHS = {"connectivity", "segment"}

DEPENDS = [
    # a change of settings, and the stages of which an artifact changes
    ({"name": "other"}, set()),
    ({"dataset": "fashion-mnist-10k"}, DENSE_AND_BELOW),
    ({"pool": 2}, DENSE_AND_BELOW),
    ({"train_limit": 1000}, DENSE_AND_BELOW),
    ({"test_limit": 1000}, DENSE_AND_BELOW),
    ({"augment": False}, DENSE_AND_BELOW),
    ({"model": "resnet20"}, DENSE_AND_BELOW),
    ({"width": 2}, DENSE_AND_BELOW),
    ({"dense.lr": 0.2}, DENSE_AND_BELOW),
    ({"dense.epochs": 11}, DENSE_AND_BELOW),
    ({"dense.batch_size": 64}, DENSE_AND_BELOW),
    ({"imp.lr": 0.02}, IMP_AND_BELOW),
    ({"imp.weight_decay": 0}, IMP_AND_BELOW),
    ({"prune_shortcuts": True}, IMP_AND_BELOW),
    ({"sparse_lr": 0.03}, SPARSE_AND_BELOW),
    ({"rewind_off_by_one": True}, {"rewind"} | SPARSE_AND_BELOW),
    ({"match_on": "covariance"}, MATCHING_AND_BELOW),
    ({"match_std": "mean_of_batches"}, MATCHING_AND_BELOW),
    ({"match_samples": 100}, MATCHING_AND_BELOW),
    ({"stream_tap": "released_code"}, MATCHING_AND_BELOW),
    ({"alphas": (0.0, 1.0)}, {"connectivity"}),
    ({"statistics_samples": 100}, PATHS | {"plane"}),
    ({"path_samples": 100}, PATHS | {"plane"}),
    ({"plane_points": 5}, {"plane"}),
    ({"ensemble_size": 3}, {"matching", "sparse", "diversity"}),
    ({"match_epochs": (2,)}, {"rewind", "matching", "sparse"}),
    ({"cell": (0.9, 0)}, SPARSE_AND_BELOW - {"segment"}),
    ({"cell": (0.7, 0)}, SPARSE_AND_BELOW - {"segment"} | {"matching"}),
]


def keys(settings: Settings, stage: str) -> list[str]:
    """The digests of all artifacts of a stage."""
    return [node.key.digest for node in Plan(settings).nodes(stage)]


@pytest.mark.parametrize(("change", "stages"), DEPENDS, ids=lambda x: str(x))
def test_a_setting_changes_the_artifacts_that_depend_on_it_and_no_others(change, stages):
    other = BASE.with_values(**change)
    changed = {s for s in STAGES if keys(BASE, s) != keys(other, s)}
    assert changed == stages


def test_the_way_of_matching_changes_the_permuted_runs_alone():
    other = Plan(BASE.with_values(match_on="covariance")).nodes("sparse")
    for before, after in zip(Plan(BASE).nodes("sparse"), other, strict=True):
        assert before.method == after.method
        assert (before.key != after.key) == (before.method == "permuted")


@pytest.mark.parametrize(
    "more",
    [
        {"seeds": 5},
        {"sparsities": (0.3, 0.5, 0.7, 0.9, 0.97)},
        {"rewind_epochs": (0, 1, 3, 9)},
        {"match_epochs": (1, 5)},
    ],
    ids=str,
)
def test_asking_for_more_computes_nothing_again(more):
    small, large = Plan(BASE), Plan(BASE.with_values(**more))
    for stage in STAGES:
        kept = {node.key for node in small.nodes(stage)}
        assert kept <= {node.key for node in large.nodes(stage)}
    assert sum(len(large.nodes(s)) > len(small.nodes(s)) for s in STAGES)


def test_fewer_methods_are_a_part_of_the_same_study():
    few = Plan(BASE.with_values(methods=("naive",)))
    for stage in STAGES:
        assert {n.key for n in few.nodes(stage)} <= {n.key for n in Plan(BASE).nodes(stage)}


@pytest.mark.parametrize("stage", STAGES)
def test_a_new_version_of_a_stage_makes_its_artifacts_new_and_what_comes_of_them(
    stage, monkeypatch
):
    below = {
        "dense": EVERYTHING - {"rewind"},
        "rewind": REWIND_AND_BELOW,
        "imp": IMP_AND_BELOW,
        "matching": MATCHING_AND_BELOW,
        "connectivity": {"connectivity"},
        "sparse": SPARSE_AND_BELOW,
        "segment": {"segment"},
        "diversity": {"diversity"},
        "plane": {"plane"},
    }
    before = {s: keys(BASE, s) for s in STAGES}
    monkeypatch.setitem(plan_module.VERSIONS, stage, plan_module.VERSIONS[stage] + 1)
    changed = {s for s in STAGES if keys(BASE, s) != before[s]}
    assert changed == below[stage]


def test_naive_permuted_and_random_runs_have_the_same_start_and_ticket():
    plan = Plan(BASE)
    for seed in range(2):
        for k in BASE.rewind_epochs:
            nodes = {m: plan.sparse(m, 0.9, k, seed) for m in BASE.methods}
            for method, node in nodes.items():
                start, ticket = node.parents[:2]
                assert start == plan.rewind("A" if method == "lth" else "B", seed, k)
                assert ticket == plan.ticket("A", seed, 0.9)
            assert nodes["permuted"].parents[2] == plan.matching(seed)


def test_pairs_share_nothing():
    for stage in STAGES:
        digests = [node.key.digest for node in Plan(BASE).nodes(stage)]
        assert len(set(digests)) == len(digests)


def test_the_imp_trunk_is_shared_by_all_sparsities():
    plan = Plan(BASE)
    fifty, ninety = (plan.ticket("A", 0, s) for s in (0.5, 0.9))
    trunk = []
    node = ninety
    while len(node.parents) == 2:
        node = node.parents[1]
        trunk.append(node)
    assert fifty.parents[1] in trunk
    assert [n.round.number for n in trunk] == list(range(ninety.round.number - 1, 0, -1))


def test_two_targets_may_have_one_ticket_and_never_one_run():
    plan = Plan(BASE.with_values(sparsities=(0.36, 0.362), imp_tolerance=0.005))
    tickets, runs = (
        {make(sparsity).key.digest for sparsity in (0.36, 0.362)}
        for make in (lambda s: plan.ticket("A", 0, s), lambda s: plan.sparse("naive", s, 0, 0))
    )
    assert (len(tickets), len(runs)) == (1, 2)


def test_seeds_are_functions_of_their_names():
    names = [("init", role, seed) for role in "AB" for seed in range(500)]
    names += [("data", role, seed) for role in "AB" for seed in range(500)]
    seeds = [derive_seed(*name) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert seeds == [derive_seed(*name) for name in names]
    assert all(0 <= s < 2**31 for s in seeds)
    assert derive_seed("init", "A", 0) == 1_122_398_669


def test_the_members_of_an_ensemble_are_what_the_paper_says():
    plan = Plan(BASE.with_values(ensemble_size=4))
    nets = {m: plan.members(m, 1) for m in plan.compared}
    others = [("B", 1), ("A", 0), ("B", 0), ("A", 2)]
    assert nets["dense"] == [plan.dense(*net) for net in [("A", 1), *others[:3]]]
    assert nets["imp"] == [plan.ticket(*net, 0.5) for net in [("A", 1), *others[:3]]]
    starts = {
        m: [n.parents[0] for n in nodes] for m, nodes in nets.items() if m not in ("dense", "imp")
    }
    tickets = {n.parents[1] for m in starts for n in nets[m]}
    assert tickets == {plan.ticket("A", 1, 0.5)}
    assert starts["naive"] == starts["permuted"] == [plan.rewind(*net, 3) for net in others]
    assert starts["lth"] == [plan.rewind("A", 1, 3)] * 4
    assert [n.order for n in nets["lth"]] == [0, 1, 2, 3]
    assert [n.parents[2] for n in nets["permuted"]] == [
        plan.matching(1),
        *(plan.matching(1, net) for net in others[1:]),
    ]
    grid = [plan.sparse(m, 0.5, 3, 1).key for m in ("lth", "permuted", "naive")]
    assert [nets[m][0].key for m in ("lth", "permuted", "naive")] == grid
