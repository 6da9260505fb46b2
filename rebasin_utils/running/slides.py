"""A talk from a notebook: its cells as slides, which need no network.

Which cell begins a slide stands in the notebooks, as Jupyter keeps it (`slideshow.slide_type`).
reveal.js, which turns the pages, is that of `sphinx-revealjs`.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import nbformat
from jinja2 import DictLoader
from nbconvert import SlidesExporter
from nbformat import NotebookNode
from plotly.offline import get_plotlyjs

from rebasin_utils.errors import InputError
from rebasin_utils.files import replace_synced
from rebasin_utils.running import glossary, links
from rebasin_utils.running.notebooks import Notebook, offline

#: What is taken of reveal.js.
_PARTS = ("dist/reset.css", "dist/reveal.css", "dist/reveal.js", "dist/theme", "plugin/notes")

#: nbconvert's own takes require.js, reveal.js and MathJax from the network.
#: Slides are not scaled: a figure would no longer know where the mouse is.
_TEMPLATE = """
{%- extends 'reveal/index.html.j2' -%}
{%- block html_head_js -%}<script src="plotly.min.js"></script>{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_css -%}
<style>
.reveal .slides { text-align: left; }
.reveal .slides section { box-sizing: border-box; height: 100%; padding: 1em 2em; }
.reveal .slides section > section, .reveal .slides > section:not(.stack) { overflow-y: auto; }
.reveal .slides section.stack { padding: 0; }
.reveal table { font-size: 18px; }
.reveal h1, .reveal h2, .reveal h3 { text-transform: none; }
</style>
{%- endblock -%}
{%- block footer_js -%}
<script src="reveal/dist/reveal.js"></script>
<script src="reveal/plugin/notes/notes.js"></script>
<script>
Reveal.initialize({
  width: "100%", height: "100%", margin: 0, minScale: 1, maxScale: 1, center: false,
  history: true, slideNumber: true, transition: "none", plugins: [RevealNotes],
});
</script>
{%- endblock -%}
"""


def write(notebook: Notebook, folder: Path) -> Path:
    """Write a notebook as slides, as it was executed, with what they need beside them.

    Args:
        folder: gets `<name>.slides.html`, `plotly.min.js` and `reveal/`.

    Raises:
        InputError: when reveal.js is not installed, or the notebook holds no outputs.
    """
    reveal = _reveal()
    content = nbformat.read(notebook.path, as_version=4)
    if not any(cell.get("outputs") for cell in content.cells):
        raise InputError(
            f"notebook = {notebook.name!r}: was not executed, its slides would show no result; "
            f"`rebasin notebooks refresh {notebook.name[:2]}` does it"
        )
    page = as_slides(content, notebook.question)
    folder.mkdir(parents=True, exist_ok=True)
    for part in _PARTS:
        source, target = reveal / part, folder / "reveal" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)
    replace_synced(folder / "plotly.min.js", get_plotlyjs().encode())
    glossary.write_page(folder)
    file = folder / f"{notebook.name}.slides.html"
    replace_synced(file, page.encode())
    return file


def as_slides(notebook: NotebookNode, title: str) -> str:
    """The page; what is shown as a figure or a table is shown without the code that made it.

    It needs `plotly.min.js` and `reveal/` beside it.
    """
    for cell in offline(notebook).cells:
        if cell.cell_type == "markdown":
            cell.source = links.to_pages(cell.source, ".slides.html")
        elif cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_alive(output)]
            shown = any("text/html" in output.get("data", {}) for output in cell.outputs)
            cell.metadata["transient"] = {"remove_source": shown}
    notebook.metadata.pop("widgets", None)
    loader = DictLoader({"talk.html.j2": _TEMPLATE})
    exporter = SlidesExporter(
        extra_loaders=[loader],
        template_file="talk.html.j2",
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        reveal_url_prefix="reveal",
        reveal_theme="white",
    )
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    return body


def _is_alive(output: NotebookNode) -> bool:
    """Whether it is a widget, which a page without a kernel cannot show."""
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _reveal() -> Path:
    found = find_spec("sphinx_revealjs")
    if found is None or found.origin is None:
        raise InputError(
            "slides need reveal.js, which comes with sphinx-revealjs: "
            "pip install 'rebasin-utils[site]'"
        )
    return Path(found.origin).parent / "_static" / "revealjs"
