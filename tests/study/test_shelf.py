"""What ships is read where nothing newer is, and never passes for something computed here."""

from __future__ import annotations

import gzip
import json
import shutil

import pandas as pd
import pytest

from rebasin_utils.chapters import gallery
from rebasin_utils.errors import InputError
from rebasin_utils.running.runner import run
from rebasin_utils.study import exchange, inventory, shelf
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.store import RECORD, TENSORS, Store
from rebasin_utils.study.study import Study


@pytest.fixture(scope="module")
def exported(smoked: Study, tmp_path_factory):
    file = tmp_path_factory.mktemp("shelf") / "smoke.json.gz"
    shelf.export(smoked.store, "smoke", [smoked.settings], file, "rebasin run --preset smoke")
    return file


@pytest.fixture
def elsewhere(smoked: Study, exported, tmp_path) -> Study:
    """The study where nothing was computed and its results ship."""
    return Study(smoked.settings, tmp_path / "store", "cpu", shelf.read([exported]))


def test_shipped_results_read_as_those_that_were_computed(smoked: Study, elsewhere: Study):
    here, there = smoked.results(), elsewhere.results()
    assert not here["shipped"].any()
    assert there["shipped"].all()
    pd.testing.assert_frame_equal(here.drop(columns="shipped"), there.drop(columns="shipped"))
    computed, shipped = dict(gallery.verdicts([smoked])), dict(gallery.verdicts([elsewhere]))
    assert list(computed) == list(shipped)
    for heading, table in computed.items():
        pd.testing.assert_frame_equal(table, shipped[heading])
    assert not elsewhere.store.root.exists()


def test_what_ships_is_never_taken_for_computed(elsewhere: Study):
    assert elsewhere.missing() == elsewhere.plan.all_nodes()
    assert elsewhere.unread() == []
    node = elsewhere.node("matching", seed=0)
    with pytest.raises(InputError, match="not computed yet"):
        elsewhere.tensors(node)
    before = len(elsewhere.missing())
    run(elsewhere, stages=["matching"], workers=1, quiet=True)
    assert elsewhere.node("dense", role="A", seed=0).key in elsewhere.store  # the parents, too
    assert len(elsewhere.missing()) < before


def test_a_study_that_can_be_read_is_left_alone_where_that_will_do(elsewhere: Study):
    assert run(elsewhere, workers=1, quiet=True, shipped_will_do=True) == 0
    assert not elsewhere.store.root.exists()


def test_what_the_store_holds_goes_before_what_ships(smoked: Study, exported):
    node = smoked.node("dense", role="A", seed=0)
    books = shelf.read([exported])
    books.records[node.key.digest]["metrics"]["test_accuracy"] = -1.0
    study = Study(smoked.settings, smoked.store, "cpu", books)
    assert study.record(node)["metrics"]["test_accuracy"] > 0
    assert "shipped" not in study.record(node)


def test_a_reader_is_told_what_ships_and_from_where(smoked: Study, elsewhere: Study):
    said = elsewhere.said_of_shipped()
    assert "'rebasin run --preset smoke'" in said
    assert "torch " in said
    assert smoked.said_of_shipped() == ""


def test_a_reader_is_told_of_the_gpu(smoked: Study, exported, tmp_path):
    books = shelf.read([exported])
    for record in books.records.values():
        record |= {"device": "NVIDIA H200", "machine": "a Xeon, 16 cores"}
    said = Study(smoked.settings, Store(tmp_path / "none"), "cpu", books).said_of_shipped()
    assert "on NVIDIA H200, a Xeon, 16 cores, torch " in said


def test_the_same_records_make_the_same_bytes_and_nothing_of_a_net(smoked, exported, tmp_path):
    again = tmp_path / "again.json.gz"
    done = shelf.export(
        smoked.store, "smoke", [smoked.settings], again, "rebasin run --preset smoke"
    )
    assert again.read_bytes() == exported.read_bytes()
    assert (done.held, done.lacking) == (len(smoked.plan.all_nodes()), 0)
    tensors = sum(file.stat().st_size for file in smoked.store.root.rglob(TENSORS))
    assert len(again.read_bytes()) < tensors / 50


def test_two_machines_share_the_pairs_of_a_study(smoked: Study, tmp_path):
    first, second = (Store(tmp_path / name) for name in ("first", "second"))
    for store, wanted in ((first, 0), (second, 1)):
        part = smoked.settings.with_values(seeds=1, first_seed=wanted)
        for node in Study(part, store).plan.all_nodes():
            target = store.root / node.key.path
            if (smoked.store.root / node.key.path).is_dir():
                shutil.copytree(smoked.store.root / node.key.path, target)
    file = tmp_path / "both.json.gz"
    alone = shelf.export(first, "smoke", [smoked.settings], file, "c")
    assert alone.lacking > 0
    both = shelf.export(second, "smoke", [smoked.settings], file, "c")
    assert both.held > alone.held
    study = Study(smoked.settings, tmp_path / "none", "cpu", shelf.read([file]))
    pd.testing.assert_series_equal(
        study.results().query("method == 'naive'")["test_accuracy"].reset_index(drop=True),
        smoked.results().query("method == 'naive'")["test_accuracy"].reset_index(drop=True),
    )


@pytest.mark.parametrize("content", [b"", b"x", gzip.compress(b"{}", mtime=0)])
def test_a_file_that_is_no_shelf_is_refused_in_a_sentence(tmp_path, content):
    file = tmp_path / "odd.json.gz"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"odd.json.gz: no file of results"):
        shelf.read([file])


def test_nothing_is_exported_of_a_study_that_was_not_run(smoked: Study, tmp_path):
    with pytest.raises(InputError, match="holds nothing of the preset smoke"):
        shelf.export(Store(tmp_path), "smoke", [smoked.settings], tmp_path / "s" / "x.json.gz", "c")
    assert not (tmp_path / "s").exists()


SHIPPED = sorted(shelf.FOLDER.glob("*.json.gz"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_whatever_ships_is_whole_and_is_found_by_todays_keys(file):
    about = json.loads(gzip.decompress(file.read_bytes()))
    assert file.name == f"{about['preset']}.json.gz"
    books = shelf.read([file])
    studies = [Study(Settings.of(values), "/nowhere", "cpu", books) for values in about["studies"]]
    assert all(study.unread() == [] for study in studies)
    assert sum(len(study.shipped()) for study in studies) == len(about["records"])
    assert file.stat().st_size < 4e6


# -------------------------------------------------------------------------- stores


def test_an_import_copies_what_is_lacking_and_leaves_the_rest(smoked: Study, tmp_path):
    target = Store(tmp_path / "target")
    copied = list(exchange.take_over(target, smoked.store))
    assert not any(why for _, why in copied)
    assert len(copied) == sum(1 for _ in inventory.entries(smoked.store))
    assert Study(smoked.settings, target).missing() == []
    assert list(inventory.damaged(target)) == []
    assert list(exchange.take_over(target, smoked.store)) == []


def test_an_import_leaves_out_what_is_damaged_there_and_mends_what_is_here(smoked, tmp_path):
    broken, target = Store(tmp_path / "broken"), Store(tmp_path / "target")
    list(exchange.take_over(broken, smoked.store))
    first, second, *_ = (entry.path for entry in inventory.entries(broken))
    (broken.root / first / TENSORS).write_bytes(b"x")
    (broken.root / second / RECORD).unlink()
    told = dict(exchange.take_over(target, broken))
    assert told[first]
    assert told[second]
    assert not (target.root / first).exists()
    (target.root / first).mkdir(parents=True)  # as a copy by hand that was broken off leaves it
    with pytest.warns(UserWarning, match="damaged"):
        again = dict(exchange.take_over(target, smoked.store))
    assert again == {first: "", second: ""}
    assert list(inventory.damaged(target)) == []


def test_an_import_that_is_stopped_leaves_nothing_half(smoked: Study, tmp_path, monkeypatch):
    target, copy = Store(tmp_path / "target"), shutil.copyfile

    def stops(source, goal):
        if source.name == RECORD and len(list(target.root.glob("*/*"))) > 3:
            raise KeyboardInterrupt
        copy(source, goal)

    monkeypatch.setattr(shutil, "copyfile", stops)
    with pytest.raises(KeyboardInterrupt):
        list(exchange.take_over(target, smoked.store))
    assert list(inventory.damaged(target)) == []
    assert inventory.leftovers(target) == []
    monkeypatch.undo()
    list(exchange.take_over(target, smoked.store))
    assert Study(smoked.settings, target).missing() == []


def test_a_comparison_finds_the_net_that_differs(smoked: Study, exported):
    books = shelf.read([exported])
    same = exchange.compared([smoked.settings], books.record, smoked.store.record)
    assert (same["largest"] == 0).all()
    assert same["nets"].sum() >= len(smoked.results())
    node = smoked.node("dense", role="B", seed=1)
    books.records[node.key.digest]["metrics"]["test_accuracy"] += 0.02
    other = exchange.compared([smoked.settings], books.record, smoked.store.record)
    at = other.set_index("stage").loc["dense"]
    assert at["largest"] == pytest.approx(2.0)
    assert at["mean"] == pytest.approx(-2.0 / at["nets"])
