"""No text of a figure covers another or is cut off: in notebooks and on pages of 700 pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from offline import page_without_network
from playwright.sync_api import Page
from plotly.offline import get_plotlyjs

from rebasin_utils.running import notebooks

ALL = notebooks.all_notebooks()
STYLE = (Path(__file__).parents[2] / "docs" / "site.css").read_text()

#: Of every text that is seen: what it says, its box in the window, and whether it is slanted.
TEXTS = """plot => [...plot.querySelectorAll('.main-svg text')].filter(text => {
  const style = getComputedStyle(text);
  return text.textContent.trim() && style.display !== 'none' && style.visibility !== 'hidden'
    && style.opacity > 0.1;
}).map(text => {
  const box = text.getBoundingClientRect(), turned = text.getCTM();
  return {said: text.textContent, left: box.left, right: box.right, top: box.top,
          bottom: box.bottom, slanted: Math.abs(turned.b * turned.a) > 0.01};
})"""


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    with page_without_network() as page:
        yield page


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    (folder / "plotly.min.js").write_text(get_plotlyjs())
    return folder


def figures(notebook: notebooks.Notebook, fluid: bool) -> list[str]:
    """The HTML of its figures, in their order."""
    content = notebooks.offline(nbformat.read(notebook.path, as_version=4), fluid)
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    pages = [output.get("data", {}).get("text/html", "") for output in outputs]
    return [page for page in pages if "plotly-graph-div" in page]


def show(page: Page, folder: Path, html: str, width: int) -> list[dict]:
    """Open figures in a window of that width; the texts of each that is drawn."""
    place = folder / "page.html"
    style = STYLE if "figure-title" in html else ""
    head = f'<meta charset="utf-8"><style>{style} body {{ margin: 0 }}</style>'
    place.write_text(f'<!doctype html>{head}<script src="plotly.min.js"></script>{html}')
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(place.as_uri())
    plots = page.locator(".plotly-graph-div").all()
    for plot in plots:
        plot.locator(".main-svg").first.wait_for(state="attached")
    return [plot.evaluate(TEXTS) for plot in plots]


def overlapping(texts: list[dict], slack: float = 3) -> list[tuple[str, str]]:
    """A box has some room about the letters, which may be shared."""
    level = [text for text in texts if not text["slanted"]]
    return [
        (a["said"], b["said"])
        for i, a in enumerate(level)
        for b in level[i + 1 :]
        if min(a["right"], b["right"]) - max(a["left"], b["left"]) > slack
        and min(a["bottom"], b["bottom"]) - max(a["top"], b["top"]) > slack
    ]


def cut_off(texts: list[dict], width: int, slack: float = 2) -> list[str]:
    return [t["said"] for t in texts if t["left"] < -slack or t["right"] > width + slack]


@pytest.mark.parametrize(("width", "fluid"), [(900, False), (700, True)])
@pytest.mark.parametrize("notebook", ALL, ids=[n.name for n in ALL])
def test_texts_keep_clear_of_one_another(browser_page, folder, notebook, width: int, fluid: bool):
    for texts in show(browser_page, folder, "".join(figures(notebook, fluid)), width):
        said = [text["said"] for text in texts]
        assert overlapping(texts) == [], said
        assert cut_off(texts, width) == [], said
    if fluid:
        titles = browser_page.locator(".figure-title").all_inner_texts()
        assert len(titles) == browser_page.locator(".plotly-graph-div").count()
        assert all(titles)


def test_a_slider_changes_the_title_above_the_figure(browser_page, folder):
    show(browser_page, folder, figures(ALL[3], fluid=True)[0], 700)
    title, plot = browser_page.locator(".figure-title"), browser_page.locator(".plotly-graph-div")
    before = title.inner_text()
    plot.evaluate("p => Plotly.update(p, ...p.layout.sliders[0].steps[0].args)")
    assert title.inner_text() != before


def test_what_overlaps_or_is_cut_off_is_seen(browser_page, folder):
    note = "{x: 0.5, y: 0.5, xref: 'paper', yref: 'paper', showarrow: false, text: 'words, words'}"
    title = "{text: 'a title that is far too long for a figure of so small a width', x: 0}"
    layout = f"{{width: 400, annotations: [{note}, {note}], title: {title}}}"
    html = (
        "<style>.js-plotly-plot .gtitle { display: inline !important; }</style>"
        '<div id="plot" class="plotly-graph-div"></div>'
        f"<script>Plotly.newPlot('plot', [{{x: [1, 2], y: [1, 2]}}], {layout})</script>"
    )
    (texts,) = show(browser_page, folder, html, 400)
    assert overlapping(texts) == [("words, words", "words, words")]
    assert len(cut_off(texts, 400)) == 1
