"""Build the site: static pages that work from a folder, without a network.

    python docs/build.py [FOLDER]     build/site where not given; `make site` calls it

Sphinx and myst-nb make them from the README, the notebooks as they are committed, with their
outputs, the pages of this folder, and the docstrings of the public names. Formulas become MathML,
which browsers draw themselves, and figures stay alive with the plotly that lies beside the pages.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import nbformat
from plotly.offline import get_plotlyjs
from sphinx.cmd.build import main as sphinx

from rebasin_utils.running import notebooks

HERE = Path(__file__).parent
ROOT = HERE.parent

#: A link to a file of the project; pages and pictures are in the site, other files are not.
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)")
PAGES = (".ipynb", ".md", ".png")


def gather(source: Path) -> None:
    """Put everything that Sphinx reads into one folder."""
    shutil.rmtree(source, ignore_errors=True)
    for folder in ("notebooks", "figures", "benchmarks", "docs", "_static"):
        (source / folder).mkdir(parents=True)
    shutil.copy(HERE / "conf.py", source)
    shutil.copy(HERE / "site.css", source / "_static")
    (source / "_static" / "plotly.min.js").write_text(get_plotlyjs())
    for notebook in notebooks.all_notebooks():
        content = notebooks.offline(nbformat.read(notebook.path, as_version=4), fluid=True)
        for cell in content.cells:
            if "solution" in cell.metadata.get("tags", []):
                cell.metadata["tags"] = [*cell.metadata["tags"], "hide-cell"]
        nbformat.write(content, source / "notebooks" / notebook.path.name)
    shutil.copy(ROOT / "notebooks" / "glossary.md", source / "notebooks")
    for page in HERE.glob("*.md"):
        shutil.copy(page, source / "docs")
    for kind in ("md", "png"):
        for page in (ROOT / "benchmarks").glob(f"*.{kind}"):
            shutil.copy(page, source / "benchmarks")
    readme = LINK.sub(_within_the_site, (ROOT / "README.md").read_text())
    for picture in set(re.findall(r"figures/[\w-]+\.png", readme)):
        shutil.copy(ROOT / picture, source / "figures")
    (source / "index.md").write_text(f"{readme}\n{_contents()}")


def _within_the_site(link: re.Match) -> str:
    picture, text, target = link.groups()
    return link[0] if target.partition("#")[0].endswith(PAGES) else f"{picture}{text}"


def _contents() -> str:
    """The navigation: the notebooks in the order of the argument, then the other pages."""
    of_notebooks = [
        f"{notebook.name.replace('-', ' ')} <notebooks/{notebook.name}>"
        for notebook in notebooks.all_notebooks()
    ]
    first = ["notebooks/glossary", "docs/papers", "docs/lessons"]
    others = ["docs/library", "docs/stages-and-chapters"]
    others += [f"benchmarks/{p.stem}" for p in sorted((ROOT / "benchmarks").glob("*.md"))]
    return "\n".join(
        f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{chr(10).join(pages)}\n```\n"
        for caption, pages in (
            ("The argument", of_notebooks),
            ("For readers", first),
            ("For users", others),
        )
    )


def build(folder: Path) -> int:
    """The exit code of Sphinx, for which every warning is an error."""
    source = folder.parent / f".{folder.name}-source"
    gather(source)
    shutil.rmtree(folder, ignore_errors=True)
    code = sphinx(["-q", "-W", "--keep-going", "-b", "html", str(source), str(folder)])
    shutil.rmtree(folder / ".doctrees", ignore_errors=True)
    return code


if __name__ == "__main__":
    to = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"
    code = build(to)
    print(f"pages: {to / 'index.html'}" if not code else "the site has warnings; see above")
    sys.exit(code)
