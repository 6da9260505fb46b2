"""Notebooks in a batch: combinations, what is cached, what failed, and what is told."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from rebasin_utils.errors import InputError, RunError
from rebasin_utils.running import batch, notebooks

CELLS = """
width: int = 2  # a number
fail_at: int = 0  # raise for this width
---
from pathlib import Path
log = Path({log!r})
log.write_text(log.read_text() + f"{{width}} " if log.is_file() else f"{{width}} ")
---
if width == fail_at:
    raise KeyError("in the middle")
print("reached the end")
"""


def written(path: Path, question: str, *cells) -> notebooks.Notebook:
    cells = [nbformat.v4.new_markdown_cell(f"# {question}"), *cells]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return notebooks._read(path)


@pytest.fixture
def notebook(tmp_path: Path) -> notebooks.Notebook:
    """One that notes its executions in a file."""
    first, *others = CELLS.format(log=str(tmp_path / "log")).split("---\n")
    tags = {"metadata": {"tags": ["parameters"]}}
    cells = [nbformat.v4.new_code_cell(first.strip(), **tags)]
    cells += [nbformat.v4.new_code_cell(source) for source in others]
    return written(tmp_path / "77-small.ipynb", "How often am I executed?", *cells)


def executed(notebook: notebooks.Notebook) -> list[str]:
    return sorted((notebook.path.parent / "log").read_text().split())


def states(table) -> dict[str, str]:
    return dict(zip(table["parameters"], table["state"], strict=True))


@pytest.mark.parametrize("name", ["REBASIN_STORE", "REBASIN_DATA"])
def test_a_relative_folder_means_the_same_in_a_kernel(name, tmp_path, monkeypatch):
    """Kernels of notebooks that are not in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "mine")
    (tmp_path / "notebooks").mkdir()
    source = f"import os\nfrom pathlib import Path\nprint(Path(os.environ[{name!r}]).absolute())"
    path, cell = tmp_path / "notebooks" / "78-where.ipynb", nbformat.v4.new_code_cell(source)
    notebook = written(path, "Where?", cell)
    notebooks.refresh(notebook)
    batch.refuse_failures(batch.run_batch(batch.executions([notebook], {}), tmp_path), tmp_path)
    for file in (path, tmp_path / path.name):
        (output,) = nbformat.read(file, as_version=4).cells[1].outputs
        assert output.text.strip() == str(tmp_path / "mine")


def test_a_relative_store_is_that_of_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, meant in (("mine", str(tmp_path / "mine")), ("", "")):
        (execution,) = batch.executions(notebooks.find(["04"]), {"store": given})
        assert execution.values["store"] == meant


def test_a_grid_is_every_combination_of_its_values(notebook):
    chosen = batch.executions([notebook], {}, {"width": [1, 3], "fail_at": [0, 7]})
    assert [e.values for e in chosen] == [
        {"width": w, "fail_at": f} for w in (1, 3) for f in (0, 7)
    ]
    assert len({e.name for e in chosen}) == 4


def test_a_page_is_called_by_what_is_set_otherwise_than_in_the_notebook(notebook):
    def names(values, grid=None):
        return [e.name for e in batch.executions([notebook], values, grid)]

    own = notebook.parameters["width"]
    assert names({"width": own}) == ["77-small"]
    assert names({}, {"width": [own, 5], "fail_at": [7]}) == [
        "77-small-fail_at7", "77-small-fail_at7-width5",
    ]  # fmt: skip
    wild = dataclasses.replace(notebook, parameters={"changes": "", "store": ""})
    called = {batch._name(wild, {"changes": c, "store": "/x"}) for c in ("a b", "a/b", "a" * 200)}
    assert len(called) == 3
    assert all(len(name) < 100 and re.fullmatch(r"[\w.-]+", name) for name in called)


def test_a_batch_executes_what_failed_and_nothing_that_was_executed(notebook, tmp_path):
    folder = tmp_path / "pages"
    chosen = batch.executions([notebook], {"fail_at": 3}, {"width": [2, 3]})
    table = batch.run_batch(chosen, folder)
    assert states(table) == {"fail_at=3 width=2": "executed", "fail_at=3 width=3": "failed"}
    with pytest.raises(RunError, match=r"^77-small failed: KeyError: 'in the middle'; see .*html$"):
        batch.refuse_failures(table, folder)
    for page in table["page"]:
        assert (folder / page).is_file()  # of the failed one, too: it shows where
    assert "KeyError: " in (folder / "index.html").read_text()

    table = batch.run_batch(chosen, folder, at_once=1)
    assert states(table) == {"fail_at=3 width=2": "cached", "fail_at=3 width=3": "failed"}
    assert executed(notebook) == ["2", "3", "3"]
    assert not list(folder.glob(".running-*"))


def test_what_was_executed_is_executed_again_when_it_would_be_another(
    notebook, tmp_path, monkeypatch
):
    folder = tmp_path / "pages"
    (execution,) = batch.executions([notebook], {})
    assert not batch._is_there(execution, folder)
    batch.run_batch([execution], folder)
    assert batch._is_there(execution, folder)
    (other,) = batch.executions([notebook], {"width": 9})
    assert not batch._is_there(other, folder)
    with monkeypatch.context() as patch:
        patch.setattr(batch, "_code", lambda: "another version")
        assert not batch._is_there(execution, folder)
    content = nbformat.read(notebook.path, as_version=4)
    content.cells[-1].outputs = []  # what is not a cell's source changes nothing
    nbformat.write(content, notebook.path)
    assert batch._is_there(execution, folder)
    content.cells[0].source += " Really?"
    nbformat.write(content, notebook.path)
    assert not batch._is_there(execution, folder)


TELLS = """
import os
import re
from pathlib import Path
with Path({log!r}).open("a") as log:
    log.write("/".join(os.environ.get(name, "none") for name in {shares}) + " ")
"""


@pytest.mark.parametrize(("variable", "at_once"), [(None, 1), (None, 2), ("7", 2)])
def test_kernels_share_the_cores_and_this_process_keeps_its_environment(
    notebook, tmp_path, monkeypatch, variable, at_once
):
    for name in batch.SHARES:
        if variable is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, variable)
    monkeypatch.setattr(batch, "cores", lambda: 6)
    content = nbformat.read(notebook.path, as_version=4)
    content.cells[2].source = TELLS.format(log=str(tmp_path / "log"), shares=batch.SHARES)
    nbformat.write(content, notebook.path)
    before, during, execute = dict(os.environ), [], batch.papermill.execute_notebook

    def noted(*arguments, **options):
        during.append(dict(os.environ))
        execute(*arguments, **options)
        during.append(dict(os.environ))

    monkeypatch.setattr(batch.papermill, "execute_notebook", noted)
    chosen = batch.executions([notebook], {}, {"width": [2, 3]})
    table = batch.run_batch(chosen, tmp_path / "pages", at_once=at_once)
    assert set(table["state"]) == {"executed"}
    share = variable or str(6 // at_once)
    assert executed(notebook) == [f"{share}/{share}"] * 2
    assert during == [before] * 4
    assert dict(os.environ) == before


def test_what_was_executed_on_results_that_are_gone_is_executed_again(smoked, tmp_path):
    (notebook,) = notebooks.find(["07"])
    store = shutil.copytree(smoked.store.root, tmp_path / "store")
    (execution,) = batch.executions([notebook], {"preset": "smoke", "store": str(store)})
    pages, digest = tmp_path / "pages", execution.digest
    pages.mkdir()
    (pages / f"{execution.name}.html").write_text("page")
    copy = {"metadata": {"rebasin": {"digest": digest}}}
    (pages / f"{execution.name}.ipynb").write_text(json.dumps(copy))
    assert batch._is_there(execution, pages)
    shutil.rmtree(store / smoked.node("plane", seed=0).key.path)
    assert not batch._is_there(execution, pages)
    shutil.rmtree(store)
    assert not batch._is_there(execution, pages)
    assert execution.digest == digest
    assert not store.exists()


@pytest.mark.parametrize("damage", ["", "{", '{"metadata": {}}'])
def test_a_damaged_copy_is_not_taken_for_an_execution(notebook, tmp_path, damage):
    (execution,) = batch.executions([notebook], {})
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "77-small.html").write_text("page")
    (folder / "77-small.ipynb").write_text(damage)
    assert not batch._is_there(execution, folder)


@pytest.mark.parametrize(
    ("values", "grid", "sentence"),
    [
        ({"widht": 1}, {}, "widht = 1: 77-small has no such parameter; it has width, fail_at"),
        ({}, {"widht": [1]}, "widht = "),
        ({"width": "1"}, {}, "width = '1': 77-small expects int, as in 2"),
        ({"width": 99}, {}, "width = 99: must be less than or equal to 64"),
        ({}, {"width": [1, -1]}, "width = -1: must be greater than or equal to 0"),
        ({"width": 1}, {"width": [1]}, "width: give it one value or a grid, not both"),
    ],
)
def test_what_is_not_allowed_is_refused_before_a_kernel_starts(notebook, values, grid, sentence):
    with pytest.raises(InputError) as raised:
        batch.executions([notebook], values, grid)
    assert str(raised.value).startswith(sentence)
