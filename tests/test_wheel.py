"""Installed from a wheel, away from the checkout, the command does its work with its notebooks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMOKE = ("-p", "preset", "smoke", "-p", "sparsity", "0.8")


def python(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the installed package; the environment has all that it needs."""
    folder = tmp_path_factory.mktemp("installed")
    built = python("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site))
    done = python(*pip, str(wheel), cwd=folder)
    assert done.returncode == 0, done.stderr
    return site


@pytest.fixture
def rebasin(installed, tmp_path):
    def run(*words: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess:
        words = ("-m", "rebasin_utils.cli", *words)
        return python(*words, cwd=cwd, PYTHONPATH=str(installed), REBASIN_WORKERS="1")

    return run


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_the_notebooks_come_with_it_and_run_where_they_are_copied_to(rebasin, installed, tmp_path):
    before = everything(installed)
    ours = {path.name: path.read_bytes() for path in (ROOT / "notebooks").glob("*.ipynb")}
    copied = rebasin("notebooks", "copy", "class").stdout
    assert f"{len(ours)} notebooks in class/notebooks" in copied
    ours["glossary.md"] = (ROOT / "notebooks" / "glossary.md").read_bytes()
    folder = tmp_path / "class"
    assert {path.name: path.read_bytes() for path in (folder / "notebooks").iterdir()} == ours

    done = rebasin("notebooks", "run", "04", *SMOKE, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["notebooks", "runs"]
    assert sorted(path.name for path in (folder / "runs").iterdir()) == ["notebooks", "store"]
    assert list(tmp_path.iterdir()) == [folder]
    assert everything(installed) == before


def test_without_a_copy_they_run_in_the_working_folder(rebasin, installed, tmp_path):
    before = everything(installed)
    done = rebasin("notebooks", "run", "01", "-p", "pairs", "20")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    refused = rebasin("notebooks", "refresh", "01")
    assert refused.returncode == 2
    assert "it belongs to the installed package" in refused.stderr
    assert everything(installed) == before


def test_a_copy_that_was_changed_is_never_overwritten(rebasin, tmp_path):
    rebasin("notebooks", "copy", ".", "01", "02")
    assert rebasin("notebooks", "copy", ".").returncode == 0  # the same, and those that lack
    changed = tmp_path / "notebooks" / "02-two-nets-one-basin.ipynb"
    changed.write_text("mine")
    refused = rebasin("notebooks", "copy", ".")
    assert refused.returncode == 2
    assert "is there and differs; nothing was copied" in refused.stderr
    assert changed.read_text() == "mine"
