"""An artifact is whole or absent, its key is what it depends on, and damage is noticed."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
from pathlib import Path

import filelock
import pytest
import torch

from rebasin_utils import files
from rebasin_utils.errors import InputError
from rebasin_utils.study import store as store_module
from rebasin_utils.study.store import RECORD, TENSORS, Key, Store

KEY = Key.of("dense", 1, "label", {"lr": 0.1})
#: A forked process starts in no time; it only writes files.
_FORKS = "fork" in multiprocessing.get_all_start_methods()
OTHER_PROCESS = multiprocessing.get_context("fork" if _FORKS else "spawn")


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "final/weight": torch.randn(4, 3, 2, 2, generator=generator),
        "final/channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "final/counter": torch.tensor(7),
        "mask/weight": torch.rand(4, 3, generator=generator) < 0.5,
        "order": torch.randperm(9, generator=generator),
    }


def everything_below(store: Store) -> set[str]:
    return {str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file()}


# -------------------------------------------------------------------------- what goes in comes out


def test_an_artifact_comes_back_as_it_was_put(store):
    expected = tensors()
    assert KEY not in store
    assert store.get(KEY) is None
    store.put(KEY, {"metrics": {"accuracy": 0.5, "none": None}}, expected)
    assert KEY in store
    artifact = store.get(KEY)
    assert artifact.record["metrics"] == {"accuracy": 0.5, "none": None}
    assert store.record(KEY) == artifact.record
    assert store.is_sound(KEY)
    assert artifact.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert artifact.tensors[name].dtype == tensor.dtype
        assert torch.equal(artifact.tensors[name], tensor)


def test_of_the_tensors_those_are_read_that_are_asked_for(store):
    expected = tensors()
    assert store.tensors(KEY) is None
    store.put(KEY, {}, expected)
    assert store.tensors(KEY).keys() == expected.keys()
    final = store.tensors(KEY, "final/")
    assert final.keys() == {"final/weight", "final/channels_last", "final/counter"}
    assert all(torch.equal(final[name], expected[name]) for name in final)
    assert store.tensors(KEY, "nothing/") == {}


def test_an_artifact_is_two_readable_files_in_a_folder_with_a_telling_name(store):
    store.put(KEY, {}, tensors())
    assert everything_below(store) == {
        f"dense/label-{KEY.digest}/{name}" for name in (TENSORS, RECORD)
    }


def test_another_process_sees_what_was_put(store):
    store.put(KEY, {"a": 1}, tensors())
    assert Store(store.root).get(KEY).record["a"] == 1


def test_the_first_write_wins(store):
    store.put(KEY, {"writer": 1}, {"x": torch.ones(3)})
    store.put(KEY, {"writer": 2}, {"x": torch.zeros(3)})
    artifact = store.get(KEY)
    assert artifact.record["writer"] == 1
    assert artifact.tensors["x"].tolist() == [1, 1, 1]
    assert everything_below(store) == {f"{KEY.path}/{name}" for name in (TENSORS, RECORD)}


# -------------------------------------------------------------------------- whole or absent


@pytest.mark.parametrize("calls_before_the_disk_is_full", [0, 1])
def test_nothing_is_left_of_an_artifact_that_could_not_be_written(
    store, monkeypatch, calls_before_the_disk_is_full
):
    left, fsync = [calls_before_the_disk_is_full], os.fsync

    def full_disk(handle):
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        store.put(KEY, {}, tensors())
    monkeypatch.undo()
    assert KEY not in store
    assert store.get(KEY) is None
    assert everything_below(store) == set()
    store.put(KEY, {}, tensors())
    assert store.get(KEY) is not None


def test_a_record_that_is_not_json_leaves_nothing(store):
    with pytest.raises(ValueError, match="JSON"):
        store.put(KEY, {"loss": float("nan")}, tensors())
    assert everything_below(store) == set()


def _die_while_writing(root) -> None:
    def die(path, content):
        path.write_bytes(content[: len(content) // 2])
        os._exit(9)

    store_module.write_synced = die
    Store(root).put(KEY, {}, tensors())


def test_a_process_that_dies_while_writing_leaves_no_artifact(store):
    process = OTHER_PROCESS.Process(target=_die_while_writing, args=(store.root,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert KEY not in store
    assert store.get(KEY) is None
    store.put(KEY, {}, tensors())
    assert store.get(KEY) is not None


def keys(n: int) -> list[Key]:
    return [Key.of("race", 1, "x", {"i": i}) for i in range(n)]


def _put_all(root, writer: int, barrier) -> None:
    store = Store(root)
    for key in keys(30):
        barrier.wait(60)
        store.put(key, {"writer": writer}, {"x": torch.full((50_000,), float(writer))})


def test_two_processes_that_put_the_same_key_at_once_leave_one_whole_artifact(store):
    barrier = OTHER_PROCESS.Barrier(2)
    writers = [
        OTHER_PROCESS.Process(target=_put_all, args=(store.root, writer, barrier))
        for writer in (1, 2)
    ]
    for process in writers:
        process.start()
    for process in writers:
        process.join()
        assert process.exitcode == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for key in keys(30):
            artifact = store.get(key)
            assert set(artifact.tensors["x"].tolist()) == {float(artifact.record["writer"])}
    files = everything_below(store)
    assert files == {f"{key.path}/{name}" for key in keys(30) for name in (TENSORS, RECORD)}


# -------------------------------------------------------------------------- damage


def flip_byte(path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x01
    path.write_bytes(content)


def missing_tensors(folder):
    (folder / TENSORS).unlink()


def missing_record(folder):
    (folder / RECORD).unlink()


def half_a_record(folder):
    text = (folder / RECORD).read_text()
    (folder / RECORD).write_text(text[: len(text) // 2])


def no_utf8(folder):
    (folder / RECORD).write_bytes(b"\xff" + (folder / RECORD).read_bytes())


def another_number(folder):
    text = (folder / RECORD).read_text()
    (folder / RECORD).write_text(text.replace("0.8125", "0.9125"))


DAMAGES = {
    "first byte of the tensors": lambda folder: flip_byte(folder / TENSORS, 0),
    "middle of the tensors": lambda folder: flip_byte(folder / TENSORS, 300),
    "last byte of the tensors": lambda folder: flip_byte(folder / TENSORS, -1),
    "no tensors": missing_tensors,
    "no record": missing_record,
    "half a record": half_a_record,
    "a record that is not UTF-8": no_utf8,
    "another number in the record": another_number,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("read", [Store.get, Store.tensors, Store.is_sound])
def test_a_damaged_artifact_is_set_aside_with_a_warning_and_can_be_put_again(store, damage, read):
    store.put(KEY, {"accuracy": 0.8125}, tensors())
    before = everything_below(store)
    DAMAGES[damage](store.root / KEY.path)
    kept = {(store.root / name).read_bytes() for name in before if (store.root / name).is_file()}
    with pytest.warns(UserWarning, match="damaged.*computed again"):
        assert not read(store, KEY)
    assert KEY not in store
    aside = {p.read_bytes() for p in (store.root / ".damaged").rglob("*") if p.is_file()}
    assert aside == kept  # nothing is deleted
    store.put(KEY, {"accuracy": 0.8125}, tensors())
    assert store.get(KEY).record["accuracy"] == 0.8125


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_does_not_keep_its_place_from_a_whole_one(store, damage):
    store.put(KEY, {"accuracy": 0.8125}, tensors())
    DAMAGES[damage](store.root / KEY.path)
    with pytest.warns(UserWarning, match="damaged"):
        store.put(KEY, {"accuracy": 0.8125}, tensors())
    assert store.get(KEY).record["accuracy"] == 0.8125


@pytest.mark.parametrize("damage", DAMAGES)
def test_reading_a_record_moves_nothing_and_warns_of_nothing(store, damage):
    store.put(KEY, {"accuracy": 0.8125}, tensors())
    DAMAGES[damage](store.root / KEY.path)
    before = everything_below(store)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record, there = store.record(KEY), KEY in store
    assert there == ("tensors" in damage)  # of which a record knows nothing
    assert (record is not None) == there
    assert everything_below(store) == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_that_cannot_be_set_aside_is_said_and_left_out(store, damage, monkeypatch):
    """As on a disk that cannot be written; `tests/running/test_drills.py` has a real one."""
    store.put(KEY, {"accuracy": 0.8125}, tensors())
    DAMAGES[damage](store.root / KEY.path)
    before = everything_below(store)

    def refuse(self, *arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(Path, "rename", refuse)
    why = r"is damaged \(.*\) and cannot be set aside \(Read-only file system\)"
    for read in (store.get, store.tensors):
        with pytest.warns(UserWarning, match=why):
            assert read(KEY) is None
    monkeypatch.undo()
    assert everything_below(store) == before


def test_tensors_are_summed_up_once_for_as_long_as_their_file_does_not_change(store, monkeypatch):
    store.put(KEY, {}, tensors())
    real, summed = hashlib.file_digest, []

    def counted(file, name):
        summed.append(file.name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for _ in range(3):
        assert store.is_sound(KEY)
        assert store.get(KEY).tensors.keys() == store.tensors(KEY).keys()
    assert len(summed) == 1
    file = store.root / KEY.path / TENSORS
    later = file.stat().st_mtime_ns + 10**9
    os.utime(file, ns=(later, later))
    assert store.is_sound(KEY)
    assert len(summed) == 2
    flip_byte(file, -1)
    os.utime(file, ns=(later, later + 10**9))
    with pytest.warns(UserWarning, match="damaged"):
        assert not store.is_sound(KEY)


# -------------------------------------------------------------------------- keys


PARENT = Key.of("dense", 1, "p", {})


def test_the_label_is_for_the_eye_only():
    first = Key.of("imp", 1, "one", {"lr": 0.1}, (PARENT,))
    second = Key.of("imp", 1, "two", {"lr": 0.1}, (PARENT,))
    assert first.digest == second.digest


@pytest.mark.parametrize(
    "other",
    [
        Key.of("sparse", 1, "one", {"lr": 0.1, "epochs": 2}, (PARENT,)),
        Key.of("imp", 2, "one", {"lr": 0.1, "epochs": 2}, (PARENT,)),
        Key.of("imp", 1, "one", {"lr": 0.1000001, "epochs": 2}, (PARENT,)),
        Key.of("imp", 1, "one", {"lr": 0.1, "epochs": 3}, (PARENT,)),
        Key.of("imp", 1, "one", {"lr": 0.1}, (PARENT,)),
        Key.of("imp", 1, "one", {"lr": 0.1, "epochs": 2, "new": None}, (PARENT,)),
        Key.of("imp", 1, "one", {"lr": 0.1, "epochs": 2}),
        Key.of("imp", 1, "one", {"lr": 0.1, "epochs": 2}, (PARENT, PARENT)),
        Key.of("imp", 1, "one", {"lr": 0.1, "epochs": 2}, (Key.of("dense", 1, "p", {"a": 1}),)),
    ],
)
def test_whatever_an_artifact_depends_on_changes_its_key(other):
    key = Key.of("imp", 1, "one", {"lr": 0.1, "epochs": 2}, (PARENT,))
    assert other.digest != key.digest


def test_the_order_of_settings_does_not_matter_and_that_of_parents_does():
    a, b = Key.of("dense", 1, "a", {"role": "A"}), Key.of("dense", 1, "b", {"role": "B"})
    assert (
        Key.of("m", 1, "", {"x": 1, "y": 2}).digest == Key.of("m", 1, "", {"y": 2, "x": 1}).digest
    )
    assert Key.of("m", 1, "", {}, (a, b)).digest != Key.of("m", 1, "", {}, (b, a)).digest


def test_a_key_outlives_the_process():
    """Pinned: a change of how keys are made would orphan every store there is."""
    key = Key.of("dense", 1, "label", {"lr": 0.1, "snapshots": [0, 1]})
    assert key.digest == "70bc88bc80f1742a"


# -------------------------------------------------------------------------- locks and folders


def _hold(root, held, let_go) -> None:
    with Store(root).lock("x"):
        held.set()
        let_go.wait(60)
        os._exit(1)  # dies with the lock in its hand


def test_a_lock_excludes_other_processes_and_is_freed_when_its_holder_dies(store):
    held, let_go = OTHER_PROCESS.Event(), OTHER_PROCESS.Event()
    process = OTHER_PROCESS.Process(target=_hold, args=(store.root, held, let_go))
    process.start()
    try:
        assert held.wait(60)
        with pytest.raises(filelock.Timeout):
            store.lock("x").acquire(timeout=0)
        with store.lock("another"):
            pass
    finally:
        let_go.set()
        process.join()
    with store.lock("x").acquire(timeout=10):
        pass


def test_looking_at_a_store_makes_nothing(tmp_path):
    """Whether or not it is there."""
    for root in (tmp_path / "not" / "there", tmp_path):
        store = Store(root)
        assert KEY not in store
        assert store.record(KEY) is store.tensors(KEY) is store.get(KEY) is None
        assert not store.is_sound(KEY)
        assert store.failure(KEY) is None
        assert not store.is_locked("x")
        assert store.at_work() == []
        assert store.why_damaged(KEY.path) == "its record is missing"
        assert list(tmp_path.iterdir()) == []


def test_a_store_is_made_when_it_is_prepared(tmp_path):
    store = Store(tmp_path / "a" / "b")
    for _ in range(2):
        store.prepare()
        assert list(store.root.iterdir()) == []
    store.put(KEY, {}, tensors())
    store.prepare()
    assert KEY in store


def test_a_folder_that_cannot_be_written_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        store = Store(root)
        assert KEY not in store
        assert store.get(KEY) is None
        with pytest.raises(InputError) as raised:
            store.prepare()
        assert str(raised.value).startswith(f"store = {root}: cannot be written (")
        assert "--store" in str(raised.value)
        assert "\n" not in str(raised.value)


def test_replacing_a_file_never_shows_half_of_it(tmp_path, monkeypatch):
    path = tmp_path / "progress"
    files.replace_synced(path, b"old")

    def fails(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="No space"):
        files.replace_synced(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    files.replace_synced(path, b"new")
    assert path.read_bytes() == b"new"
