"""What the runner makes of a plan: lots in the order of what they need, each artifact once."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from rebasin_utils.errors import InputError, RunError
from rebasin_utils.nets.batches import in_order
from rebasin_utils.running import runner
from rebasin_utils.running.dag import Outcome
from rebasin_utils.study.stages import dense
from rebasin_utils.study.study import Study


@pytest.fixture
def study(tiny, tmp_path: Path) -> Study:
    """The tiny study, of which nothing is computed."""
    return Study(tiny, tmp_path / "store")


def stages_of(lots: list) -> set[str]:
    return {node.stage for lot in lots for node in lot.nodes}


def test_a_lot_comes_after_those_that_hold_what_it_needs(study):
    lots = runner._lots([study], None)
    holder = {node.key: lot.name for lot in lots for node in lot.nodes}
    assert set(holder) == {node.key for node in study.plan.all_nodes()}
    for lot in lots:
        needed = {holder[parent.key] for node in lot.nodes for parent in node.parents}
        assert needed - {lot.name} <= set(lot.after)


def test_a_state_on_the_way_of_a_dense_run_waits_for_that_run(study):
    lots = runner._lots([study], None)
    holder = {node.key: lot.name for lot in lots for node in lot.nodes}
    rewinds = [lot for lot in lots if lot.nodes[0].stage == "rewind"]
    assert rewinds
    for lot in rewinds:
        runs = {holder[dense.net(study.settings, n.at["role"], n.seed).key] for n in lot.nodes}
        assert runs <= set(lot.after)


def test_what_is_asked_for_brings_what_it_needs_and_nothing_else(study):
    asked = stages_of(runner._lots([study], ["matching"]))
    assert asked >= {"dense", "matching"}
    assert not asked & {"imp", "sparse", "connectivity"}
    assert "connectivity" not in stages_of(runner._lots([study], ["sparse"]))
    assert stages_of(runner._lots([study], ["overlaps"])) == {
        "dense",
        "imp",
        "matching",
        "overlaps",
    }


def test_a_stage_that_does_not_exist_is_refused_with_those_that_do(study):
    with pytest.raises(InputError, match=r"stage = 'dens': choose from dense, rewind, .*plane"):
        runner.run(study, stages=["dens"])
    assert not study.store.root.exists()


def test_what_is_computed_is_counted_with_what_it_depends_on(study):
    computed = runner.run(study, ["matching"], workers=1, quiet=True)
    needed = {p for node in study.nodes("matching") for p in (node, *node.parents)}
    assert computed == len(needed)
    assert {n for n in study.plan.all_nodes() if n.key in study.store} - needed <= {
        state for net in study.nodes("dense") for state in study.plan.byproducts(net)
    }
    assert study.missing(["matching"]) == []
    assert study.missing(["imp"]) == study.nodes("imp")
    assert runner.run(study, ["matching"], workers=1, quiet=True) == 0


def test_what_is_there_is_in_no_lot(finished):
    assert runner._lots([finished], None) == []


def test_what_two_studies_share_is_in_one_lot(study):
    larger = Study(study.settings.with_values(seeds=3), study.store)
    nodes = [n.key for lot in runner._lots([study, larger], None) for n in lot.nodes]
    assert len(nodes) == len(set(nodes))
    assert set(nodes) == {node.key for node in larger.plan.all_nodes()}


@pytest.mark.parametrize("model", ["mlp", "resnet8"])
def test_the_work_of_an_epoch_is_what_torch_counts(tiny, tmp_path, model):
    study = Study(tiny.with_values(**{"model.name": model}), tmp_path, "cpu")
    images = study.split("train")
    few, _ = next(in_order(images.head(1), 1))
    with FlopCounterMode(display=False) as counted:
        study.model.eval()(few)
    work = counted.get_total_flops() // 2  # a multiplication and an addition
    assert runner._work_of_an_epoch(study) == pytest.approx(work * len(images), rel=1e-4)


def test_the_number_of_workers_can_be_said_by_the_environment(monkeypatch, study):
    monkeypatch.setenv("REBASIN_WORKERS", "7")
    assert runner.default_workers(study.device) == 7
    monkeypatch.setenv("REBASIN_WORKERS", "many")
    with pytest.raises(InputError, match="REBASIN_WORKERS = 'many'"):
        runner.default_workers(study.device)


def test_of_many_failures_the_users_own_is_told_and_the_others_are_counted(study):
    lots = runner._lots([study], None)
    names = [lot.name for lot in lots]
    outcomes = [
        Outcome(names[0], "failed", why="KeyError: 'x'", traceback="…"),
        Outcome(names[1], "failed", why="lr = 9: too much", kind=InputError, traceback="…"),
        *[Outcome(name, "skipped") for name in names[2:]],
    ]
    told = rf"lr = 9: too much; 2 of {len(lots)} tasks failed, {len(lots) - 2} that need them"
    with pytest.raises(InputError, match=told):
        runner._complain(lots, outcomes)
    with pytest.raises(RunError, match=r"KeyError: 'x' \(details: .*\.failed\); 1 of"):
        runner._complain(lots, outcomes[:1])


def test_a_worker_that_died_is_noted_for_all_that_it_was_to_make(study):
    study.store.prepare()
    lot, *_ = lots = runner._lots([study], None)
    with pytest.raises(RunError):
        runner._complain(lots, [Outcome(lot.name, "failed", why="4 workers died")])
    for node in lot.nodes:
        assert study.store.failure(node.key)["why"] == "4 workers died"
