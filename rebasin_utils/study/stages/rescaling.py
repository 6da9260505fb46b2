"""Whether a start that is rescaled to its mask trains better: the released code's scaled runs.

They were meant to be rescaled and never were (`masks.sparse_aware`). Here the runs of one sparsity
are trained once more from rescaled starts. The stage wants these runs and computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import pandas as pd
from pydantic import Field, field_validator

from rebasin_utils.errors import InputError
from rebasin_utils.study.parts import Epoch, Part
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Node, Reader, Stage
from rebasin_utils.study.stages import sparse
from rebasin_utils.study.stages.budgets import compared


class RescalingPart(Part):
    """Rescaled starts, beside the grid's, at the closer look's sparsity."""

    rewind_epochs: tuple[Epoch, ...] = Field(
        (), description="rescale the starts after these epochs, each one of the grid's; none: off"
    )
    basis: Literal["layer", "neuron"] = Field(
        "layer", description="whose standard deviation weights are divided by"
    )

    @field_validator("rewind_epochs")
    @classmethod
    def _no_repeats(cls, values: tuple) -> tuple:
        if len(set(values)) != len(values):
            raise ValueError("every value must occur once")
        return values


class Rescaling(Stage):
    name = "rescaling"
    Part = RescalingPart

    def check(self, settings: Settings) -> None:
        grid, look = settings.sparse, settings.closer_look
        for k in settings.rescaling.rewind_epochs:
            if k not in grid.rewind_epochs or look.sparsity not in grid.sparsities:
                raise InputError(
                    f"rescaling.rewind_epochs = {k}: these runs are held against the grid's, which "
                    f"has k in {list(grid.rewind_epochs)} and S in {list(grid.sparsities)}, at "
                    f"closer_look.sparsity, {look.sparsity}"
                )

    def wanted(self, settings: Settings) -> Iterable[Node]:
        for rewind_epoch in settings.rescaling.rewind_epochs:
            for method in compared(settings):
                for seed in settings.pairs:
                    yield run(settings, method, rewind_epoch, seed)


RESCALING = Rescaling()


def run(settings: Settings, method: str, rewind_epoch: int, seed: int) -> Node:
    """A run at the closer look's sparsity, from a rescaled start."""
    cell = (method, settings.closer_look.sparsity, rewind_epoch, seed)
    return sparse.one(settings, *cell, rescale=settings.rescaling.basis)


def table(study: Reader) -> pd.DataFrame:
    """Test accuracies of both: method, rewind_epoch, seed, rescaled, as_it_is (shares)."""
    s, rows = study.settings, []
    for rewind_epoch in s.rescaling.rewind_epochs:
        for method in compared(s):
            for seed in s.pairs:
                plain = sparse.one(s, method, s.closer_look.sparsity, rewind_epoch, seed)
                both = {"rescaled": run(s, method, rewind_epoch, seed), "as_it_is": plain}
                measured = {n: study.record(node)["metrics"] for n, node in both.items()}
                accuracies = {n: metrics["test_accuracy"] for n, metrics in measured.items()}
                at = {"method": method, "rewind_epoch": rewind_epoch, "seed": seed}
                rows.append(at | accuracies)
    return pd.DataFrame(rows, columns=["method", "rewind_epoch", "seed", "rescaled", "as_it_is"])
