"""Write the notebooks, set to smaller studies, where nbval is to find them.

    python tests/lighter_notebooks.py FOLDER SETTING=VALUE …

They are what readers open but for the parameter `changes`, set as papermill sets it: fewer pairs,
which are trained for fewer epochs, show as well whether a notebook runs.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from rebasin_utils.running import notebooks


def write(folder: Path, changes: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for notebook in notebooks.originals():
        content = load_notebook_node(str(notebook.path))
        if notebook.parameters.get("preset") == "pocket":
            content = parameterize_notebook(content, {"changes": changes})
        nbformat.write(content, folder / notebook.path.name)
    shutil.copy(notebook.path.parent / "conftest.py", folder)


if __name__ == "__main__":
    write(Path(sys.argv[1]), " ".join(sys.argv[2:]))
