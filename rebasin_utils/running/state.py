"""One look at a study, for a notebook: what is here, what ships, and what the rest would cost."""

from __future__ import annotations

import pandas as pd

from rebasin_utils.chapters import lab
from rebasin_utils.nets.devices import device_name
from rebasin_utils.running import costs
from rebasin_utils.study.study import Study


def show_state(*studies: Study) -> None:
    """Display `state`."""
    lab.show_table(state(*studies))


def state(*studies: Study) -> pd.DataFrame:
    """A row for each study; only looks at its store.

    Returns:
        study; artifacts, and how many of them are here, running, shipped (and neither here nor
        running) and missing; what is missing in epochs, and in time at the pace of recorded runs.
    """
    return pd.DataFrame([_row(study) for study in studies])


def _row(study: Study) -> dict[str, str | int]:
    nodes = study.plan.all_nodes()
    lacking = study.missing()
    running = [node for node in lacking if study.store.is_locked(node.key.digest)]
    shipped = [n for n in lacking if n not in running and study.shelf.record(n.key) is not None]
    missing = [node for node in lacking if node not in running and node not in shipped]
    seconds: float | None = 0.0
    if missing:
        pace = costs.Pace(study.plan, study.store, device_name(study.device))
        estimates = [pace.seconds(node) for node in missing]
        seconds = None if None in estimates else sum(estimates)
    return {
        "study": study.settings.name,
        "artifacts": len(nodes),
        "here": len(nodes) - len(lacking),
        "running": len(running),
        "shipped": len(shipped),
        "missing": len(missing),
        "epochs missing": sum(node.epochs for node in missing),
        "time of one worker": costs.duration(seconds),
    }
