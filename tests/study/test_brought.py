"""Nets that were trained elsewhere are studied as if they had been trained here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rebasin_utils.errors import InputError
from rebasin_utils.nets import checkpoints
from rebasin_utils.running.runner import run
from rebasin_utils.study import exchange
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stages import dense
from rebasin_utils.study.study import Study
from rebasin_utils.training import signs

TRAINED, EARLY = "{role}-{pair}.pt", "{role}-{pair}-after-{epoch}.safetensors"


def patterns(folder: Path, name: str) -> list[str]:
    return [str(folder / name.replace("{role}", role)) for role in ("A", "B")]


@pytest.fixture(scope="module")
def folder(finished: Study, tmp_path_factory) -> Path:
    """The nets of the finished study as a user's files, and its early states."""
    folder = tmp_path_factory.mktemp("nets")
    for node in finished.nodes("dense"):
        name = TRAINED.format(role=node.at["role"], pair=node.seed)
        torch.save(finished.state(node), folder / name)
    for node in finished.nodes("rewind"):
        name = EARLY.format(role=node.at["role"], pair=node.seed, epoch=node.at["epoch"])
        tensors, kind = exchange.part_of(finished.store, node.key.path)
        checkpoints.write(folder / name, tensors, kind)
    return folder


@pytest.fixture(scope="module")
def settings(tiny: Settings, folder: Path) -> Settings:
    return tiny.with_values(
        name="brought",
        **{"dense.from": patterns(folder, TRAINED), "dense.early": patterns(folder, EARLY)},
    )


def test_a_study_of_files_gives_what_the_study_gave_that_trained_them(finished, settings, tmp_path):
    study = Study(settings, tmp_path / "store")
    run(study, workers=1, quiet=True)
    assert study.missing() == []
    assert all(node.epochs == 0 for node in study.nodes("dense") + study.nodes("rewind"))
    same = ["method", "net", "sparsity", "rewind_epoch", "seed", "test_accuracy", "test_loss"]
    ours, theirs = study.results()[same], finished.results()[same]
    assert len(ours) > 20
    assert ours.equals(theirs)
    for mine, other in zip(study.nodes("matching"), finished.nodes("matching"), strict=True):
        first, second = study.tensors(mine), finished.tensors(other)
        assert all(torch.equal(first[group], second[group]) for group in second)


def test_two_checkpoints_are_matched_and_merged_without_any_training(
    tiny, folder, tmp_path, capsys
):
    """The README's line: two files, no early states, no sparse runs."""
    one = tiny.with_values(
        name="two-files",
        seeds=1,
        sparse={},
        closer_look={},
        **{
            "dense.from": [str(folder / "A-0.pt"), str(folder / "B-0.pt")],
            "imp.prune_b": False,
        },
    )
    study = Study(one, tmp_path / "store")
    assert sum(node.epochs for node in study.plan.all_nodes()) == 0
    run(study, workers=1, quiet=True)
    assert {node.stage for node in study.plan.all_nodes()} == {"dense", "matching", "connectivity"}


def test_the_content_makes_the_key_and_the_path_does_not(settings, folder, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    changes = {"dense.from": patterns(moved, TRAINED), "dense.early": patterns(moved, EARLY)}
    there = settings.with_values(**changes)
    assert dense.net(there, "A", 0) == dense.net(settings, "A", 0)
    state = torch.load(moved / "A-0.pt", weights_only=True)
    name = next(iter(state))
    torch.save({**state, name: state[name] + 1}, moved / "A-1.pt")
    assert dense.net(there, "A", 1) != dense.net(settings, "A", 1)
    assert dense.net(there, "B", 1) == dense.net(settings, "B", 1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dense.from": ["A.pt", "A.pt"]}, "A and B must be two nets"),
        ({"dense.from": ["A.pt", "B.pt"]}, "write {pair} where the number of the pair stands"),
        ({"dense.from": ["gone-{pair}.pt", "lost-{pair}.pt"]}, "cannot be read"),
        ({"dense.early": None}, "dense.early is not given"),
        ({"dense.from": None}, "dense.early = "),
        ({"dense.early": ["A-{pair}.pt", "B-{pair}.pt"]}, "write {epoch} where the number stands"),
        ({"dense.from": ["A.pt"]}, "dense.from"),
    ],
)
def test_files_that_cannot_be_meant_are_refused(settings, tmp_path, changes, sentence):
    with pytest.raises(InputError) as raised:
        Study(settings.with_values(**changes), tmp_path).plan.all_nodes()
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("which", ["of another net", "pickled"])
def test_a_bad_checkpoint_is_refused_before_any_work(settings, folder, tmp_path, which):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save({"w": torch.ones(2)} if which == "of another net" else Path, tmp_path / "B-1.pt")
    changes = {"dense.from": patterns(tmp_path, TRAINED), "dense.early": patterns(folder, EARLY)}
    study = Study(settings.with_values(**changes), tmp_path / "store")
    with pytest.raises(InputError, match=r"B-1\.pt") as raised:
        run(study, workers=1, quiet=True)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("record.json"))


def test_what_is_taken_away_is_what_is_stored(finished, tmp_path):
    ticket = next(n for n in finished.nodes("imp") if n.at["sparsity"] == 0.5)
    taken = {}
    for part in ("net", "mask", "signs"):
        tensors, kind = exchange.part_of(finished.store, ticket.key.path, part)
        checkpoints.write(tmp_path / f"{part}.safetensors", tensors, kind)
        taken[part] = load_file(tmp_path / f"{part}.safetensors")
    assert all(torch.equal(taken["net"][n], t) for n, t in finished.state(ticket).items())
    mask = finished.state(ticket, "mask")
    assert all(torch.equal(taken["mask"][n], kept) for n, kept in mask.items())
    assert all(torch.equal(t, mask[n]) for n, t in signs.mask_of(taken["signs"]).items())
    matched = finished.nodes("matching")[0]
    found, kind = exchange.part_of(finished.store, matched.key.path)
    assert kind == "permutation"
    assert found.keys() == finished.spec.groups.keys()


@pytest.mark.parametrize(
    ("stage", "part", "sentence"),
    [
        ("connectivity", None, "it holds a record and no tensors"),
        ("dense", "mask", "has net"),
        ("matching", "signs", "has permutation"),
    ],
)
def test_what_an_artifact_does_not_have_is_said(finished, stage, part, sentence):
    with pytest.raises(InputError, match=sentence):
        exchange.part_of(finished.store, finished.nodes(stage)[0].key.path, part)


@pytest.mark.parametrize("path", ["dense", "dense/none", "a/b/c-1", "dense/none-0"])
def test_what_is_no_artifact_is_said(finished, path):
    with pytest.raises(InputError, match="artifact = "):
        exchange.part_of(finished.store, path)
