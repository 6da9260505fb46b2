"""What a study costs and where it stands, told without computing, writing or waiting."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rebasin_utils.running import costs
from rebasin_utils.study.presets import preset
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.store import RECORD, Store
from rebasin_utils.study.study import Study

#: Epochs of every published CIFAR table, counted by hand from the protocol: sparse runs; A and B;
#: one pruning trajectory a pair.
PUBLISHED = {
    "paper-resnet20-w1-cifar10": (54_000, 1_200, 2_700),
    "paper-resnet20-w4-cifar10": (54_000, 1_200, 2_700),
    "paper-resnet20-w8-cifar10": (29_340, 1_200, 2_700),
    "paper-resnet20-w16-cifar10": (29_340, 1_200, 2_700),
    "paper-resnet20-w1-cifar100": (29_340, 1_200, 2_700),
    "paper-resnet20-w16-cifar100": (29_340, 1_200, 2_700),
    "paper-vgg11-w1-cifar10": (22_950, 1_200, 1_800),
}


@pytest.fixture
def copied(finished: Study, tmp_path: Path) -> Study:
    """The finished study with a store of its own."""
    shutil.copytree(finished.store.root, tmp_path / "copy")
    return Study(finished.settings, tmp_path / "copy")


def by_stage(settings: Settings, store: Store, device: str = "cpu") -> dict[str, costs.StageCost]:
    return {cost.stage: cost for cost in costs.of_study(settings, store, device)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_tables_cost_what_the_protocol_says(name, tmp_path):
    (settings,) = preset(f"{name}-as-released")
    stages = by_stage(settings, Store(tmp_path / "none"))
    assert tuple(stages[s].epochs for s in ("sparse", "dense", "imp")) == PUBLISHED[name]
    assert sum(cost.epochs for cost in stages.values()) == sum(PUBLISHED[name])
    assert stages["sparse"].seconds_left is None  # nothing was ever run: unknown, not zero
    assert not (tmp_path / "none").exists()


def test_a_95_percent_that_is_95_percent_costs_one_more_fine_tuning_a_pair(tmp_path):
    (settings,) = preset("paper-resnet20-w1-cifar10")
    imp = by_stage(settings, Store(tmp_path / "none"))["imp"]
    assert imp.epochs == 2_700 + settings.seeds * settings.imp.epochs


def test_a_finished_study_has_nothing_left_and_took_what_its_runs_took(finished):
    stages = by_stage(finished.settings, finished.store)
    for cost in stages.values():
        assert cost.done == cost.artifacts
        assert (cost.running, cost.failed, cost.missing, cost.epochs_left) == (0, 0, 0, 0)
        assert cost.seconds_left == 0
    records = [finished.store.record(node.key) for node in finished.plan.nodes("sparse")]
    assert stages["sparse"].seconds == pytest.approx(sum(r["seconds"] for r in records))


def test_done_running_failed_and_missing_add_up_to_all(copied):
    store = copied.store
    running, failed, missing, damaged, *done = copied.plan.nodes("sparse")
    for node in (running, failed, missing):
        shutil.rmtree(store.root / node.key.path)
    (store.root / damaged.key.path / RECORD).write_text("{")
    store.put_failure(failed.key, "it was not to be")
    with store.lock(running.key.digest):
        cost = by_stage(copied.settings, Store(store.root))["sparse"]
    assert (cost.done, cost.running, cost.failed, cost.missing) == (len(done), 1, 1, 2)
    assert cost.epochs_left == sum(n.epochs for n in (running, failed, missing, damaged))
    assert costs.failures(copied.settings, store) == [f"{failed.key.path}: it was not to be"]


def test_looking_changes_nothing(copied):
    (copied.store.root / copied.plan.nodes("dense")[0].key.path / RECORD).write_text("{")
    before = sorted(copied.store.root.rglob("*"))
    by_stage(copied.settings, Store(copied.store.root))
    assert sorted(copied.store.root.rglob("*")) == before


@pytest.mark.parametrize("stage", ["overlaps", "plane"])
def test_a_stage_that_trains_nothing_and_was_never_run_has_no_known_pace(copied, stage):
    shutil.rmtree(copied.store.root / stage)
    cost = by_stage(copied.settings, copied.store)[stage]
    assert (cost.done, cost.epochs_left, cost.seconds_left) == (0, 0, None)


def test_a_stage_that_the_settings_do_not_ask_for_costs_nothing_and_is_not_listed(copied):
    settings = copied.settings.with_values(**{"imp.prune_b": False})
    stages = by_stage(settings, copied.store)
    assert not stages.keys() & {"overlaps", "diversity"}
    assert set(stages) < set(by_stage(copied.settings, copied.store))


def test_a_failure_is_forgotten_when_the_artifact_is_made(copied):
    node = copied.plan.nodes("matching")[0]
    artifact = copied.store.get(node.key)
    copied.store.put_failure(node.key, "no")
    shutil.rmtree(copied.store.root / node.key.path)
    assert copied.store.failure(node.key)["why"] == "no"
    copied.store.put(node.key, {"seconds": 0.0}, artifact.tensors)
    assert copied.store.failure(node.key) is None


def test_what_remains_is_estimated_from_runs_of_the_same_kind_on_the_same_device(copied):
    more = copied.settings.with_values(seeds=4)  # twice the pairs
    stages = by_stage(more, copied.store)
    every_pair = ("dense", "imp", "matching", "connectivity", "overlaps", "sparse")
    for stage in (*every_pair, "early_matching", "segment", "diversity"):
        assert stages[stage].seconds_left == pytest.approx(stages[stage].seconds, rel=1e-6)
        assert stages[stage].seconds > 0
    assert by_stage(more, copied.store, "abacus")["dense"].seconds_left is None
    wider = by_stage(more.with_values(**{"model.width": 2}), copied.store)
    assert wider["dense"].seconds_left is None


def test_a_stage_that_was_never_run_goes_at_the_pace_of_those_that_were(copied):
    dense = by_stage(copied.settings, copied.store)["dense"]
    for stage in ("imp", "sparse"):
        shutil.rmtree(copied.store.root / stage)
    sparse = by_stage(copied.settings, copied.store)["sparse"]
    expected = dense.seconds / dense.epochs * sparse.epochs
    assert sparse.seconds_left == pytest.approx(expected)


def test_a_lock_is_seen_only_while_it_is_held(store):
    assert not store.is_locked("x")
    with store.lock("x"):
        assert store.is_locked("x")
        assert store.at_work() == ["x"]
    assert not store.is_locked("x")
    assert store.at_work() == []


@pytest.mark.skipif(os.name != "posix", reason="locks are seen through flock")
def test_looking_at_a_lock_does_not_take_it_away(store):
    with store.lock("x"):
        assert store.is_locked("x")
        assert store.is_locked("x")
    with store.lock("x").acquire(timeout=0):
        pass


def test_what_it_takes_on_disk_is_what_it_took(finished):
    """Nets and masks; a small net's records and headers add some."""
    for cost in costs.of_study(finished.settings, finished.store, "cpu"):
        took = sum(
            path.stat().st_size / 1e6
            for node in finished.nodes(cost.stage)
            for path in (finished.store.root / node.key.path).glob("*.safetensors")
        )
        if finished.plan.stages[cost.stage].keeps:
            assert took * 0.9 < cost.megabytes < took
        else:
            assert cost.megabytes == 0
            assert took < 0.1


def test_a_pace_that_is_given_stands_in_for_one_that_was_measured(finished, tmp_path):
    (paper,) = preset("paper-vgg11-w1-cifar10")
    dense = next(c for c in costs.of_study(paper, Store(tmp_path / "none"), "cpu", 2.5))
    assert dense.seconds_left == 2.5 * dense.epochs_left
    other = finished.settings.with_values(seeds=3)
    measured = costs.of_study(other, finished.store, "cpu")
    assert costs.of_study(other, finished.store, "cpu", 1000.0)[0] == measured[0]
