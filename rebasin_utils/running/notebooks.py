"""The ordered notebooks: found, copied, checked against their parameters, refreshed, exported."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import latex2mathml.converter
import nbformat
import plotly.io
from nbclient import NotebookClient
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from nbformat.reader import NotJSONError
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from rebasin_utils.errors import InputError
from rebasin_utils.files import replace_synced
from rebasin_utils.paths import (
    is_packaged,
    original_notebooks,
    project_notebooks,
    project_root,
)
from rebasin_utils.running import glossary, links
from rebasin_utils.study import presets
from rebasin_utils.study.parts import Epoch, Sparsity
from rebasin_utils.study.settings import changes_in

#: The annotations that a notebook's parameters may have; papermill understands these.
TYPES = {"bool": bool, "int": int, "float": float, "str": str}

#: What a parameter of that name may be; a 0 is "the preset's own".
RANGES = {
    "seeds": Annotated[int, Field(ge=0, le=1000)],
    "width": Annotated[int, Field(ge=0, le=64)],
    "sparsity": Sparsity,
    "rewind_epoch": Epoch,
}

#: The variables of the environment that name folders.
FOLDERS = ("REBASIN_STORE", "REBASIN_DATA")

#: A kernel would warn that this machine's other users could listen, and of being stopped.
QUIET_KERNEL = ("--IPKernelApp.log_level=CRITICAL",)

#: A formula in markdown: $$…$$ or $…$.
FORMULA = re.compile(r"\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.DOTALL)

#: What a figure's title and the line below it take of its upper margin, in pixels.
TITLE_HEIGHT = 55

#: A fluid figure's title, which a slider may change, above it and not in it.
TITLE_ABOVE = """
const plot = document.getElementById('{plot_id}'), title = document.createElement('p');
title.className = 'figure-title';
plot.before(title);
const say = () => { title.innerHTML = plot.layout.title.text; };
plot.on('plotly_afterplot', say);
say();
"""


@dataclass(frozen=True)
class Notebook:
    """One notebook: its file, the question it asks (its title), its papermill parameters.

    parameters: name -> default value; types: name -> annotated type.
    """

    path: Path
    question: str
    parameters: dict[str, Any]
    types: dict[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem


def all_notebooks() -> list[Notebook]:
    """The notebooks of the project, in their order.

    Raises:
        InputError: when a file is not a notebook.
    """
    return [_read(path) for path in project_notebooks()]


def copy(notebooks: Sequence[Notebook], folder: Path) -> list[Path]:
    """Copy notebooks below `folder/notebooks`, to be opened and changed; returns the files.

    Raises:
        InputError: when a file of that name is there and is not the same; nothing is written.
    """
    files = [folder / "notebooks" / notebook.path.name for notebook in notebooks]
    contents = [notebook.path.read_bytes() for notebook in notebooks]
    for file, content in zip(files, contents, strict=True):
        if file.exists() and file.read_bytes() != content:
            raise InputError(f"folder = {folder}: {file} is there and differs; nothing was copied")
    for file, content in zip(files, contents, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            replace_synced(file, content)
    glossary.copy(folder / "notebooks")
    return files


def environment() -> dict[str, str]:
    """Of a kernel: it works in another folder, and relative folders mean what they mean here."""
    folders = {n: folder for n in FOLDERS if (folder := os.environ.get(n))}
    return {**os.environ, **{name: absolute(folder) for name, folder in folders.items()}}


def absolute(folder: str) -> str:
    """A folder that a user has named, wherever it will be looked for."""
    return str(Path(folder).expanduser().absolute())


def working_folder(notebook: Notebook) -> Path:
    """Where its kernel runs: beside it, or in the project if it is the package's own."""
    return project_root() if is_packaged(notebook.path) else notebook.path.parent


def originals() -> list[Notebook]:
    """The notebooks as the checkout or the package has them, whatever was copied and changed."""
    return [_read(path) for path in original_notebooks()]


def find(names: Sequence[str], known: Sequence[Notebook] | None = None) -> list[Notebook]:
    """The notebooks that `names` begin with ("04" is enough), or all for no names.

    Args:
        known: those to choose from; by default the project's.
    """
    known = list(known or all_notebooks())
    chosen = []
    for name in names:
        fits = [n for n in known if n.name.startswith(name)]
        if len(fits) != 1:
            raise InputError(
                f"notebook = {name!r}: choose one of {', '.join(n.name for n in known)}"
            )
        chosen += fits
    return chosen or known


def check_parameters(notebook: Notebook, values: Mapping[str, Any]) -> None:
    """Refuse a parameter that the notebook lacks, or a value of another type than its default's.

    A parameter that stands for a setting must be in the setting's range.

    papermill itself passes misspelt names and the string "true" without a word.
    """
    for name, value in values.items():
        if name not in notebook.parameters:
            raise InputError(
                f"{name} = {value!r}: {notebook.name} has no such parameter; it has "
                f"{', '.join(notebook.parameters) or 'none'}"
            )
        kind = notebook.types[name]
        try:
            TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError:
            expected = getattr(kind, "__name__", None) or str(kind)
            raise InputError(
                f"{name} = {value!r}: {notebook.name} expects {expected}, as in "
                f"{notebook.parameters[name]!r}"
            ) from None
        _check_range(name, value)


def _check_range(name: str, value: Any) -> None:
    if name == "preset":
        presets.preset(value)
    if name == "changes":
        changes_in(value)
    if name not in RANGES:
        return
    try:
        TypeAdapter(RANGES[name]).validate_python(value)
    except ValidationError as error:
        allowed = error.errors()[0]["msg"].replace("Input should be", "must be")
        raise InputError(f"{name} = {value!r}: {allowed}") from None


def refresh(notebook: Notebook) -> None:
    """Execute a notebook with its own parameters and keep the outputs in the file itself.

    So that a plain viewer shows the committed notebooks with their pictures. Nothing that differs
    from one execution to the next, like times, is kept.

    Raises:
        InputError: when the notebook is the package's own.
    """
    if is_packaged(notebook.path):
        raise InputError(
            f"notebook = {notebook.name!r}: it belongs to the installed package and stays as it "
            "is; `rebasin notebooks copy FOLDER` gives you your own, to be refreshed there"
        )
    content = nbformat.read(notebook.path, as_version=4)
    where = {"metadata": {"path": str(working_folder(notebook))}}
    client = NotebookClient(
        content,
        kernel_name="python3",
        resources=where,
        coalesce_streams=True,
        extra_arguments=list(QUIET_KERNEL),
    )
    client.execute(env=environment())
    content.metadata = {k: content.metadata[k] for k in ("kernelspec", "language_info")}
    content.metadata.language_info = {"name": "python"}
    for cell in content.cells:
        cell.metadata.pop("execution", None)
    replace_synced(notebook.path, nbformat.writes(content).encode() + b"\n")


def export_html(notebook: NotebookNode, title: str) -> str:
    """The notebook as a page that works without a network, its plotly figures alive.

    The page needs `plotly.min.js` beside it, and links to `glossary.html`.
    """
    for cell in offline(notebook).cells:
        if cell.cell_type == "markdown":
            cell.source = links.to_pages(cell.source)
    exporter = HTMLExporter(mathjax_url="", exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.require_js_url = (
        "plotly.min.js"  # plotly in place of require.js, which it conflicts with
    )
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    return body


def offline(notebook: NotebookNode, fluid: bool = False) -> NotebookNode:
    """The same notebook, its formulas and figures such that a page of it needs no network.

    Formulas become MathML, and figures HTML that needs plotly's script in the page; fluid ones are
    as wide as the page, and their titles, which plotly would cut off, are text above them.
    """
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FORMULA.sub(_mathml, cell.source)
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).pop("application/vnd.plotly.v1+json", None)
            if figure is not None:
                output.data = {"text/html": _figure_html(figure, fluid)}
    return notebook


def _mathml(formula: re.Match) -> str:
    """A formula as MathML, which browsers draw by themselves."""
    shown = formula["display"] is not None
    return latex2mathml.converter.convert(
        (formula["display"] or formula["inline"]).strip(), display="block" if shown else "inline"
    )


def _figure_html(figure: dict, fluid: bool) -> str:
    layout = figure["layout"]
    if fluid:
        layout = {name: value for name, value in layout.items() if name != "width"}
        top = layout["margin"]["t"] - TITLE_HEIGHT
        layout |= {"margin": layout["margin"] | {"t": top}}
    return plotly.io.to_html(
        {"data": figure["data"], "layout": layout},
        config={"responsive": fluid},
        include_plotlyjs=False,
        full_html=False,
        post_script=TITLE_ABOVE if fluid else None,
        validate=False,
    )


def _read(path: Path) -> Notebook:
    try:
        content = nbformat.read(path, as_version=4)
    except NotJSONError as error:
        raise InputError(f"notebook = {str(path)!r}: is not a notebook") from error
    title = content.cells[0].source.splitlines()[0].lstrip("# ").strip()
    tagged = [c for c in content.cells if "parameters" in c.metadata.get("tags", [])]
    parameters, types = {}, {}
    for statement in ast.parse(tagged[0].source).body if tagged else []:
        name = statement.target.id
        parameters[name] = ast.literal_eval(statement.value)
        types[name] = TYPES[ast.unparse(statement.annotation)]
    return Notebook(path, title, parameters, types)
