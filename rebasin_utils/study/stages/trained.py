"""What the stages that train leave behind: a tested net, its record, its row in the table."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from rebasin_utils.nets import masks
from rebasin_utils.nets.masks import Mask, State
from rebasin_utils.study.stage import Context, Made, Node, Reader
from rebasin_utils.training.evaluate import Metrics
from rebasin_utils.training.train import Trained

#: The two nets of a pair.
ROLES = ("A", "B")


def tested(run: Context, done: Sequence[Trained]) -> list[Metrics]:
    """Accuracy and loss of trained nets on the test images."""
    return run.evaluate([trained.state for trained in done])


def made(
    run: Context, node: Node, trained: Trained, test: Metrics, mask: Mask | None, /, **parts: State
) -> Made:
    """A trained net as it is stored: `final`, and whatever states `parts` has besides."""
    metrics = {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss if math.isfinite(test.loss) else None,
        "test_top5": test.top5,
        "diverged": trained.diverged,
        "prunable_sparsity": masks.sparsity(mask) if mask else 0.0,
        "global_sparsity": masks.global_sparsity(mask, run.model) if mask else 0.0,
    }
    losses = [loss if math.isfinite(loss) else None for loss in trained.losses]
    record = {"metrics": metrics, "train_losses": losses, "seconds": trained.seconds}
    states = {"final": trained.state, **parts}
    return Made(node, record, dict(ChainMap(*(named(p, s) for p, s in states.items()))))


def named(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state under the names that it has in an artifact."""
    return {f"{part}/{name}": tensor for name, tensor in state.items()}


def row(node: Node, record: Mapping[str, Any], **columns: Any) -> dict[str, Any]:
    """A net's row in the table: the columns that all have, and those that are given."""
    s = node.settings
    return {
        "preset": s.name,
        "dataset": s.data.source,
        "model": s.model.name,
        "width": s.model.width,
        "sparsity": 0.0,
        "rewind_epoch": None,
        "seed": node.seed,
        "epochs": node.epochs,
        "artifact": node.key.path,
        **record["metrics"],
        "seconds": record["seconds"],
        "device": record["device"],
        "shipped": "shipped" in record,
        **columns,
    }


def read(study: Reader, stage: str) -> list[tuple[Node, dict[str, Any]]]:
    """Every node of a stage with its metrics."""
    return [(node, study.record(node)["metrics"]) for node in study.nodes(stage)]
