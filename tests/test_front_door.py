"""The package's front door: library names without the study, and old names that say where to go."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import rebasin_utils
from rebasin_utils.moved import PLACES

#: What a library user imports from the package itself.
NAMES = (
    "Aligned", "Matching", "Permutation", "PermutationSpec", "align", "barrier", "compose",
    "identity", "invert", "lerp", "match_activations", "match_weights", "permute",
    "random_permutation", "repair", "reset_batch_norm",
)  # fmt: skip

#: The modules that the package had before its wings, but for those whose names are still there.
OLD = (
    "activations", "analyses", "assignment", "batch", "cli_notebooks", "cli_options", "cli_store",
    "cluster", "costs", "dag", "data", "devices", "diversity", "embedded", "figures", "gallery",
    "graphs", "interpolation", "inventory", "lab", "maps", "masks", "matching", "models", "moments",
    "notebooks", "permutation", "plan", "plane", "presets", "progress", "pruning", "repair", "rows",
    "runner", "settings", "stacking", "still", "store", "style", "tables", "toy", "toy_figures",
    "toy_rewind", "toy_widget", "toy_widths", "trace_capture", "trace_groups", "trace_layers",
    "trace_moves", "trace_rules", "trace_values", "trace_walk", "tracing", "verdicts",
    "weight_matching",
)  # fmt: skip


def python(code: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, rebasin_utils; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    loaded = set(python(code).stdout.split())
    assert "rebasin_utils" in loaded
    assert not {"torch", "numpy", "pandas", "scipy", "pydantic", "plotly"} & loaded


def test_torchvision_waits_until_its_networks_or_pictures_are_needed():
    """Every command, worker and rank would wait for it."""
    code = "import sys, rebasin_utils.running.runner; print('torchvision' in sys.modules)"
    assert python(code).stdout.strip() == "False"


@pytest.mark.parametrize("name", NAMES)
def test_a_library_name_is_handed_on(name: str):
    thing = getattr(rebasin_utils, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert thing.__module__.startswith("rebasin_utils.")
        assert thing is getattr(importlib.import_module(thing.__module__), name)
        assert thing.__doc__


def test_the_names_are_listed():
    assert sorted(rebasin_utils.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(rebasin_utils))
    starred: dict = {}
    exec("from rebasin_utils import *", starred)
    assert set(NAMES) <= set(starred)


def test_a_library_name_is_imported_before_any_submodule():
    code = "from rebasin_utils import align, PermutationSpec, permute; print(align.__module__)"
    assert python(code).stdout.strip() == "rebasin_utils.symmetry.align"


def test_an_unknown_name_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="has no attribute 'realign'"):
        rebasin_utils.realign  # noqa: B018 (to ask for it is the test)
    with pytest.raises(ImportError, match="cannot import name 'realign'"):
        exec("from rebasin_utils import realign")
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'rebasin_utils\.realign'"):
        importlib.import_module("rebasin_utils.realign")
    assert find_spec("rebasin_utils.realign") is None
    assert not hasattr(rebasin_utils, "realign")


@pytest.mark.parametrize("old", sorted({*OLD, *PLACES} - {*NAMES}))
def test_an_old_module_says_where_it_is_now(old: str):
    sentence = f"rebasin_utils.{old} has moved: it is now rebasin_utils.{PLACES.get(old)}"
    imports = (
        f"import rebasin_utils.{old}",
        f"from rebasin_utils.{old} import anything",
        f"from rebasin_utils import {old}",
    )
    for statement in imports:
        with pytest.raises(ImportError) as raised:
            exec(statement)
        assert str(raised.value) == sentence
    with pytest.raises(ModuleNotFoundError) as raised:
        importlib.import_module(f"rebasin_utils.{old}.below")
    assert str(raised.value) == sentence


def test_an_old_module_whose_name_is_a_library_name_now_says_so_too():
    for old in {*OLD, *PLACES} & {*NAMES}:
        with pytest.raises(ModuleNotFoundError) as raised:
            importlib.import_module(f"rebasin_utils.{old}")
        assert f"it is now rebasin_utils.{PLACES[old]}" in str(raised.value)


@pytest.mark.parametrize("old", sorted(PLACES))
def test_a_new_place_is_there(old: str):
    for place in PLACES[old].partition(" (")[0].split(" and "):
        assert find_spec(f"rebasin_utils.{place}") is not None


def test_two_nets_are_aligned_from_the_front_door():
    torch.manual_seed(0)
    A, B = (
        torch.nn.Sequential(
            torch.nn.Linear(6, 12), torch.nn.ReLU(), torch.nn.Linear(12, 12), torch.nn.ReLU(),
            torch.nn.Linear(12, 3),
        )
        for _ in range(2)
    )  # fmt: skip
    batches = [torch.randn(32, 6) for _ in range(3)]
    spec = rebasin_utils.PermutationSpec.trace(A, batches[0])
    hidden = rebasin_utils.random_permutation(spec, torch.Generator().manual_seed(0))
    B.load_state_dict(rebasin_utils.permute(spec, hidden, A.state_dict()))
    aligned = rebasin_utils.align(A, B, batches)
    before = A(batches[0])
    for name, tensor in B.state_dict().items():
        assert torch.equal(aligned.state[name], tensor)
    A.load_state_dict(aligned.state)
    assert torch.allclose(A(batches[0]), before, atol=1e-6)
