"""What a chapter is: a notebook's other half, its figures and its claims with their verdicts.

A chapter reads records and computes no more than means and intervals. It takes all studies of a
preset, since some compare several, and says in one place (`studies`) which of them it shows and
what it lacks. `plugins.chapters` finds chapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go

from rebasin_utils.errors import InputError
from rebasin_utils.study.stage import Node
from rebasin_utils.study.study import Study


@dataclass(frozen=True)
class Picture:
    """A figure as a file, `name`, with the table that it was drawn from."""

    name: str
    figure: go.Figure
    table: pd.DataFrame


class Chapter:
    """One notebook's figures and verdicts.

    notebook: its name, as in "05-width". stages: whose artifacts it reads.
    """

    notebook: ClassVar[str]
    stages: ClassVar[tuple[str, ...]] = ()

    def studies(self, studies: Sequence[Study]) -> list[Study]:
        """Those that this chapter shows.

        Raises:
            InputError: when none has what it needs; the sentence says what that is.
        """
        return list(studies)

    def missing(self, studies: Sequence[Study]) -> str:
        """Why it does not apply to these studies; nothing where it does."""
        try:
            self.studies(studies)
        except InputError as error:
            return str(error)
        return ""

    def needs(self, studies: Sequence[Study]) -> list[Node]:
        """The artifacts that it reads."""
        return [n for study in self.studies(studies) for n in study.plan.all_nodes(self.stages)]

    def pictures(self, studies: Sequence[Study]) -> Iterable[Picture]:
        """The figures that are kept as files, of studies that were run."""
        return ()

    def verdicts(self, studies: Sequence[Study]) -> Iterable[tuple[str, pd.DataFrame]]:
        """The claims that these studies can be held to, a table at a time, with its heading."""
        return ()


def whole_results(study: Study) -> pd.DataFrame:
    """The table of a study whose sparse runs are all there.

    Raises:
        InputError: when one is not computed yet; means over what happens to be there would mislead.
    """
    for node in study.nodes("sparse"):
        study.record(node)
    return study.results()


def with_sparse_runs(studies: Sequence[Study]) -> list[Study]:
    """The studies that have a grid of sparse runs.

    Raises:
        InputError: when there is none.
    """
    found = [study for study in studies if study.nodes("sparse")]
    if not found:
        raise InputError("this preset has no sparse runs: choose another, e.g. pocket")
    return found


def with_signs(studies: Sequence[Study]) -> list[Study]:
    """The studies that transfer signed masks.

    Raises:
        InputError: when there is none.
    """
    found = [study for study in studies if study.settings.signs.rounds]
    if not found:
        raise InputError(
            "no study of this preset has signed masks: choose another, e.g. pocket, or set "
            "signs.rounds"
        )
    return found


def with_paths(studies: Sequence[Study]) -> list[Study]:
    """The studies that measure the path between A and B.

    Raises:
        InputError: when there is none.
    """
    found = [study for study in studies if study.nodes("connectivity")]
    if not found:
        raise InputError("no study of this preset has paths.alphas: choose another, e.g. pocket")
    return found


def looking_closer(studies: Sequence[Study]) -> list[Study]:
    """The studies that have ensembles of LTH, permuted and naive runs.

    Raises:
        InputError: when there is none.
    """
    needed = {"lth", "permuted", "naive"}
    found = [
        study
        for study in studies
        if study.nodes("diversity") and needed <= set(study.settings.sparse.methods)
    ]
    if not found:
        raise InputError(
            "no study of this preset has ensembles: choose another preset, e.g. pocket, or set "
            "closer_look.sparsity, closer_look.rewind_epoch, closer_look.ensemble_size and "
            "imp.prune_b, at least 2 seeds, and the methods lth, permuted and naive"
        )
    return found
