"""The students' edition of the notebooks: no outputs, predictions to be made, exercises unsolved.

Solutions are the cells with the tag `solution`. A cell that does nothing but name guesses
(`my_guess… = …`) is a prediction.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from rebasin_utils.errors import InputError
from rebasin_utils.files import replace_synced
from rebasin_utils.running import glossary
from rebasin_utils.running.notebooks import Notebook

GUESS = "my_guess"

#: What leads over to a solution, at the end of a cell.
_LEADS_OVER = re.compile(r"\n+A solution to [^\n]*:\s*$")


def write(notebooks: Sequence[Notebook], folder: Path) -> list[Path]:
    """Write the students' edition of notebooks into a folder; returns the files.

    Raises:
        InputError: when one of the files is there already: a student may have worked in it.
    """
    files = [folder / notebook.path.name for notebook in notebooks]
    there = [file for file in files if file.exists()]
    if there:
        raise InputError(
            f"folder = {folder}: {there[0].name} is there already; nothing was written"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for notebook, file in zip(notebooks, files, strict=True):
        content = of_students(nbformat.read(notebook.path, as_version=4))
        replace_synced(file, nbformat.writes(content).encode() + b"\n")
    glossary.copy(folder)
    return files


def of_students(notebook: NotebookNode) -> NotebookNode:
    """A notebook without outputs, solutions and guesses; the one given stays as it is."""
    edition = copy.deepcopy(notebook)
    edition.cells = [c for c in edition.cells if "solution" not in c.metadata.get("tags", [])]
    for cell in edition.cells:
        if cell.cell_type == "markdown":
            cell.source = _LEADS_OVER.sub("", cell.source)
            continue
        cell.outputs, cell.execution_count = [], None
        if names := guesses(cell.source):
            cell.source = "\n".join(f"{name} = ...  # your prediction, a number" for name in names)
    return edition


def guesses(source: str) -> list[str]:
    """The guesses that a cell names, if it does nothing else."""
    names: list[str] = []
    for statement in ast.parse(source).body:
        if not isinstance(statement, ast.Assign):
            return []
        names += [node.id for node in ast.walk(statement.targets[0]) if isinstance(node, ast.Name)]
    return names if names and all(name.startswith(GUESS) for name in names) else []
