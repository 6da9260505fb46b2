"""What a study costs: its artifacts and epochs, what of them is done, and the hours that remain.

Reads a plan and the records in a store; computes nothing, writes nothing and waits for nobody, so
it works beside a study that is running, and without the study's data.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rebasin_utils.plan import STAGES, Node, Plan
from rebasin_utils.settings import Settings
from rebasin_utils.store import RECORD, Store

#: Runs whose settings agree in these take about the same seconds per epoch.
SAME_PACE = ("dataset", "pool", "train_limit", "augment", "model", "width")


@dataclass(frozen=True)
class StageCost:
    """A stage of a study.

    artifacts, epochs: all of it. done, running, failed, missing: artifacts; they add up to all.
    seconds: what the finished ones took, on whatever device. epochs_left: of what is not done.
    seconds_left: an estimate from recorded runs on the device asked about; None is unknown.
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


def of_study(settings: Settings, store: Store, device: str) -> list[StageCost]:
    """The cost of every stage that has artifacts.

    Args:
        device: the name under which runs are recorded (`devices.device_name`).
    """
    plan = Plan(settings)
    pace = Pace(settings, store, device)
    return [
        _of_stage(stage, nodes, store, pace) for stage in STAGES if (nodes := plan.nodes(stage))
    ]


def failures(settings: Settings, store: Store) -> list[str]:
    """A line for each artifact that failed and was not computed since."""
    plan = Plan(settings)
    nodes = [node for stage in STAGES for node in plan.nodes(stage)]
    notes = [store.failure(node.key) for node in nodes if node.key not in store]
    return [f"{note['artifact']}: {note['why']}" for note in notes if note]


def _of_stage(stage: str, nodes: Sequence[Node], store: Store, pace: Pace) -> StageCost:
    states: Counter[str] = Counter()
    seconds, left = 0.0, []
    for node in nodes:
        record = store.peek(node.key)
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
        stage,
        len(nodes),
        sum(node.epochs for node in nodes),
        states["done"],
        states["running"],
        states["failed"],
        states["missing"],
        seconds,
        sum(node.epochs for node in left),
        None if None in estimates else sum(estimates, 0.0),
    )


class Pace:
    """How fast recorded runs like those of `settings` were on `device`, stage by stage."""

    def __init__(self, settings: Settings, store: Store, device: str):
        wanted = settings.model_dump(mode="json", include=set(SAME_PACE))
        self._seconds: dict[tuple[str, bool], float] = defaultdict(float)
        self._units: dict[tuple[str, bool], int] = defaultdict(int)
        for stage in STAGES:
            for path in (store.root / stage).glob(f"*/{RECORD}"):
                record = _read(path)
                made_with = record.get("settings", {})
                if record.get("device") == device and wanted.items() <= made_with.items():
                    epochs = len(record.get("train_losses", ()))
                    self._seconds[stage, epochs > 0] += record["seconds"]
                    self._units[stage, epochs > 0] += max(epochs, 1)

    def seconds(self, node: Node) -> float | None:
        """An estimate for one node, from its epochs where it has any; None is unknown.

        A stage that was never run goes at the pace of all epochs that were.
        """
        if node.made_by is not None:
            return 0.0
        kinds = [(node.stage, node.epochs > 0)]
        if node.epochs and not self._units[kinds[0]]:
            kinds = [kind for kind in self._units if kind[1]]
        units = sum(self._units[kind] for kind in kinds)
        if not units:
            return None
        return sum(self._seconds[kind] for kind in kinds) / units * max(node.epochs, 1)


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):  # it was set aside meanwhile, or is damaged
        return {}
