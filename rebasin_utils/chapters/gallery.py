"""What all chapters have to show of some studies: every figure as files, every verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
from plotly.offline import get_plotlyjs

from rebasin_utils.chapters.chapter import Chapter
from rebasin_utils.chapters.style import save
from rebasin_utils.files import replace_synced
from rebasin_utils.study import plugins
from rebasin_utils.study.study import Study


def applying(studies: Sequence[Study]) -> list[Chapter]:
    """The chapters, also those of plug-ins, that have something to show of these studies."""
    named = dict.fromkeys(name for study in studies for name in study.settings.plugins)
    chapters = plugins.chapters(tuple(named)).values()
    return [chapter for chapter in chapters if not chapter.missing(studies)]


def draw_all(studies: Sequence[Study], folder: Path) -> None:
    """Write every chapter's figures, each with the data that made it: what `figures/` holds."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_synced(folder / "plotly.min.js", get_plotlyjs().encode())
    for chapter in applying(studies):
        for picture in chapter.pictures(studies):
            save(picture.figure, folder, picture.name, picture.table)


def verdicts(studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Every claim that these studies can be held to, a table at a time, with its heading."""
    for chapter in applying(studies):
        yield from chapter.verdicts(studies)
