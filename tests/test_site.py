"""The site is built without a warning and needs no network: walked in a browser that has none."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from offline import from_the_network, page_without_network
from playwright.sync_api import Page

from rebasin_utils.running import notebooks

ROOT = Path(__file__).parents[1]
NAMES = [notebook.name for notebook in notebooks.all_notebooks()]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "pages"
    command = [sys.executable, str(ROOT / "docs" / "build.py"), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def page(site: Path) -> Iterator[Page]:
    with page_without_network() as page:
        yield page


def test_every_page_is_linked_from_the_first_in_order_and_names_no_folder(site):
    first = (site / "index.html").read_text()
    places = [first.index(f"notebooks/{name}.html") for name in NAMES]
    assert places == sorted(places)
    for file in site.rglob("*.html"):
        text = file.read_text()
        assert str(ROOT) not in text, file
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?:", text), file


def test_solutions_are_folded_away(site):
    text = (site / "notebooks" / "13-mask-on-other-data.html").read_text()
    assert "<details" in text


@pytest.mark.parametrize("name", [*NAMES, "index"])
def test_pages_are_drawn_without_a_network(page: Page, site: Path, name: str):
    page.asked.clear()
    place = site / "index.html" if name == "index" else site / "notebooks" / f"{name}.html"
    page.goto(place.as_uri())
    assert from_the_network(page) == []
    prose = page.evaluate("""() => [...document.querySelectorAll('article p, article li')]
        .filter(e => !e.closest('.cell_output')).map(e => e.innerText).join(' ')""")
    assert not re.search(r"\$[^$\n]*\\\w+[^$\n]*\$", prose)  # no raw formula
    drawn = page.locator(".js-plotly-plot .main-svg").count()
    assert drawn > 0 or name in ("index", "03-drawing-the-ticket", "09-paper-tables")


def test_a_figure_reacts(page: Page, site: Path):
    page.goto((site / "notebooks" / "04-naive-permuted-lth.html").as_uri())
    plot = page.locator(".js-plotly-plot").first
    before = plot.evaluate("p => p.layout.title.text")
    plot.evaluate("p => Plotly.update(p, {}, {}).then(() => p.layout.sliders[0].steps.length)")
    plot.evaluate("""p => Plotly.update(p, ...p.layout.sliders[0].steps[0].args)""")
    assert plot.evaluate("p => p.layout.title.text") != before


def test_every_page_fits_a_phone(page: Page, site: Path):
    page.set_viewport_size({"width": 390, "height": 844})
    for file in [site / "index.html", *site.glob("notebooks/*.html"), *site.glob("docs/*.html")]:
        page.goto(file.as_uri())
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, file.name
