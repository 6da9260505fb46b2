"""Links from a notebook to another and to the glossary, and what they become in pages."""

from __future__ import annotations

import re

#: A link to a notebook.
NOTEBOOK = re.compile(r"\]\((\d\d-[\w-]+)\.ipynb\)")
#: A link to a term of the glossary.
TERM = re.compile(r"\]\(glossary\.md#([^)\s]+)\)")


def to_pages(text: str, ending: str = ".html") -> str:
    """The text with links to pages, of which a notebook's has that ending."""
    return TERM.sub(r"](glossary.html#\1)", NOTEBOOK.sub(rf"](\1{ending})", text))
