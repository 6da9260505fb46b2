"""The tidy table of a study: one row per trained net."""

from __future__ import annotations

import pandas as pd

from rebasin_utils.plan import Node
from rebasin_utils.settings import Settings

#: The stages whose artifacts are trained nets.
STAGES = ("dense", "imp", "sparse")

#: Columns and their types.
COLUMNS = {
    "preset": "str", "dataset": "str", "model": "str", "width": "int64", "method": "str",
    "net": "str", "sparsity": "float64", "prunable_sparsity": "float64",
    "global_sparsity": "float64", "rewind_epoch": "Int64", "seed": "int64", "epochs": "int64",
    "test_accuracy": "float64", "test_loss": "float64", "diverged": "bool", "seconds": "float64",
    "device": "str", "artifact": "str",
}  # fmt: skip


def is_result(node: Node) -> bool:
    """Whether a node of `STAGES` has a row: rounds that draw a ticket, runs of the grid."""
    return not node.variant and (node.round is None or bool(node.round.targets))


def row(settings: Settings, node: Node, record: dict) -> dict:
    """The row of one trained net, from its place in the plan and its stored record."""
    s = settings
    epochs = node.epochs * (node.round.number if node.round else 1)
    sparsity = node.sparsity
    if node.round:
        sparsity = node.round.targets[0]
    return {
        "preset": s.name,
        "dataset": s.dataset,
        "model": s.model,
        "width": s.width,
        "method": node.method or node.stage,
        "net": node.role or ("A" if node.method == "lth" else "B"),
        "sparsity": 0.0 if sparsity is None else sparsity,
        "rewind_epoch": node.rewind_epoch,
        "seed": node.seed,
        "epochs": epochs,
        "artifact": node.key.path,
        **record["metrics"],
        "seconds": record["seconds"],
        "device": record["device"],
    }


def table(rows: list[dict]) -> pd.DataFrame:
    """Rows as a frame with exactly `COLUMNS`."""
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
