"""What the sparse runs owe to how long they are trained.

The paper gives a run that starts from epoch k of T the T − k epochs that are left, so a later start
comes with less training. Here the runs of one sparsity are trained once more, from the same states
with the same masks, for other numbers of epochs. It wants these runs and computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
from pydantic import Field

from rebasin_utils.study.parts import Epoch, Part
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Node, Reader, Stage
from rebasin_utils.study.stages import sparse


class BudgetsPart(Part):
    """Other budgets for the sparse runs at the closer look's sparsity, at every rewind epoch."""

    epochs: tuple[Epoch, ...] = Field(
        (), description="train them for so many epochs, too; 0: for those left of the dense ones"
    )


class Budgets(Stage):
    name = "budgets"
    Part = BudgetsPart

    def wanted(self, settings: Settings) -> Iterable[Node]:
        for budget in _asked(settings):
            for rewind_epoch in settings.sparse.rewind_epochs:
                for method in compared(settings):
                    for seed in settings.pairs:
                        yield run(settings, method, rewind_epoch, seed, budget)


BUDGETS = Budgets()


def compared(settings: Settings) -> list[str]:
    """The methods whose runs are trained again."""
    return [m for m in ("lth", "naive", "permuted") if m in settings.sparse.methods]


def run(settings: Settings, method: str, rewind_epoch: int, seed: int, budget: int) -> Node:
    """A run at the closer look's sparsity, of that many epochs; 0: those left of the dense ones."""
    epochs = budget or settings.dense.epochs - rewind_epoch
    cell = (method, settings.closer_look.sparsity, rewind_epoch, seed)
    return sparse.one(settings, *cell, epochs=epochs)


def table(study: Reader) -> pd.DataFrame:
    """Accuracies by budget: method, rewind_epoch, seed, budget, epochs, test_accuracy.

    budget: "the rest of T", or "the same n epochs"; the grid's own runs stand last.
    """
    s = study.settings
    own = s.sparse.epochs or 0
    rows = []
    for budget in (*_asked(s), own):
        for rewind_epoch in s.sparse.rewind_epochs:
            for method in compared(s):
                for seed in s.pairs:
                    node = run(s, method, rewind_epoch, seed, budget)
                    rows.append(
                        {
                            "method": method,
                            "rewind_epoch": rewind_epoch,
                            "seed": seed,
                            "budget": f"{budget} epochs each" if budget else "the rest of T",
                            "epochs": node.epochs,
                            "test_accuracy": study.record(node)["metrics"]["test_accuracy"],
                        }
                    )
    return pd.DataFrame(rows)


def _asked(settings: Settings) -> list[int]:
    """The budgets beside the grid's own."""
    if settings.closer_look.sparsity not in settings.sparse.sparsities:
        return []
    own = settings.sparse.epochs or 0
    return [budget for budget in settings.budgets.epochs if budget != own]
