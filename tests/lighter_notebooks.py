"""Write the notebooks, set to smaller studies, where nbval is to find them.

    python tests/lighter_notebooks.py FOLDER --PRESET SETTING=VALUE … --PRESET SETTING=VALUE …

They are what readers open but for the parameter `changes`, set as papermill sets it, where a
notebook shows one of these presets: fewer pairs and images and shorter runs show as well whether a
notebook runs.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from rebasin_utils.running import notebooks


def write(folder: Path, changes: Mapping[str, str]) -> None:
    """changes: by preset."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for notebook in notebooks.originals():
        content = load_notebook_node(str(notebook.path))
        for preset in changes.keys() & set(notebook.parameters.values()):
            content = parameterize_notebook(content, {"changes": changes[preset]})
        nbformat.write(content, folder / notebook.path.name)
    shutil.copy(notebook.path.parent / "conftest.py", folder)


def by_preset(words: Sequence[str]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            found[word[2:]] = mine = []
        else:
            mine.append(word)
    return {preset: " ".join(mine) for preset, mine in found.items()}


if __name__ == "__main__":
    write(Path(sys.argv[1]), by_preset(sys.argv[2:]))
