"""Content has one fingerprint wherever it lies, and another one as soon as it is edited."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rebasin_utils.errors import InputError
from rebasin_utils.nets import data, fingerprints


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("REBASIN_DATA", str(tmp_path / "root"))
    monkeypatch.setattr(fingerprints, "STILL_SECONDS", 0.0)  # these files are seconds old
    return tmp_path / "root"


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("train/ant/0.png", "train/bee/0.png", "val/ant/0.png", "val/bee/1.png"):
        write(tmp_path / "mine" / name, name)
    return tmp_path / "mine"


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def of(folder: Path) -> str:
    return data.fingerprint(str(folder))


def test_a_copy_elsewhere_has_the_same_fingerprint(folder, tmp_path):
    assert of(shutil.copytree(folder, tmp_path / "copy")) == of(folder)
    shutil.copy(write_npz(tmp_path / "a.npz"), tmp_path / "b.npz")
    assert of(tmp_path / "a.npz") == of(tmp_path / "b.npz")


def write_npz(file: Path) -> Path:
    file.write_bytes(b"not read for its fingerprint")
    return file


def same_size_and_times(folder: Path) -> None:
    """Only the clock of the file system gives this away."""
    file = folder / "train" / "ant" / "0.png"
    before = file.stat()
    file.write_text("TRAIN/ant/0.png")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


@pytest.mark.parametrize(
    "edit",
    [
        same_size_and_times,
        lambda f: (f / "val" / "bee" / "1.png").rename(f / "val" / "bee" / "2.png"),
        lambda f: (f / "val" / "bee" / "1.png").rename(f / "val" / "ant" / "1.png"),
        lambda f: write(f / "test" / "ant" / "0.png", ""),
        lambda f: (f / "val" / "bee" / "1.png").unlink(),
        lambda f: write(f / "val" / "val_annotations.txt", "0.png\tant"),
    ],
)
def test_an_edited_folder_has_another_fingerprint(folder, edit):
    before = of(folder)
    edit(folder)
    assert of(folder) != before


def test_what_is_not_read_of_a_folder_does_not_count(folder):
    before = of(folder)
    write(folder / "README.txt", "where these are from")
    write(folder / "results" / "net.pt", "made from them")
    write(folder / "train" / "ant" / ".DS_Store", "left by a system")
    assert of(folder) == before


def test_a_folder_that_lies_still_is_read_once(folder, monkeypatch):
    before = of(folder)
    monkeypatch.setattr(fingerprints, "_digest", lambda path: pytest.fail("read again"))
    assert of(folder) == before


def test_a_folder_that_was_just_written_is_read_again(folder, monkeypatch):
    monkeypatch.setattr(fingerprints, "STILL_SECONDS", 3600.0)
    of(folder)
    monkeypatch.setattr(fingerprints, "_digest", lambda path: b"read again")
    assert of(folder) == fingerprints.of_bytes(
        *(name.encode() for name in ("train/ant/0.png", "train/bee/0.png")),
        *(name.encode() for name in ("val/ant/0.png", "val/bee/1.png")),
        *[b"read again"] * 4,
    )


def test_a_damaged_note_is_passed_over(folder, root):
    before = of(folder)
    (note,) = (root / "own" / "fingerprints").iterdir()
    for text in ("{", "[]", '{"seen": 1}', "1"):
        note.write_text(text)
        assert of(folder) == before


def test_parts_are_told_apart_by_their_lengths():
    assert fingerprints.of_bytes(b"ab", b"c") != fingerprints.of_bytes(b"a", b"bc")


def test_a_data_set_that_goes_by_a_name_has_none():
    assert data.fingerprint("cifar10") is None


def test_a_file_that_cannot_be_read_is_named(folder):
    (folder / "train" / "ant" / "lost.png").symlink_to(folder / "nowhere")
    with pytest.raises(InputError, match=r"ant/lost.png cannot be read \(No such file"):
        of(folder)
