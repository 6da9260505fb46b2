"""The lesson plans: a notebook's minutes are its words and predictions, and the sums are sums."""

import re

import nbformat
import pytest

from rebasin_utils.paths import project_root
from rebasin_utils.running import notebooks

TEXT = (project_root() / "docs" / "lessons.md").read_text()
ROW = r"^\| \[.+?\]\(\.\./notebooks/(.+?)\.ipynb\) \| (.+) \|$"
PLANS = [re.findall(ROW, plan, re.MULTILINE) for plan in TEXT.split("\n## ")[1:]]
TOTALS = [int(total) for total in re.findall(r"\*\*(\d+)\*\* \|$", TEXT, re.MULTILINE)]


@pytest.mark.parametrize(("plan", "total"), zip(PLANS, TOTALS, strict=True), ids=["one", "three"])
def test_minutes_follow_from_the_notebooks(plan, total):
    everything = 0.0
    for name, row in plan:
        reading, running, predictions, discussed, together = map(float, row.split(" | "))
        (notebook,) = notebooks.find([name])
        cells = nbformat.read(notebook.path, as_version=4).cells
        words = sum(len(c.source.split()) for c in cells if c.cell_type == "markdown")
        guesses = sum(c.cell_type == "code" and c.source.startswith("my_") for c in cells)
        assert reading == round(words / 200), name
        assert predictions == 2 * guesses, name
        assert together == round(reading + running + predictions + discussed), name
        everything += reading + running + predictions + discussed
    assert total == round(everything)
