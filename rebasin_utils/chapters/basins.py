"""Notebook 02: do two networks that were trained apart live in one basin?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rebasin_utils.chapters.chapter import Chapter, Picture, with_paths
from rebasin_utils.chapters.halfway import of_paths, paths
from rebasin_utils.chapters.style import lay_out
from rebasin_utils.study.stages import connectivity
from rebasin_utils.study.study import Study


class Basins(Chapter):
    notebook = "02-two-nets-one-basin"
    stages = ("dense", "matching", "connectivity")

    def studies(self, studies: Sequence[Study]) -> list[Study]:
        return with_paths(studies)

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        for study in self.studies(studies):
            table = connectivity.paths(study)
            yield Picture(f"{study.settings.name}-paths", paths(table, repaired=True), table)

    def verdicts(self, studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
        for study in self.studies(studies):
            yield f"{study.settings.name}, halfway", of_paths(study)


BASINS = Basins()


def correlations(before: np.ndarray, after: np.ndarray, group: str) -> go.Figure:
    """Unit-by-unit correlation of the two nets in one group, before and after matching."""
    figure = make_subplots(1, 2, subplot_titles=["A against B", "π(A) against B"])
    for column, z in enumerate((before, after), 1):
        figure.add_heatmap(
            z=np.round(100 * z).astype(np.int8),
            zmin=-100,
            zmax=100,
            colorscale=[[0, "#D55E00"], [0.5, "white"], [1, "#0072B2"]],
            colorbar_title=dict(text="correlation, %", side="right"),
            showscale=column == 2,
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed")
    lay_out(figure, "unit of A", "unit of B")
    figure.update_yaxes(title="", col=2)
    figure.update_layout(margin_t=120)
    mean = np.diagonal(before).mean(), np.diagonal(after).mean()
    figure.update_layout(
        title=f"Matching finds each unit's counterpart: mean correlation {mean[0]:.2f} → "
        f"{mean[1]:.2f}<br><sup>group {group}; the diagonal pairs units of the same index</sup>"
    )
    return figure
