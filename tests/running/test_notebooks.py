"""The notebooks as committed, and how they are run."""

import ast
import html
import json
import re
from pathlib import Path

import nbformat
import pytest

from rebasin_utils.errors import InputError
from rebasin_utils.running import batch, links, notebooks
from rebasin_utils.study import presets
from rebasin_utils.study.settings import assignments
from rebasin_utils.study.study import Study

ALL = notebooks.all_notebooks()


def cells(notebook: notebooks.Notebook, kind: str) -> list:
    content = nbformat.read(notebook.path, as_version=4)
    return [cell for cell in content.cells if cell.cell_type == kind]


@pytest.fixture(params=ALL, ids=lambda n: n.name)
def notebook(request: pytest.FixtureRequest) -> notebooks.Notebook:
    return request.param


def test_a_notebook_opens_with_its_question(notebook: notebooks.Notebook):
    assert notebook.question.endswith("?")


def test_every_parameter_has_a_type_and_a_help_text(notebook: notebooks.Notebook):
    (tagged,) = [c for c in cells(notebook, "code") if "parameters" in c.metadata.get("tags", [])]
    for line in tagged.source.splitlines():
        assert isinstance(ast.parse(line).body[0], ast.AnnAssign)
        assert "# " in line


def test_a_committed_notebook_is_whole_and_light(notebook: notebooks.Notebook):
    content = json.loads(notebook.path.read_text())
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [o for c in code for o in c["outputs"] if o["output_type"] == "error"]
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in content["metadata"]
    assert notebook.path.stat().st_size < 1_000_000


def test_every_figure_has_a_still_picture_for_plain_viewers(notebook: notebooks.Notebook):
    bundles = [o["data"] for c in cells(notebook, "code") for o in c.outputs if "data" in o]
    figures = [b for b in bundles if "application/vnd.plotly.v1+json" in b]
    assert figures
    assert all("image/png" in bundle for bundle in figures)


def test_no_algorithm_lives_in_a_notebook(notebook: notebooks.Notebook):
    """The mechanism stands there once, in plain lines; what is used again is in the package."""
    for cell in cells(notebook, "code"):
        assert len(cell.source.splitlines()) <= 26
        for function in ast.walk(ast.parse(cell.source)):
            if isinstance(function, ast.FunctionDef):
                assert function.end_lineno - function.lineno < 12


def test_links_between_notebooks_lead_somewhere(notebook: notebooks.Notebook):
    for cell in cells(notebook, "markdown"):
        for target in links.NOTEBOOK.findall(cell.source):
            assert (notebook.path.parent / f"{target}.ipynb").is_file()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparsty", 0.9),
        ("sparsity", "true"),
        ("sparsity", 1.0),
        ("seeds", 2.5),
        ("seeds", -1),
        ("seeds", 1001),
        ("seeds", None),
        ("width", -1),
        ("width", 65),
        ("changes", 5),
        ("changes", "dense.lr"),
        ("store", None),
        ("preset", 3),
        ("preset", "pokcet"),
        ("device", True),
    ],
)
def test_a_wrong_parameter_is_refused_before_a_kernel_starts(name: str, value: object):
    (notebook,) = notebooks.find(["04"])
    with pytest.raises(InputError, match="dense.lr" if value == "dense.lr" else name):
        notebooks.check_parameters(notebook, {name: value})


def test_zero_and_nothing_are_the_presets_own(notebook: notebooks.Notebook):
    own = {"seeds": 0, "width": 0, "changes": "", "store": "", "device": "auto"}
    there = {name: value for name, value in own.items() if name in notebook.parameters}
    assert {name: notebook.parameters[name] for name in there} == there
    notebooks.check_parameters(notebook, there)
    notebooks.check_parameters(notebook, notebook.parameters)


def test_a_notebook_shows_studies_and_says_what_it_takes(notebook: notebooks.Notebook):
    assert set(notebook.types.values()) <= {bool, int, float, str}
    if "preset" in notebook.parameters:
        assert {"seeds", "changes", "store", "device"} <= set(notebook.parameters)


def test_notebooks_run_at_the_smoke_preset_and_become_pages(tmp_path: Path):
    values = {"store": str(tmp_path / "store"), "sparsity": 0.8}
    others = {
        "05": {"preset": "smoke-widths", "sparsity": 0.5, "rewind_epoch": 1},
        "11": {"preset": "smoke-signs"},
        "12": {"preset": "smoke-signs"},
        "13": {"preset": "smoke-reuse"},
    }
    executions = []
    at_a_preset = [notebook for notebook in ALL if "preset" in notebook.parameters]
    for notebook in at_a_preset:
        own = others.get(notebook.name[:2], {"preset": "smoke"})
        taken = {n: v for n, v in (values | own).items() if n in notebook.parameters}
        executions += batch.executions([notebook], taken)
    table = batch.run_batch(sorted(executions, key=lambda e: e.name), tmp_path / "pages")
    assert list(table["problem"]) == [""] * len(at_a_preset)
    for page in table["page"]:
        text = (tmp_path / "pages" / page).read_text()
        assert "Plotly.newPlot" in text
        assert "require.min.js" not in text
        assert not re.findall(r"<(?:script|link)[^>]+(?:src|href)=.https?:", text)
    index = (tmp_path / "pages" / "index.html").read_text()
    assert all(f'href="{page}"' in index for page in table["page"])
    assert all(html.escape(notebook.question) in index for notebook in at_a_preset)


def test_other_settings_reach_the_study_of_a_notebook(tmp_path: Path):
    (notebook,) = notebooks.find(["02"])
    values = {"preset": "smoke", "store": str(tmp_path / "store"), "seeds": 1}
    values["changes"] = "data.train_limit=128 dense.batch_size=64 imp.batch_size=64"
    table = batch.run_batch(batch.executions([notebook], values), tmp_path / "pages")
    batch.refuse_failures(table, tmp_path / "pages")
    (changed,) = presets.changed("smoke", {"seeds": 1} | assignments(values["changes"].split()))
    study = Study(changed, tmp_path / "store")
    assert not study.missing(["dense", "matching", "connectivity"])


def test_a_failing_notebook_is_named_and_leaves_its_page(tmp_path: Path):
    (notebook,) = notebooks.find(["04"])
    values = {"preset": "smoke", "store": str(tmp_path / "store"), "sparsity": 0.42}
    table = batch.run_batch(batch.executions([notebook], values), tmp_path / "pages")
    sentence = r"04-naive-permuted-lth failed: InputError: sparsity = "
    with pytest.raises(InputError, match=sentence):
        batch.refuse_failures(table, tmp_path / "pages")
    (page,) = table["page"]
    assert "sparsity = " in (tmp_path / "pages" / page).read_text()


def test_a_formula_of_its_own_line_stays_on_one():
    cell = nbformat.v4.new_markdown_cell("$$a$$ and $b$")
    made = notebooks.offline(nbformat.v4.new_notebook(cells=[cell])).cells[0].source
    assert re.findall(r'display="(\w+)"', made) == ["block", "inline"]
    assert 'xmlns="http://www.w3.org/1998/Math/MathML"' in made
