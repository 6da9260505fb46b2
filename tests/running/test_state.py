"""One look at a study says what is here, what ships and what is missing, and adds up."""

from __future__ import annotations

import pytest

from rebasin_utils.running import state
from rebasin_utils.running.runner import run
from rebasin_utils.study import shelf
from rebasin_utils.study.store import Store
from rebasin_utils.study.study import Study


def test_of_a_finished_study_all_is_here(finished: Study):
    (row,) = state.state(finished).to_dict("records")
    assert row["here"] == row["artifacts"] == len(finished.plan.all_nodes())
    assert (row["running"], row["shipped"], row["missing"], row["epochs missing"]) == (0, 0, 0, 0)
    assert row["time of one worker"] == "0 s"


def test_of_a_part_the_rest_is_missing_and_is_given_a_time(tiny, tmp_path):
    study = Study(tiny, Store(tmp_path / "store"), "cpu")
    (empty,) = state.state(study).to_dict("records")
    assert (empty["here"], empty["missing"]) == (0, empty["artifacts"])
    assert empty["epochs missing"] == sum(node.epochs for node in study.plan.all_nodes())
    assert empty["time of one worker"] == "unknown"
    run(study, stages=["dense"], cluster=None, quiet=True)
    (part,) = state.state(study).to_dict("records")
    assert part["here"] > 0
    assert part["here"] + part["missing"] == part["artifacts"]
    assert part["epochs missing"] < empty["epochs missing"]


def test_what_ships_is_neither_here_nor_missing(finished: Study, tmp_path):
    file = tmp_path / "smoke.json.gz"
    shelf.export(finished.store, "tiny", [finished.settings], file, "rebasin run --preset smoke")
    elsewhere = Study(finished.settings, Store(tmp_path / "none"), "cpu", shelf.read([file]))
    (row,) = state.state(elsewhere).to_dict("records")
    assert (row["here"], row["missing"], row["shipped"]) == (0, 0, row["artifacts"])
    assert not (tmp_path / "none").exists()


def test_what_another_process_computes_is_running(tiny, tmp_path):
    store = Store(tmp_path / "store")
    store.prepare()
    study = Study(tiny, store, "cpu")
    with store.lock(study.plan.all_nodes()[0].key.digest):
        (row,) = state.state(study).to_dict("records")
    assert row["running"] == 1
    assert row["missing"] == row["artifacts"] - 1


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "unknown"), (59.4, "59 s"), (90, "1.5 min"), (7200, "2.0 h")]
)
def test_a_time_has_the_unit_that_suits_it(seconds, said):
    assert state.costs.duration(seconds) == said
