"""The files that say how the project is installed agree with one another and with the code."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from rebasin_utils import versions

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())


def requirements(*extras: str) -> dict[str, SpecifierSet]:
    lines = PROJECT["dependencies"] + [line for e in extras for line in EXTRAS[e]]
    parsed = map(Requirement, lines)
    return {canonicalize_name(r.name): r.specifier for r in parsed}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def test_the_environment_has_the_projects_name_and_python():
    assert ENVIRONMENT["name"] == PROJECT["name"]
    plain = [d for d in ENVIRONMENT["dependencies"] if isinstance(d, str)]
    named = {Requirement(d).name: Requirement(d).specifier for d in plain}
    assert named["python"] == SpecifierSet(PROJECT["requires-python"])
    assert "pip" in named


def test_the_environment_leaves_every_dependency_to_the_project():
    plain = [d for d in ENVIRONMENT["dependencies"] if isinstance(d, str)]
    assert {Requirement(d).name for d in plain} == {"python", "pip"}
    (pip,) = [d["pip"] for d in ENVIRONMENT["dependencies"] if isinstance(d, dict)]
    (installed,) = [line for line in pip if not line.startswith("-c ")]
    extras = re.fullmatch(r"-e \.(?:\[(.+)\])?", installed).group(1)
    assert set((extras or "").split(",")) <= {*EXTRAS, ""}
    for line in pip:
        if line.startswith("-c "):
            assert (ROOT / line.removeprefix("-c ")).is_file()


def test_every_dependency_is_pinned_within_its_range():
    pins = pinned()
    for name, allowed in requirements(*EXTRAS).items():
        assert name in pins, f"{name} has no line in constraints.txt"
        assert pins[name] in allowed


def third_party_imports(folder: str) -> set[str]:
    """Top-level modules imported anywhere below a folder, without the standard library's."""
    found = set()
    own = {"rebasin_utils", *(p.stem for p in (ROOT / folder).rglob("*.py"))}
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return found - own - set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("folder", "extras"), [("rebasin_utils", ["cluster", "timm"]), ("tests", ["test", "timm"])]
)
def test_whatever_is_imported_is_declared(folder, extras):
    providers = metadata.packages_distributions()
    declared = set(requirements(*extras))
    for module in sorted(third_party_imports(folder)):
        distributions = {canonicalize_name(d) for d in providers.get(module, [module])}
        assert distributions & declared, f"{folder} imports {module}"


def test_the_command_is_where_the_project_says():
    (entry,) = [e for e in metadata.entry_points(group="console_scripts") if e.name == "rebasin"]
    assert entry.value == PROJECT["scripts"]["rebasin"]
    assert callable(entry.load())


def test_the_package_has_the_name_that_is_installed_and_imported():
    assert PROJECT["name"] == "rebasin-utils"
    assert list(PROJECT["scripts"]) == ["rebasin"]
    assert metadata.version("rebasin-utils") == PROJECT["version"] == versions.own_version()


def test_the_licence_and_the_citation_are_there():
    assert PROJECT["license"] == "MIT"
    for name in PROJECT["license-files"]:
        said = "Permission is hereby granted" if not name.endswith(".mnist") else "BY-SA"
        assert said in (ROOT / name).read_text()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"]
    assert citation.get("version", PROJECT["version"]) == PROJECT["version"]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    ("uv", "installer"), [("", ".venv/bin/pip install"), ("/a/uv", "/a/uv pip")]
)
def test_the_makefile_hands_on_what_the_installer_shall_know(tmp_path, uv, installer):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    asked = ["make", "--dry-run", "test", f"UV={uv}", "PIP_ARGS=--index-url https://a.b/cpu"]
    said = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    installs = [line for line in said.replace("\\\n\t", "").splitlines() if " install " in line]
    assert len(installs) == 2
    for line in installs:
        assert line.startswith(installer)
        assert "--index-url https://a.b/cpu -c constraints.txt -e" in line
