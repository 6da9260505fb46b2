"""Which verdicts come out otherwise on another machine, whose CPU rounds otherwise.

    make study                                    on the other machine
    python benchmarks/verdicts.py runs/pocket     its notebooks beside the committed ones

Goes through the tables of claims as the notebooks show them, row by row. Rows of what ships and of
the toy have the same numbers everywhere, so they are not counted.
"""

from __future__ import annotations

import argparse
import re
from html import unescape
from pathlib import Path

import nbformat
from report import as_markdown

from rebasin_utils.running import notebooks


def claims(path: Path) -> list[dict[str, str]]:
    """The rows of a notebook's tables of claims, by column."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            page = output.get("data", {}).get("text/html", "")
            if "<th>verdict</th>" in page:
                lines = [_texts(line, "t[hd]") for line in _texts(page, "tr")]
                names, *rows = [[unescape(text) for text in line] for line in lines]
                found += [dict(zip(names, row, strict=True)) for row in rows]
    return found


def _texts(page: str, tag: str) -> list[str]:
    """What stands in the elements of a kind that hold none of their own kind."""
    return re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", page, re.DOTALL)


def outcome(row: dict[str, str]) -> str:
    """The verdict without how many pairs would settle it."""
    return row["verdict"].partition(":")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with executed notebooks, as make study leaves")
    folder = parser.parse_args().folder
    table, rows = [], 0
    for notebook in notebooks.originals():
        for executed in sorted(folder.glob(f"{notebook.name}*.ipynb"))[:1]:
            pairs = list(zip(claims(notebook.path), claims(executed), strict=True))
            rows += sum(ours["ours"] != theirs["ours"] for ours, theirs in pairs)
            table += [
                {
                    "notebook": notebook.name[:2],
                    "claim": ours["claim"],
                    "committed": ours["verdict"],
                    "there": theirs["verdict"],
                }
                for ours, theirs in pairs
                if outcome(ours) != outcome(theirs)
            ]
    if table:
        print(as_markdown(table) + "\n")
    print(f"{len(table)} verdicts differ, of the {rows} rows whose numbers do")


if __name__ == "__main__":
    main()
