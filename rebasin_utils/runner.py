"""Run studies: every missing artifact, in this process or in several.

Stage after stage, the missing artifacts are dealt in lots to worker processes; they share the
store, so nothing but names and counts travels between them. The lots and the arithmetic do not
depend on the number of workers, and neither do the results.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from functools import lru_cache
from pathlib import Path

import pandas as pd

from rebasin_utils.errors import InputError
from rebasin_utils.plan import STAGES, Node
from rebasin_utils.progress import Progress
from rebasin_utils.settings import Settings
from rebasin_utils.stacking import stackable
from rebasin_utils.store import Store
from rebasin_utils.study import Study


def run(
    studies: Study | Sequence[Study],
    stages: Sequence[str] = STAGES,
    workers: int | None = None,
    quiet: bool = False,
) -> int:
    """Compute what the store lacks of these studies, and return how many artifacts that were.

    Args:
        stages: only these, in their order; what they depend on is computed with them.
        workers: processes; None is one per CPU core, or one in all where a GPU is used. One worker
            is this process itself.
        quiet: no progress bar.

    Raises:
        InputError: when `workers` is not positive or a stage is unknown.
    """
    studies = [studies] if isinstance(studies, Study) else list(studies)
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown:
        raise InputError(f"stage = {unknown[0]!r}: choose from {', '.join(STAGES)}")
    if workers is None:
        on_gpu = any(study.device.type == "cuda" for study in studies)
        workers = 1 if on_gpu else len(os.sched_getaffinity(0))
    if workers < 1:
        raise InputError(f"workers = {workers}: must be at least 1")
    missing = [(study, node) for study in studies for node in study.missing(stages)]
    if not missing:
        return 0
    epochs = sum(node.epochs for _, node in missing)
    images = sum(node.epochs * len(study.train_images) for study, node in missing)
    with Progress(_runs([node for _, node in missing]), epochs, images, quiet) as bar:
        if workers == 1:
            _run_here(studies, stages, bar)
        else:
            _run_in_processes(studies, stages, workers, bar)
    return len(missing)


def results(studies: Sequence[Study]) -> pd.DataFrame:
    """The tables of several studies as one."""
    return pd.concat([study.results() for study in studies], ignore_index=True)


def _lots(study: Study, stage: str) -> list[list[Node]]:
    """The stage's lots without what the store has, the costly ones first."""
    lots = study.plan.tasks(stage, stackable(study.model))
    lacking = [[node for node in lot if node.key not in study.store] for lot in lots]
    return sorted(filter(None, lacking), key=lambda lot: -sum(node.epochs for node in lot))


def _run_here(studies: Sequence[Study], stages: Sequence[str], bar: Progress) -> None:
    for stage in stages:
        bar.stage(stage)
        for study in studies:
            for lot in _lots(study, stage):
                study.compute(lot, progress=bar.update)
                bar.update(0, _runs(lot))


def _run_in_processes(
    studies: Sequence[Study], stages: Sequence[str], workers: int, bar: Progress
) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, initializer=_end_with_parent) as pool:
        for stage in stages:
            bar.stage(stage)
            futures = {f: runs for study in studies for f, runs in _submit(pool, study, stage)}
            try:
                for future in as_completed(futures):
                    bar.update(future.result(), futures[future])
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _submit(pool: Executor, study: Study, stage: str) -> list[tuple[Future, int]]:
    """The stage's lots as futures, each with its number of runs."""
    where = (study.settings, study.store.root, str(study.device))
    return [(pool.submit(_compute, *where, lot), _runs(lot)) for lot in _lots(study, stage)]


def _runs(nodes: Sequence[Node]) -> int:
    """How many of them are trained."""
    return sum(node.epochs > 0 for node in nodes)


def _end_with_parent() -> None:
    """In a worker: stop when the process that started it is gone, however it went."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _compute(settings: Settings, root: Path, device: str, lot: list[Node]) -> int:
    """In a worker: make one lot; returns its epochs, for the progress bar."""
    _study(settings.model_dump_json(), root, device).compute(lot)
    return sum(node.epochs for node in lot)


@lru_cache(maxsize=2)
def _study(settings: str, root: Path, device: str) -> Study:
    """A worker keeps the studies that it works on, with their data."""
    return Study(Settings.model_validate_json(settings), Store(root), device)
