"""Write the notebooks, set to three pairs of nets, where nbval is to find them.

    python tests/with_three_pairs.py FOLDER

They are what readers open but for that one parameter, set as papermill sets it: the pairs are
trained alike, and three show whether a notebook runs in a third of the time of nine.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from rebasin_utils.running import notebooks


def write(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for notebook in notebooks.originals():
        content = load_notebook_node(str(notebook.path))
        if notebook.parameters.get("preset") == "pocket":
            content = parameterize_notebook(content, {"seeds": 3})
        nbformat.write(content, folder / notebook.path.name)
    shutil.copy(notebook.path.parent / "conftest.py", folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
