"""The glossary: notebooks link to its terms, and it goes where they go."""

from __future__ import annotations

import re

import nbformat
import pytest

from rebasin_utils.running import glossary, links, notebooks

ALL = notebooks.originals()


def prose(notebook: notebooks.Notebook) -> str:
    content = nbformat.read(notebook.path, as_version=4)
    return "\n\n".join(c.source for c in content.cells if c.cell_type == "markdown")


@pytest.mark.parametrize("notebook", ALL, ids=lambda n: n.name)
def test_a_notebook_links_to_terms_that_there_are_each_once(notebook):
    linked = links.TERM.findall(prose(notebook))
    assert len(linked) >= 5
    assert len(set(linked)) == len(linked)
    assert set(linked) <= set(glossary.terms())


@pytest.mark.parametrize("notebook", ALL, ids=lambda n: n.name)
def test_a_term_is_linked_where_it_is_used_first(notebook):
    """In a sentence: neither in a heading, a table, a quotation nor another notebook's title."""
    apart = r'^[#|].*$|"[^"\n]*"|\[[^\]]*\]\((?!glossary)[^)]*\)'
    text = re.sub(apart, "", prose(notebook), flags=re.MULTILINE)
    for term in ("mask", "ticket", "basin", "barrier", "IMP", "LTH", "REPAIR"):
        used = re.search(rf"(?<![\w#])(\[?){term}s?\b(?!\.)", text)
        if used and "signed" not in text[used.start() - 8 : used.start()]:
            assert used[1], (
                f"{term} is used first in: …{text[used.start() - 40 : used.end() + 20]}…"
            )


def test_its_page_has_every_term_under_the_name_that_links_give_it(tmp_path):
    glossary.write_page(tmp_path)
    page = (tmp_path / "glossary.html").read_text()
    assert re.findall(r'<h2 id="([^"]+)">', page) == list(glossary.terms())
    assert "anchor-link" not in page
    assert ".ipynb" not in page
    assert not re.findall(r'(?:src|href)="https?:', page)


def test_a_copy_that_is_there_stays(tmp_path):
    glossary.copy(tmp_path)
    assert (tmp_path / "glossary.md").read_bytes() == glossary.file().read_bytes()
    (tmp_path / "glossary.md").write_text("mine")
    glossary.copy(tmp_path)
    assert (tmp_path / "glossary.md").read_text() == "mine"
