"""What a study costs: its artifacts and epochs, what of them is done, and the hours that remain.

Reads a plan and the records in a store; computes nothing, writes nothing and waits for nobody, so
it works beside a study that is running, and without the study's data.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from rebasin_utils.nets import masks
from rebasin_utils.nets.models import MODELS
from rebasin_utils.study.plan import Plan
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Node, Stage
from rebasin_utils.study.store import RECORD, Store
from rebasin_utils.study.study import Study

#: Runs whose settings agree in these parts take about the same seconds per epoch.
SAME_PACE = ("data", "model")


@dataclass(frozen=True)
class StageCost:
    """A stage of a study.

    artifacts, epochs: all of it. done, running, failed, missing: artifacts; they add up to all.
    seconds: what the finished ones took, on whatever device. epochs_left: of what is not done.
    seconds_left: an estimate from recorded runs on the device asked about; None is unknown.
    megabytes: what all of it takes on disk, nets and masks; records are a few kilobytes each.
    """

    stage: str
    artifacts: int
    epochs: int
    done: int
    running: int
    failed: int
    missing: int
    seconds: float
    epochs_left: int
    seconds_left: float | None
    megabytes: float


def of_study(
    settings: Settings, store: Store, device: str, epoch_seconds: float | None = None
) -> list[StageCost]:
    """The cost of every stage that has artifacts.

    Args:
        device: the name under which runs are recorded (`devices.device_name`).
        epoch_seconds: what an epoch of training takes where no run has shown it.
    """
    plan = Plan(settings)
    pace, sizes = Pace(plan, store, device, epoch_seconds), _sizes(Study(settings, store, "cpu"))
    return [
        _of_stage(stage, nodes, store, pace, sizes)
        for stage in plan.stages.values()
        if (nodes := plan.nodes(stage.name))
    ]


def failures(settings: Settings, store: Store) -> list[str]:
    """A line for each artifact that failed and was not computed since."""
    nodes = Plan(settings).all_nodes()
    notes = [store.failure(node.key) for node in nodes if node.key not in store]
    return [f"{note['artifact']}: {note['why']}" for note in notes if note]


def duration(seconds: float | None) -> str:
    """In the unit that suits it; None is unknown."""
    if seconds is None:
        return "unknown"
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"


def _sizes(study: Study) -> dict[str, float]:
    """Megabytes of a net (`final`) and of a `mask` of it."""
    with torch.device("meta") if study.settings.model.name in MODELS else nullcontext():
        model = study.model
    weights = dict(model.named_parameters())
    prunable = masks.prunable(model, study.settings.imp.prune_shortcuts)
    net = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return {"final": net / 1e6, "mask": sum(weights[name].numel() for name in prunable) / 1e6}


def _of_stage(
    stage: Stage, nodes: Sequence[Node], store: Store, pace: Pace, sizes: Mapping[str, float]
) -> StageCost:
    states: Counter[str] = Counter()
    seconds, left = 0.0, []
    for node in nodes:
        record = store.record(node.key)
        if record is not None:
            states["done"] += 1
            seconds += record["seconds"]
            continue
        left.append(node)
        if store.is_locked(node.key.digest):
            states["running"] += 1
        else:
            states["failed" if store.failure(node.key) else "missing"] += 1
    estimates = [pace.seconds(node) for node in left]
    return StageCost(
        stage.name,
        len(nodes),
        sum(node.epochs for node in nodes),
        states["done"],
        states["running"],
        states["failed"],
        states["missing"],
        seconds,
        sum(node.epochs for node in left),
        None if None in estimates else sum(estimates, 0.0),
        len(nodes) * sum(sizes[part] for part in stage.keeps),
    )


class Pace:
    """How fast recorded runs like those of a plan were on `device`, stage by stage."""

    def __init__(self, plan: Plan, store: Store, device: str, epoch_seconds: float | None = None):
        self._epoch_seconds = epoch_seconds
        wanted = plan.settings.model_dump(mode="json", include=set(SAME_PACE))
        self._stages = plan.stages
        self._seconds: dict[tuple[str, bool], float] = defaultdict(float)
        self._units: dict[tuple[str, bool], int] = defaultdict(int)
        for stage in plan.stages:
            for path in (store.root / stage).glob(f"*/{RECORD}"):
                record = _read(path)
                made_with = record.get("settings", {})
                if record.get("device") == device and wanted.items() <= made_with.items():
                    epochs = len(record.get("train_losses", ()))
                    self._seconds[stage, epochs > 0] += record["seconds"]
                    self._units[stage, epochs > 0] += max(epochs, 1)

    def seconds(self, node: Node) -> float | None:
        """An estimate for one node, from its cost; None is unknown.

        A stage that was never run goes at the pace of all epochs that were.
        """
        if node.made_by is not None:
            return 0.0
        kinds = [(node.stage, node.epochs > 0)]
        if node.epochs and not self._units[kinds[0]]:
            kinds = [kind for kind in self._units if kind[1]]
        units = sum(self._units[kind] for kind in kinds)
        if not units and node.epochs and self._epoch_seconds is not None:
            return self._epoch_seconds * node.epochs
        if not units:
            return None
        cost = self._stages[node.stage].cost(node)
        return sum(self._seconds[kind] for kind in kinds) / units * cost


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # it was set aside meanwhile, or is damaged
        return {}
