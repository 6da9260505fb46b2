"""Why something would be computed again is told by the settings that changed its key, no others."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rebasin_utils.running import reasons
from rebasin_utils.study.store import TENSORS, Store
from rebasin_utils.study.study import Study


def told(study: Study, **changes) -> dict[str, set[str]]:
    """Stage -> the reasons of its artifacts."""
    found: dict[str, set[str]] = {}
    for stage, count, why in reasons.of_study(study.settings.with_values(**changes), study.store):
        assert count > 0
        found.setdefault(stage, set()).add(why)
    return found


def test_of_a_finished_study_there_is_nothing_to_say(finished):
    assert told(finished) == {}


def test_the_setting_that_changes_a_key_is_named_with_both_values(finished):
    found = told(finished, **{"imp.lr": 0.5, "sparse.sparsities": (0.5, 0.9)})
    was = finished.settings.imp.lr
    here = f"one of this name is there, made with imp.lr = {was} (here 0.5)"
    assert "dense" not in found
    assert "matching" not in found
    assert found["imp"] == {here, "never asked for in this store"}
    assert here in found["sparse"]


def test_several_settings_are_named_together(finished):
    changes = {"dense.lr": 0.5, "matching.objective": "covariance"}
    (why,) = told(finished, **changes)["matching"]
    assert "dense.lr = 0.08 (here 0.5), matching.objective = " in why


def test_an_empty_store_was_never_asked(finished, tmp_path):
    found = reasons.of_study(finished.settings, Store(tmp_path / "none"))
    assert {why for _, _, why in found} == {"never asked for in this store"}
    assert sum(count for _, count, _ in found) == len(finished.plan.all_nodes())


@pytest.fixture
def copied(finished: Study, tmp_path: Path) -> Study:
    return Study(finished.settings, shutil.copytree(finished.store.root, tmp_path / "copy"))


def test_what_failed_or_is_damaged_is_said(copied):
    first, second = copied.nodes("dense")[:2]
    shutil.rmtree(copied.store.root / first.key.path)
    copied.store.put_failure(first.key, "the dog ate it")
    (copied.store.root / second.key.path / "record.json").write_text("{}")
    assert (copied.store.root / second.key.path / TENSORS).is_file()
    assert told(copied)["dense"] == {"failed: the dog ate it", "damaged"}
