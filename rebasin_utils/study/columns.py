"""The columns of a study's table: one row per trained net."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pandas as pd

#: Columns and their types.
COLUMNS = {
    "preset": "str", "dataset": "str", "model": "str", "width": "int64", "method": "str",
    "net": "str", "sparsity": "float64", "prunable_sparsity": "float64",
    "global_sparsity": "float64", "rewind_epoch": "Int64", "seed": "int64", "epochs": "int64",
    "test_accuracy": "float64", "test_loss": "float64", "test_top5": "float64", "diverged": "bool",
    "seconds": "float64", "device": "str", "shipped": "bool", "artifact": "str",
}  # fmt: skip


def table(rows: Iterable[Mapping], more: Mapping[str, str]) -> pd.DataFrame:
    """Rows as a frame with exactly `COLUMNS` and `more`.

    What does not say so has not diverged, and is not shipped.
    """
    columns = {**COLUMNS, **more}
    unsaid = {"diverged": False, "shipped": False}
    frame = pd.DataFrame([{**unsaid, **row} for row in rows], columns=list(columns))
    return frame.astype(columns)
