"""The glossary, to whose terms the notebooks link where they first use them.

It lies beside them and goes where they go: with a copy as it is, with pages as a page.
"""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

from nbconvert.filters import markdown2html

from rebasin_utils.files import replace_synced
from rebasin_utils.paths import original_notebooks
from rebasin_utils.running import links

_TERM = re.compile(r"^## (.+)$", re.MULTILINE)
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Glossary</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ font-family: sans-serif; line-height: 1.5; max-width: 44em; margin: 2em auto;
padding: 0 1em }} h2 {{ font-size: 1em; margin: 1.2em 0 0 }} p {{ margin: 0 }}</style>
</head><body>
{}
</body></html>
"""


def file() -> Path:
    """The checkout's, or the package's own."""
    return original_notebooks()[0].parent / "glossary.md"


def terms() -> dict[str, str]:
    """Every term by what links call it."""
    return {_called(term): term for term in _TERM.findall(file().read_text(encoding="utf-8"))}


def copy(folder: Path) -> None:
    """Put it beside notebooks; one that is there already stays."""
    if not (folder / file().name).exists():
        replace_synced(folder / file().name, file().read_bytes())


def write_page(folder: Path) -> None:
    """`glossary.html`, beside the pages of notebooks."""
    text = links.to_pages(file().read_text(encoding="utf-8"))
    body = re.sub(r'<a class="anchor-link".*?</a>', "", markdown2html(text))
    body = re.sub(r'<h2 id="[^"]*">(.*?)</h2>', lambda h: _headed(unescape(h[1])), body)
    replace_synced(folder / "glossary.html", _PAGE.format(body).encode())


def _headed(term: str) -> str:
    return f'<h2 id="{_called(term)}">{term}</h2>'


def _called(term: str) -> str:
    return term.lower().replace(" ", "-")
