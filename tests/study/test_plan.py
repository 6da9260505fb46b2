"""An artifact's key changes with what it depends on, and with nothing else."""

from __future__ import annotations

import pytest

from rebasin_utils.errors import InputError
from rebasin_utils.study.parts import Dense, Imp
from rebasin_utils.study.plan import Plan
from rebasin_utils.study.seeds import derive_seed
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stages import (
    connectivity,
    dense,
    diversity,
    early_matching,
    imp,
    matching,
    overlaps,
    plane,
    segment,
    sparse,
    tickets,
)

BASE = Settings(
    name="base",
    seeds=3,
    data=dict(source="fashion-mnist"),
    model=dict(name="resnet8"),
    dense=Dense(epochs=10, lr=0.1),
    imp=Imp(epochs=2, lr=0.01, prune_b=True),
    sparse=dict(sparsities=(0.5, 0.9), rewind_epochs=(0, 3)),
    closer_look=dict(
        sparsity=0.5,
        rewind_epoch=3,
        match_epochs=(1,),
        match_images=(50,),
        ensemble_size=2,
        plane_points=3,
    ),
    budgets=dict(epochs=(4,)),
    signs=dict(
        rounds=(1, 2),
        warm_up=1,
        round_epochs=1,
        epochs=2,
        rewind_epochs=(0, 3),
        agreement_epochs=(0, 3),
    ),
)

STAGES = tuple(Plan(BASE).stages)

#: Two want runs and have no artifacts; no mask is re-used here.
EVERYTHING = set(STAGES) - {"budgets", "rescaling", "reuse"}
DENSE_AND_BELOW = EVERYTHING
SPARSE_AND_BELOW = {"sparse", "segment", "diversity", "plane"}
IMP_AND_BELOW = {"imp", "overlaps"} | SPARSE_AND_BELOW
MATCHED = {"matching", "connectivity", "overlaps", "early_matching", "few_images"}
ADDRESSED = {"sign_transfer", "sign_paths", "sign_agreement"}
MATCHING_AND_BELOW = MATCHED | {"sparse", "diversity", "plane", "segment"} | ADDRESSED
TICKETS = {"lrr", "aws", "finetuning"}
SIGNS = TICKETS | ADDRESSED | {"stability"}
EARLY = {"matching", "early_matching"}  # it matches with states on the way of the dense runs
REWIND_AND_BELOW = {"rewind"} | EARLY | SPARSE_AND_BELOW | SIGNS
PATHS = {"connectivity", "segment"}

DEPENDS = [
    # a change of settings, and the stages of which an artifact changes
    ({"name": "other"}, set()),
    ({"data.source": "fashion-mnist-10k"}, DENSE_AND_BELOW),
    ({"data.pool": 2}, DENSE_AND_BELOW),
    ({"data.train_limit": 1000}, DENSE_AND_BELOW),
    ({"data.test_limit": 1000}, DENSE_AND_BELOW),
    ({"data.augment": False}, DENSE_AND_BELOW),
    ({"data.mean": (0.5, 0.5, 0.5)}, DENSE_AND_BELOW),
    ({"data.std": (0.5, 0.5, 0.5)}, DENSE_AND_BELOW),
    ({"data.crop": "part"}, DENSE_AND_BELOW),
    ({"data.smallest": 0.5}, DENSE_AND_BELOW),
    ({"model.name": "resnet20"}, DENSE_AND_BELOW),
    ({"model.width": 2}, DENSE_AND_BELOW),
    ({"dense.lr": 0.2}, DENSE_AND_BELOW),
    ({"dense.epochs": 11}, DENSE_AND_BELOW),
    ({"dense.batch_size": 64}, DENSE_AND_BELOW),
    ({"imp.lr": 0.02}, IMP_AND_BELOW),
    ({"imp.weight_decay": 0}, IMP_AND_BELOW),
    ({"imp.prune_shortcuts": True}, IMP_AND_BELOW),
    ({"imp.prune_b": False}, {"imp", "overlaps", "matching", "sparse", "diversity"}),
    ({"sparse.lr": 0.03}, SPARSE_AND_BELOW),
    ({"as_released.rewind_off_by_one": True}, {"rewind"} | SPARSE_AND_BELOW),
    ({"matching.objective": "covariance"}, MATCHING_AND_BELOW),
    ({"matching.samples": 100}, MATCHING_AND_BELOW - {"few_images"}),
    ({"as_released.match_std": "mean_of_batches"}, MATCHING_AND_BELOW),
    ({"as_released.stream_tap": "released_code"}, MATCHING_AND_BELOW),
    ({"paths.alphas": (0.0, 1.0)}, {"connectivity"}),
    ({"paths.statistics_samples": 100}, PATHS | {"plane", "few_images"}),
    ({"paths.samples": 100}, PATHS | {"plane", "few_images", "sign_paths", "stability"}),
    ({"paths.to_every_round": True}, {"segment"}),
    ({"closer_look.plane_points": 5}, {"plane"}),
    ({"closer_look.ensemble_size": 3}, {"matching", "sparse", "diversity"}),
    ({"closer_look.match_epochs": (2,)}, {"rewind", "sparse"} | EARLY),
    ({"closer_look.match_images": (60,)}, {"matching", "sparse", "few_images"}),
    (
        {"closer_look.sparsity": 0.9, "closer_look.rewind_epoch": 0},
        SPARSE_AND_BELOW,
    ),
    (
        {"closer_look.sparsity": 0.7, "closer_look.rewind_epoch": 0},
        SPARSE_AND_BELOW | {"matching"},
    ),
    ({"budgets.epochs": (4, 5)}, {"sparse"}),
    ({"sparse.epochs": 8}, SPARSE_AND_BELOW),
    ({"signs.lr": 0.2}, SIGNS),
    ({"signs.finetuning_lr": 0.02}, {"finetuning", "sign_transfer", "sign_paths"}),
    ({"signs.epochs": 3}, {"sign_transfer", "sign_paths", "stability"}),
    ({"signs.rate": 0.3}, SIGNS),
    ({"signs.rescale": True}, {"sign_transfer", "sign_paths", "stability"}),
    ({"signs.agreement_epochs": (0,)}, {"sign_agreement"}),
    ({"signs.rounds": ()}, SIGNS | {"rewind"}),
]


def keys(settings: Settings) -> dict[str, list[str]]:
    """The digests of all artifacts, by stage."""
    plan = Plan(settings)
    return {s: sorted(node.key.digest for node in plan.nodes(s)) for s in STAGES}


@pytest.mark.parametrize(
    ("change", "stages"), DEPENDS, ids=lambda x: str(x) if type(x) is dict else ""
)
def test_a_setting_changes_the_artifacts_that_depend_on_it_and_no_others(change, stages):
    before, after = keys(BASE), keys(BASE.with_values(**change))
    changed = {s for s in STAGES if before[s] != after[s]}
    assert changed == stages


def test_the_way_of_matching_changes_the_permuted_runs_alone():
    other = Plan(BASE.with_values(**{"matching.objective": "covariance"})).nodes("sparse")
    for before, after in zip(Plan(BASE).nodes("sparse"), other, strict=True):
        assert before.at == after.at
        assert (before != after) == (before.at["method"] == "permuted")


@pytest.mark.parametrize(
    "more",
    [
        {"seeds": 5},
        {"sparse.sparsities": (0.3, 0.5, 0.7, 0.9, 0.97)},
        {"sparse.rewind_epochs": (0, 1, 3, 9)},
        {"closer_look.match_epochs": (1, 5)},
        {"closer_look.match_images": (20, 50, 200)},
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
    few, all_of_them = Plan(BASE.with_values(**{"sparse.methods": ("naive",)})), Plan(BASE)
    for stage in STAGES:
        assert {n.key for n in few.nodes(stage)} <= {n.key for n in all_of_them.nodes(stage)}


@pytest.fixture
def _no_node_is_remembered():
    """A node's key holds the version of its stage, which does not change while a process lives."""
    imp.after.cache_clear()
    tickets.after.cache_clear()
    yield
    imp.after.cache_clear()
    tickets.after.cache_clear()


@pytest.mark.usefixtures("_no_node_is_remembered")
@pytest.mark.parametrize("stage", STAGES)
def test_a_new_version_of_a_stage_makes_its_artifacts_new_and_what_comes_of_them(
    stage, monkeypatch
):
    below = {
        "dense": EVERYTHING - TICKETS - {"rewind", "stability"},
        "rewind": REWIND_AND_BELOW,
        "imp": IMP_AND_BELOW,
        "matching": MATCHING_AND_BELOW,
        "connectivity": {"connectivity"},
        "overlaps": {"overlaps"},
        "sparse": SPARSE_AND_BELOW,
        "early_matching": {"early_matching"},
        "few_images": {"few_images"},
        "segment": {"segment"},
        "diversity": {"diversity"},
        "plane": {"plane"},
        "budgets": set(),
        "rescaling": set(),
        "reuse": set(),
        "lrr": {"lrr", "stability"} | ADDRESSED,
        "aws": {"aws", "sign_transfer", "sign_paths", "stability"},
        "finetuning": {"finetuning", "sign_transfer", "sign_paths"},
        "sign_transfer": {"sign_transfer", "sign_paths", "stability"},
        "sign_paths": {"sign_paths"},
        "stability": {"stability"},
        "sign_agreement": {"sign_agreement"},
    }
    before = keys(BASE)
    kind = type(Plan(BASE).stages[stage])
    monkeypatch.setattr(kind, "version", kind.version + 1)
    imp.after.cache_clear()
    tickets.after.cache_clear()
    after = keys(BASE)
    changed = {s for s in STAGES if before[s] != after[s]}
    assert changed == below[stage]


def test_naive_permuted_and_random_runs_have_the_same_start_and_ticket():
    for seed in range(2):
        for k in BASE.sparse.rewind_epochs:
            nodes = {m: sparse.one(BASE, m, 0.9, k, seed) for m in BASE.sparse.methods}
            for method, node in nodes.items():
                start, ticket = node.parents[:2]
                assert start == dense.state_after(BASE, "A" if method == "lth" else "B", seed, k)
                assert ticket == imp.ticket(BASE, "A", seed, 0.9)
            assert nodes["permuted"].parents[2] == matching.of_pair(BASE, seed)


def test_pairs_share_nothing():
    for stage in STAGES:
        digests = [node.key.digest for node in Plan(BASE).nodes(stage)]
        assert len(set(digests)) == len(digests)


def test_the_imp_trunk_is_shared_by_all_sparsities():
    fifty, ninety = (imp.ticket(BASE, "A", 0, s) for s in (0.5, 0.9))
    trunk = []
    node = ninety
    while len(node.parents) == 2:
        node = node.parents[1]
        trunk.append(node)
    assert fifty.parents[1] in trunk
    assert [n.at["round"] for n in trunk] == list(range(ninety.at["round"] - 1, 0, -1))


def test_two_targets_may_have_one_ticket_and_never_one_run():
    targets = (0.36, 0.362)
    close = BASE.with_values(**{"sparse.sparsities": targets, "as_released.imp_tolerance": 0.005})
    tickets = {imp.ticket(close, "A", 0, s) for s in targets}
    runs = {sparse.one(close, "naive", s, 0, 0) for s in targets}
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
    s = BASE.with_values(seeds=7, **{"closer_look.ensemble_size": 4})
    assert diversity.tickets(s) == [0, 3]
    nets = {m: diversity.members(s, m, 3) for m in diversity.compared(s)}
    others = [("B", 3), ("A", 4), ("B", 4), ("A", 5)]
    assert nets["dense"] == [dense.net(s, *net) for net in [("A", 3), *others[:3]]]
    assert nets["imp"] == [imp.ticket(s, *net, 0.5) for net in [("A", 3), *others[:3]]]
    starts = {
        m: [n.parents[0] for n in nodes] for m, nodes in nets.items() if m not in ("dense", "imp")
    }
    drawn = {n.parents[1] for m in starts for n in nets[m]}
    assert drawn == {imp.ticket(s, "A", 3, 0.5)}
    expected = [dense.state_after(s, *net, 3) for net in others]
    assert starts["naive"] == starts["permuted"] == expected
    assert starts["lth"] == [dense.state_after(s, "A", 3, 3)] * 4
    assert [n.at.get("order", 0) for n in nets["lth"]] == [0, 1, 2, 3]
    assert [n.parents[2] for n in nets["permuted"]] == [
        matching.of_pair(s, 3),
        *(matching.of_pair(s, 3, net) for net in others[1:]),
    ]
    grid = [sparse.one(s, m, 0.5, 3, 3) for m in ("lth", "permuted", "naive")]
    assert [nets[m][0] for m in ("lth", "permuted", "naive")] == grid


@pytest.mark.parametrize(("seeds", "size"), [(9, 5), (8, 5), (2, 2), (7, 4), (6, 3)])
def test_no_net_is_in_two_ensembles(seeds, size):
    s = BASE.with_values(seeds=seeds, **{"closer_look.ensemble_size": size})
    for method in ("dense", "permuted"):
        nets = [n for seed in diversity.tickets(s) for n in diversity.members(s, method, seed)]
        starts = [n if method == "dense" else n.parents[0] for n in nets]
        assert len(set(starts)) == len(starts) == size * len(diversity.tickets(s))


def test_a_study_that_begins_with_another_pair_shares_the_pairs_of_both():
    whole = Plan(BASE.with_values(seeds=4))
    parts = [BASE.with_values(seeds=2, first_seed=first) for first in (0, 2)]
    for stage in ("dense", "imp", "matching", "connectivity", "overlaps", "segment", "lrr"):
        found = {n.key for part in parts for n in Plan(part).nodes(stage)}
        assert found >= {n.key for n in whole.nodes(stage) if "reference" not in n.at}


# -------------------------------------------------------------------------- what a plan holds


@pytest.mark.parametrize("settings", [BASE, BASE.with_values(**{"sparse.methods": ("lth",)})])
def test_whatever_an_artifact_depends_on_is_planned_and_stands_before_it(settings):
    there = set()
    for node in Plan(settings).all_nodes():
        assert there.issuperset(node.parents)
        there.add(node)


def test_no_state_of_a_dense_run_is_planned_that_nobody_wants():
    few = BASE.with_values(**{"sparse.methods": ("naive",), "signs.rounds": ()})
    for settings in (BASE, few):
        plan = Plan(settings)
        wanted = {parent for node in plan.all_nodes() for parent in node.parents}
        assert set(plan.nodes("rewind")) <= wanted
    assert {n.at["epoch"] for n in Plan(BASE).nodes("rewind")} == {0, 1, 3}  # 1: early matching
    starts = {(n.at["role"], n.at["epoch"]) for n in Plan(few).nodes("rewind")}
    assert starts == {("B", 0), ("B", 1), ("B", 3), ("A", 3)}  # an ensemble starts from other A's


def test_the_states_of_a_dense_run_are_stored_on_its_way_and_cost_nothing():
    plan = Plan(BASE)
    kept = [state for net in plan.nodes("dense") for state in plan.byproducts(net)]
    of_nets = {n.key for n in plan.nodes("rewind") if n.at["role"] != "C"}  # an init of no net
    assert {n.key for n in kept} == of_nets
    assert all(state.epochs == 0 for state in kept)
    for net in plan.nodes("dense"):
        for state in plan.byproducts(net):
            assert (state.at["role"], state.seed) == (net.at["role"], net.seed)
            assert state.made_by == net
    assert plan.byproducts(plan.nodes("sparse")[0]) == []


AT = [
    # where a node stands, and what makes it
    ("dense", dict(role="A", seed=0), dense.net(BASE, "A", 0)),
    ("rewind", dict(role="B", seed=2, epoch=3), dense.state_after(BASE, "B", 2, 3)),
    ("imp", dict(role="A", seed=1, sparsity=0.9), imp.ticket(BASE, "A", 1, 0.9)),
    (
        "imp",
        dict(role="B", seed=1, round=1),
        imp.after(BASE, "B", 1, imp.rounds(BASE)[0]),
    ),
    ("matching", dict(seed=1), matching.of_pair(BASE, 1)),
    ("matching", dict(seed=1, match_epoch=1), matching.of_pair(BASE, 1, epoch=1)),
    ("matching", dict(seed=0, reference="A1"), matching.of_pair(BASE, 0, ("A", 1))),
    ("connectivity", dict(seed=2), connectivity.between(BASE, 2)),
    ("overlaps", dict(seed=0, sparsity=0.5), overlaps.of_pair(BASE, 0, 0.5)),
    (
        "sparse",
        dict(method="permuted", sparsity=0.5, rewind_epoch=3, seed=1),
        sparse.one(BASE, "permuted", 0.5, 3, 1),
    ),
    (
        "sparse",
        dict(method="permuted", sparsity=0.5, rewind_epoch=3, seed=1, match_epoch=1),
        early_matching.permuted(BASE, 1, 1),
    ),
    (
        "sparse",
        dict(method="lth", order=1, seed=0),
        sparse.one(BASE, "lth", 0.5, 3, 0, order=1),
    ),
    (
        "sparse",
        dict(method="naive", net="A1", seed=0),
        sparse.one(BASE, "naive", 0.5, 3, 0, net=("A", 1)),
    ),
    ("early_matching", dict(seed=0, match_epoch=1), early_matching.agreement(BASE, 0, 1)),
    (
        "segment",
        dict(kind="dense-imp", seed=0, sparsity=0.5),
        segment.between(BASE, "dense-imp", 0, 0.5),
    ),
    (
        "segment",
        dict(kind="dense-lth", seed=0, sparsity=0.5, rewind_epoch=3),
        segment.between(BASE, "dense-lth", 0, 0.5, 3),
    ),
    ("diversity", dict(method="naive", seed=0), diversity.ensemble(BASE, "naive", 0)),
    ("plane", {}, plane.of_pair(BASE, 0)),
]


@pytest.mark.parametrize(("stage", "at", "expected"), AT, ids=lambda x: str(x))
def test_an_artifact_is_found_by_where_it_stands(stage, at, expected):
    node = Plan(BASE).node(stage, **at)
    assert node == expected
    assert node.stage == stage
    assert at.items() <= node.at.items()
    assert None not in node.at.values()  # what does not apply is left out


def test_a_place_with_no_artifact_or_with_several_is_refused_in_a_sentence():
    plan = Plan(BASE)
    refusals = [
        ("dense", dict(role="C", seed=0), ["dense: no artifacts", "role = 'C', seed = 0"]),
        ("dense", dict(role="A"), ["dense: 3 artifacts", "role = 'A'"]),
        ("sparse", dict(method="naive", seed=0), ["sparse: ", "method = 'naive'"]),
        ("dens", dict(seed=0), ["stage = 'dens': choose from", *STAGES]),
    ]
    for stage, at, parts in refusals:
        with pytest.raises(InputError) as raised:
            plan.node(stage, **at)
        assert "\n" not in str(raised.value)
        assert all(part in str(raised.value) for part in parts)
    bare = Plan(BASE.with_values(sparse={}))
    with pytest.raises(InputError, match="sparse: this study has no such artifacts"):
        bare.node("sparse", seed=0)


def test_an_unknown_stage_is_refused_by_every_door():
    for ask in (Plan(BASE).nodes, lambda stage: Plan(BASE).all_nodes([stage])):
        with pytest.raises(InputError, match="stage = 'dens': choose from dense, rewind, imp"):
            ask("dens")
