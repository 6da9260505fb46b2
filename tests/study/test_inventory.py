"""What lies in a store is listed and verified; nothing is deleted unseen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rebasin_utils.cli.store import app
from rebasin_utils.errors import InputError
from rebasin_utils.study import inventory
from rebasin_utils.study.plan import Plan
from rebasin_utils.study.presets import preset
from rebasin_utils.study.stages import dense
from rebasin_utils.study.store import RECORD, TENSORS, Store
from rebasin_utils.study.study import Study


@pytest.fixture
def copied(finished: Study, tmp_path: Path) -> Study:
    """The finished study with a store of its own, and what crashed runs leave in it."""
    shutil.copytree(finished.store.root, tmp_path / "copy")
    study = Study(finished.settings, tmp_path / "copy")
    (study.store.root / ".writing-abc").mkdir()
    (study.store.root / ".writing-abc" / TENSORS).write_bytes(b"half")
    for node in (study.plan.nodes("sparse")[0], dense.net(study.settings, "A", 9)):
        study.store.checkpoint(node.key).write_bytes(b"progress")
    return study


def rebasin_store(command: str, store: Store, *options: str, answer: str | None = None):
    return CliRunner().invoke(app, [command, "--store", str(store.root), *options], input=answer)


def files(store: Store) -> list[Path]:
    return sorted(path for path in store.root.rglob("*") if ".locks" not in path.parts)


def test_the_list_has_every_artifact_with_its_size_and_time(copied):
    listed = list(inventory.entries(copied.store))
    assert len(listed) == len({entry.path for entry in listed})
    assert sum(e.stage == "sparse" for e in listed) == len(copied.plan.nodes("sparse"))
    assert {entry.study for entry in listed} == {"tiny"}
    one = next(entry for entry in listed if entry.stage == "dense")
    size = sum(p.stat().st_size for p in (copied.store.root / one.path).iterdir())
    assert one.megabytes == size / 1e6
    assert one.seconds > 0
    printed = rebasin_store("list", copied.store).stdout
    assert [line.split()[:3] for line in printed.splitlines()[1:2]] == [["tiny", "dense", "4"]]
    assert len(rebasin_store("list", copied.store, "--all").stdout.splitlines()) == len(listed) + 1


def test_verifying_a_sound_store_finds_nothing(copied):
    done = rebasin_store("verify", copied.store)
    assert done.exit_code == 0
    assert done.stdout.strip().endswith("artifacts checked, 0 damaged")


def test_verifying_names_what_is_damaged_and_moves_nothing(copied):
    flipped, cut = copied.plan.nodes("imp")[:2]
    tensors = copied.store.root / flipped.key.path / TENSORS
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    (copied.store.root / cut.key.path / RECORD).write_text("{")
    before = files(copied.store)
    done = rebasin_store("verify", copied.store)
    assert done.exit_code == 1
    assert f"damaged: {flipped.key.path}: the checksum of its tensors" in done.stdout
    assert f"damaged: {cut.key.path}: its record cannot be read" in done.stdout
    assert "2 damaged" in done.stdout
    assert files(copied.store) == before


def test_nothing_is_deleted_without_a_yes(copied):
    before = files(copied.store)
    for answer in ("n\n", "\n", ""):
        done = rebasin_store("prune", copied.store, answer=answer)
        assert ".writing-abc" in done.stdout
        assert files(copied.store) == before


@pytest.mark.parametrize(("options", "answer"), [(["--yes"], None), ([], "y\n")])
def test_pruning_takes_what_crashes_left_and_no_result(copied, options, answer):
    artifacts = list(inventory.entries(copied.store))
    (unfinished,) = [
        p for p in (copied.store.root / ".checkpoints").iterdir()
        if p.stem != f"sparse-{copied.plan.nodes('sparse')[0].key.digest}"
    ]  # fmt: skip
    done = rebasin_store("prune", copied.store, *options, answer=answer)
    assert "2 deleted" in done.stdout
    assert list(inventory.entries(copied.store)) == artifacts
    assert inventory.leftovers(copied.store) == []
    assert unfinished.is_file()  # somebody may go on from there
    assert "nothing to delete" in rebasin_store("prune", copied.store).stdout


def test_pruning_keeps_what_the_named_studies_need(copied):
    more = copied.settings.with_values(**{"sparse.sparsities": (0.5, 0.9)})
    assert inventory.unneeded(copied.store, [more, *preset("smoke")]) == []
    less = copied.settings.with_values(**{"sparse.methods": ("naive",)})
    doomed = inventory.unneeded(copied.store, [less])
    every, needed = (
        {node.key.path for node in plan.all_nodes()} for plan in (copied.plan, Plan(less))
    )
    assert {str(path.relative_to(copied.store.root)) for path in doomed} == every - needed != set()
    inventory.remove(copied.store, doomed)
    assert Study(less, copied.store).missing() == []
    assert len(copied.missing()) == len(doomed)


def test_nothing_is_deleted_while_a_run_is_at_work(copied):
    before = files(copied.store)
    with copied.store.lock("x"), pytest.raises(InputError, match="a run is at work on it"):
        inventory.remove(copied.store, inventory.leftovers(copied.store))
    assert files(copied.store) == before


@pytest.mark.parametrize("command", ["list", "verify", "prune"])
def test_a_store_that_is_not_there_is_not_made(tmp_path, command):
    done = rebasin_store(command, Store(tmp_path / "no"))
    assert isinstance(done.exception, InputError)
    assert "there is no such folder" in str(done.exception)
    assert not (tmp_path / "no").exists()
