"""Run studies: every missing artifact, in this process, in several, or on a cluster.

The plan's lots become tasks; a lot is computed as soon as those that hold its parents are. The
workers share the store, so nothing but names and counts travels between them. The lots and the
arithmetic do not depend on who computes them, and neither do the results.
"""

from __future__ import annotations

import copy
import math
import os
import traceback
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rebasin_utils.errors import InputError
from rebasin_utils.nets.batches import in_order
from rebasin_utils.nets.devices import cores
from rebasin_utils.running import cluster as clusters
from rebasin_utils.running import crew, ranked
from rebasin_utils.running.dag import Event, Noticed, Outcome, Report, Task, execute
from rebasin_utils.running.progress import Progress
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Node
from rebasin_utils.study.store import Store
from rebasin_utils.study.study import Study
from rebasin_utils.training import ranks
from rebasin_utils.training.stacking import stackable


def run(
    studies: Study | Sequence[Study],
    stages: Sequence[str] | None = None,
    workers: int | None = None,
    quiet: bool = False,
    cluster: str | Path | None = "local",
    shipped_will_do: bool = False,
) -> int:
    """Compute what the store lacks of these studies, and return how many artifacts that were.

    Args:
        stages: only these, not all; what they depend on is computed with them.
        shipped_will_do: leave alone the studies whose every record can be read, from the store or
            from what ships; for readers who need no tensors.
        workers: local processes; None is `REBASIN_WORKERS`, or one per CPU core, or one per GPU
            where one is used. One worker is this process itself.
        quiet: no progress bar.
        cluster: "local", a YAML file that describes a cluster (`cluster.Local`, `cluster.Slurm`),
            the address of a running Dask scheduler, or None for this process. Remote workers need
            this package and the store's folder at its path.

    Under `torchrun` all processes that it started train every run together (`crew`); the first
    computes the studies, and the others return 0.

    Raises:
        InputError: when an argument is not allowed, or a net that is needed diverged.
        StoreError: when the store cannot be written any more.
        RunError: when something else failed; whatever did not depend on it is computed first.
    """
    studies = [studies] if isinstance(studies, Study) else list(studies)
    if shipped_will_do:
        studies = [study for study in studies if study.unread(stages)]
        if not studies:
            return 0
    if ranks.started():
        crew.refuse_more_processes(workers, cluster)
        work = partial(_run, studies, stages, None, quiet)
        return crew.compute(studies, work)
    return _run(studies, stages, _place(cluster, workers, studies), quiet)


def _run(
    studies: Sequence[Study],
    stages: Sequence[str] | None,
    where: clusters.Local | clusters.Slurm | str | None,
    quiet: bool,
) -> int:
    lots = _lots(studies, stages)
    if not lots:
        return 0
    for study in studies:
        study.check()
    if isinstance(where, clusters.Local):
        where = where.model_copy(update={"workers": min(where.workers, len(lots))})
    here = where is None or where == clusters.Local(workers=1)
    with ExitStack() as open_now:
        client = None
        if not here:
            scratch = studies[0].store.root / ".cluster"
            client = open_now.enter_context(clusters.connected(where, studies[0].device, scratch))
        images = sum(lot.epochs * len(lot.study.split("train")) for lot in lots)
        totals = sum(lot.runs for lot in lots), sum(lot.epochs for lot in lots), images
        bar = open_now.enter_context(Progress(*totals, quiet))
        if client is not None and not quiet:
            tqdm.write(f"dashboard: {client.dashboard_link}")
        device = None if isinstance(where, clusters.Local) else getattr(where, "device", "auto")
        count = where.gpus if isinstance(where, clusters.Slurm) else 1
        computed = () if here else {lot.study for lot in lots}
        work = {study: _work_of_an_epoch(study) for study in computed}
        tasks = [lot.task(here, device, count, work.get(lot.study, 1)) for lot in lots]
        patience = 120 if isinstance(where, clusters.Local) else math.inf
        outcomes = execute(tasks, client, _Display(lots, bar), patience)
    _complain(lots, outcomes)
    return sum(len(lot.nodes) for lot in lots)


def results(studies: Sequence[Study]) -> pd.DataFrame:
    """The tables of several studies as one."""
    return pd.concat([study.results() for study in studies], ignore_index=True)


def default_workers(device: torch.device) -> int:
    """`REBASIN_WORKERS`, else one process per core, or per GPU where `device` is one."""
    text = os.environ.get("REBASIN_WORKERS")
    if text is not None:
        if not text.isdecimal():
            raise InputError(f"REBASIN_WORKERS = {text!r}: must be a whole number")
        return int(text)
    if device.type == "cuda":
        return torch.cuda.device_count() if device.index is None else 1
    return cores()


def _place(
    cluster: str | Path | None, workers: int | None, studies: Sequence[Study]
) -> clusters.Local | clusters.Slurm | str | None:
    """Where to compute; None is here."""
    if cluster == "local":
        workers = default_workers(studies[0].device) if workers is None else workers
        if not 1 <= workers <= 1024:
            raise InputError(f"workers = {workers}: must be at least 1, and at most 1024")
        return clusters.Local(workers=workers)
    if workers is not None:
        raise InputError(f"workers = {workers}: only goes with cluster = 'local'")
    return None if cluster is None else clusters.find(cluster)


# ------------------------------------------------------------------------ lots


@dataclass(frozen=True)
class _Lot:
    """Nodes that one task computes. after: the names of the lots that hold what they need."""

    study: Study
    nodes: tuple[Node, ...]
    after: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        first = self.nodes[0].key
        return f"{first.stage}-{first.digest}"

    @property
    def epochs(self) -> int:
        return sum(node.epochs for node in self.nodes)

    @property
    def runs(self) -> int:
        return sum(node.epochs > 0 for node in self.nodes)

    def task(self, here: bool, device: str | None, ranks: int, work: int) -> Task:
        """What computes it, in this process or in another, which may start several ranks.

        work: of an epoch; of what trains nothing, a node counts as one.
        """
        study, cost = self.study, work * sum(node.epochs or 1 for node in self.nodes)
        if here:
            compute = partial(_compute, study, self.nodes)
            return Task(self.name, compute, (), self.after, cost)
        settings = study.settings.model_dump_json()
        digests = tuple(node.key.digest for node in self.nodes)
        where = (settings, study.store.root, device or study.device.type)  # its GPU is the first
        if ranks > 1:
            arguments = (*where, digests, ranks)
            return Task(self.name, _compute_by_ranks, arguments, self.after, cost)
        return Task(self.name, _compute_there, (*where, digests), self.after, cost)


def _work_of_an_epoch(study: Study) -> int:
    """Multiply-adds of a forward pass on all training images, in linear layers and convolutions.

    By which studies are compared: a residual net's epoch takes as long as twenty of a small MLP,
    and what takes long must not be left to the end, where the other workers would wait for it.
    """
    images, net, each = study.split("train"), copy.deepcopy(study.model).eval(), [1]

    def count(module: nn.Module, inputs: object, outputs: Tensor) -> None:
        each.append(module.weight.numel() * (outputs.numel() // len(module.weight)))

    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(count)
    few, _ = next(in_order(images.head(1), 1))
    with torch.no_grad():
        net.to(few.device)(few)
    return sum(each) * len(images)


def _lots(studies: Sequence[Study], stages: Sequence[str] | None) -> list[_Lot]:
    """The plans' lots without what the stores have, and with what they depend on.

    A node that two studies share is in the first one's lot.
    """
    lots: list[_Lot] = []
    lot_of: dict[tuple[Path, str], int] = {}
    for study in studies:
        wanted = _with_missing_parents(study, study.missing(stages))
        together = stackable(study.model)
        for stage in study.plan.stages:
            for lot in study.plan.tasks(stage, together):
                mine = [(study.store.root, node.key.digest) for node in lot]
                nodes = tuple(
                    node
                    for node, place in zip(lot, mine, strict=True)
                    if node.key.digest in wanted and place not in lot_of
                )
                if nodes:
                    lot_of |= dict.fromkeys(
                        ((study.store.root, node.key.digest) for node in nodes), len(lots)
                    )
                    lots.append(_Lot(study, nodes))
    return [_Lot(lot.study, lot.nodes, _after(i, lots, lot_of)) for i, lot in enumerate(lots)]


def _after(number: int, lots: Sequence[_Lot], lot_of: dict[tuple[Path, str], int]) -> tuple:
    lot = lots[number]
    needed = {
        lot_of.get((lot.study.store.root, before.key.digest), number)
        for node in lot.nodes
        for before in _before(node)
    }
    return tuple(lots[i].name for i in sorted(needed - {number}))


def _before(node: Node) -> Iterable[Node]:
    return node.parents if node.made_by is None else (*node.parents, node.made_by)


def _with_missing_parents(study: Study, nodes: Iterable[Node]) -> set[str]:
    """The digests of these nodes and of all that must be computed before them."""
    wanted: set[str] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node.key.digest not in wanted:
            wanted.add(node.key.digest)
            left += [parent for parent in node.parents if parent.key not in study.store]
    return wanted


# ------------------------------------------------------------------------ computing


def _compute(study: Study, nodes: Sequence[Node], report: Report) -> None:
    """Make one lot; what went wrong is noted in the store."""
    try:
        study.compute(nodes, report)
    except Exception as error:
        why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        for node in nodes:
            if node.key not in study.store:
                study.store.put_failure(node.key, why, traceback.format_exc())
        raise


def _compute_there(
    settings: str, root: Path, device: str, digests: Sequence[str], report: Report
) -> None:
    """In a worker: the same, from names."""
    study, nodes = _known(settings, root, device)
    _compute(study, [nodes[digest] for digest in digests], report)


def _compute_by_ranks(
    settings: str, root: Path, device: str, digests: Sequence[str], count: int, report: Report
) -> None:
    """In a worker with several GPUs: the same by as many ranks; they report nothing on the way."""
    ranked.compute(settings, root, device, digests, count)


@cache
def _known(settings: str, root: Path, device: str) -> tuple[Study, dict[str, Node]]:
    """A worker keeps the studies that it works on, with their data and their proofs."""
    study = Study(Settings.model_validate_json(settings), Store(root), device)
    return study, {node.key.digest: node for node in study.plan.all_nodes()}


# ------------------------------------------------------------------------ telling


class _Display:
    """Moves the progress bar along with what happens; a task that starts again counts once."""

    def __init__(self, lots: Sequence[_Lot], bar: Progress):
        self._left = {lot.name: lot.epochs for lot in lots}
        self._runs = {lot.name: lot.runs for lot in lots}
        self._bar = bar

    def __call__(self, event: Event) -> None:
        if isinstance(event, Noticed):
            tqdm.write(event.sentence)
            return
        left = self._left[event.task]
        ended = isinstance(event, Outcome)
        done = left if ended else min(event.done, left)
        self._left[event.task] = left - done
        self._bar.stage(event.task.partition("-")[0])
        self._bar.update(done, self._runs[event.task] if ended else 0)


def _complain(lots: Sequence[_Lot], outcomes: Sequence[Outcome]) -> None:
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not failed:
        return
    for outcome in failed:
        if not outcome.traceback:  # nobody was left to note it
            _note(next(lot for lot in lots if lot.name == outcome.task), outcome.why)
    first = next((o for o in failed if o.kind is InputError), failed[0])
    alike = [outcome.task.partition("-")[0] for outcome in failed if outcome.why == first.why]
    skipped = sum(outcome.state == "skipped" for outcome in outcomes)
    store = next(lot for lot in lots if lot.name == first.task).study.store
    where = "" if first.kind is InputError else f" (details: {store.root / '.failed'})"
    raise first.kind(
        f"{', '.join(sorted(set(alike)))}: {first.why}{where}; {len(failed)} of {len(lots)} tasks "
        f"failed, {skipped} that need them were not begun, everything else is stored"
    )


def _note(lot: _Lot, why: str) -> None:
    for node in lot.nodes:
        if node.key not in lot.study.store:
            lot.study.store.put_failure(node.key, why)
