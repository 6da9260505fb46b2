"""A talk from a notebook: every cell has its place, and the pages are turned without a network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from command import rebasin
from offline import from_the_network, page_without_network
from playwright.sync_api import Page

from rebasin_utils.errors import InputError
from rebasin_utils.running import editions, notebooks, slides

ALL = notebooks.all_notebooks()
NAMES = [notebook.name for notebook in ALL]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for notebook in ALL:
        slides.write(notebook, folder)
    return folder


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with page_without_network() as page:
        page.set_viewport_size({"width": 1280, "height": 800})
        yield page


def kind(cell: nbformat.NotebookNode) -> str | None:
    return cell.metadata.get("slideshow", {}).get("slide_type")


@pytest.mark.parametrize("notebook", ALL, ids=NAMES)
def test_every_cell_has_its_place_in_the_talk(notebook):
    cells = nbformat.read(notebook.path, as_version=4).cells
    assert kind(cells[0]) == "slide"
    assert {kind(cell) for cell in cells} <= {"slide", "subslide", "-", "skip"}
    for cell in cells:
        tags = cell.metadata.get("tags", [])
        guessed = cell.cell_type == "code" and editions.guesses(cell.source)
        if guessed or {"parameters", "solution"} & set(tags):
            assert kind(cell) == "skip"


@pytest.mark.parametrize("name", NAMES)
def test_slides_are_turned_without_a_network(page: Page, folder: Path, name: str):
    page.asked.clear()
    page.goto((folder / f"{name}.slides.html").as_uri())
    total = page.evaluate("Reveal.getTotalSlides()")
    assert 5 <= total <= 30
    seen = [page.evaluate("Reveal.getIndices()")]
    for _ in range(total - 1):
        page.keyboard.press("Space")
        seen.append(page.evaluate("Reveal.getIndices()"))
    assert page.evaluate("Reveal.isLastSlide()")
    assert len({(at["h"], at["v"]) for at in seen}) == total
    assert from_the_network(page) == []
    assert "$" not in page.evaluate("Reveal.getSlides()[0].textContent")


def test_a_figure_is_alive_and_shown_without_its_code(page: Page, folder: Path):
    page.goto((folder / "04-naive-permuted-lth.slides.html").as_uri())
    plot = page.locator(".js-plotly-plot").first
    before = plot.evaluate("p => p.layout.title.text")
    plot.evaluate("p => Plotly.update(p, ...p.layout.sliders[0].steps[0].args)")
    assert plot.evaluate("p => p.layout.title.text") != before
    assert "accuracy_by_rewind" not in page.content()
    assert "cross_entropy" in page.content()  # the mechanism in plain lines stays


def test_the_command_writes_a_talk(tmp_path):
    done = rebasin("notebooks", "slides", "04", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "04-naive-permuted-lth.slides.html")
    linked = (tmp_path / "04-naive-permuted-lth.slides.html").read_text()
    for part in ("plotly.min.js", "reveal/dist/reveal.js", "reveal/dist/theme/white.css"):
        assert part in linked
        assert (tmp_path / part).is_file()


def test_what_was_not_executed_makes_no_talk(tmp_path):
    (editions_file,) = editions.write([ALL[3]], tmp_path / "class")
    unexecuted = notebooks.Notebook(editions_file, ALL[3].question, {}, {})
    with pytest.raises(InputError, match="was not executed"):
        slides.write(unexecuted, tmp_path / "talk")
    assert not (tmp_path / "talk").exists()


def test_where_reveal_is_not_installed_a_sentence_says_what_is(monkeypatch, tmp_path):
    monkeypatch.setattr(slides, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'rebasin-utils\[site\]'"):
        slides.write(ALL[0], tmp_path / "talk")
