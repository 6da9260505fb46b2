"""The package is called rebasin-utils; where it is installed under its old name, that is said."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from rebasin_utils import versions

ROOT = Path(__file__).parents[1]


def installed(folder: Path, name: str, modules: str) -> None:
    """What pip leaves of a distribution of that name."""
    info = folder / f"{name.replace('-', '_')}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n")
    (info / "top_level.txt").write_text(modules)


def asked(folder: Path, code: str) -> subprocess.CompletedProcess:
    """Run code where nothing is installed but what lies in `folder`."""
    package = folder / "rebasin_utils"
    package.mkdir()
    for name in ("__init__", "moved", "versions"):
        shutil.copy(ROOT / "rebasin_utils" / f"{name}.py", package)
    command = [sys.executable, "-S", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


CODE = "from rebasin_utils import versions; print(versions.own_version(), versions.old_name())"


@pytest.mark.parametrize(
    ("name", "modules", "answer"),
    [
        ("rebasin-utils", "rebasin_utils", "0.1.0 False"),
        ("rebasin", "rebasin_utils", "0.1.0 True"),
        ("rebasin", "rebasin", "unknown False"),  # the other project of that name
    ],
)
def test_the_version_is_that_of_this_package_under_either_name(tmp_path, name, modules, answer):
    installed(tmp_path, name, modules)
    done = asked(tmp_path, CODE)
    assert done.stdout.strip() == answer, done.stderr


def test_here_it_has_its_new_name():
    assert versions.own_version() == metadata.version("rebasin-utils")
    assert not versions.old_name()


def test_under_its_old_name_the_command_works_and_says_so(monkeypatch, capsys):
    from rebasin_utils import cli
    from rebasin_utils.cli import command

    called = []
    monkeypatch.setattr(versions, "old_name", lambda: True)
    monkeypatch.setattr(command, "run_command", lambda: called.append("yes"))
    cli.main()
    assert called == ["yes"]
    assert "now called rebasin-utils" in capsys.readouterr().err
