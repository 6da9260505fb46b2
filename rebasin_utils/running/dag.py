"""Tasks that depend on one another, executed in this process or on a Dask cluster.

A task starts as soon as those that it comes after are done. One that fails takes with it only what
comes after it. Nothing but names, numbers and sentences travels: tasks leave their results in
files.
"""

from __future__ import annotations

import math
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from graphlib import TopologicalSorter
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from rebasin_utils.errors import InputError, RanksLost, RunError, StoreError

if TYPE_CHECKING:
    from distributed import Client, Future

#: How a function tells what it has got done, in a unit of its own.
Report = Callable[[int], None]


@dataclass(frozen=True)
class Task:
    """A call of `function(*arguments, report)`, to be made after the tasks named in `after`.

    name: unique; what stands before its first dash is what the dashboard calls it. cost: relative
        to the other tasks'; the longest chains begin first.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple = ()
    after: tuple[str, ...] = ()
    cost: int = 1


@dataclass(frozen=True)
class Reported:
    """A running task has got this much done."""

    task: str
    done: int


@dataclass(frozen=True)
class Noticed:
    """Something that a person would want to be told, in a sentence."""

    sentence: str


@dataclass(frozen=True)
class Outcome:
    """A task has ended.

    state: "skipped" is for what comes after a task that failed. why: the sentence of a failure.
    kind: what was raised, as far as the caller deals with it otherwise. warnings: from a worker.
    """

    task: str
    state: Literal["done", "failed", "skipped"]
    result: Any = None
    why: str = ""
    kind: type[Exception] = RunError
    traceback: str = ""
    warnings: tuple[str, ...] = ()


#: Seconds without a scheduler after which it counts as gone; without a worker, until it is said.
SCHEDULER_PATIENCE, WORKER_PATIENCE = 10, 60

KEPT = "all that was finished is stored, run again to go on"
GONE = f"the cluster's scheduler is gone; {KEPT}"

Event = Reported | Noticed | Outcome
Tell = Callable[[Event], None]


def execute(
    tasks: Sequence[Task], client: Client | None, tell: Tell, patience: float = math.inf
) -> list[Outcome]:
    """Execute all tasks and return how each ended.

    Args:
        client: of the cluster; None is this process, one task at a time.
        tell: called with everything that happens, in this thread.
        patience: seconds to wait for workers when there are none; jobs may queue for ever.

    Raises:
        StoreError: as soon as a task raises it; what has not begun is not begun any more.
        RunError: when the cluster's scheduler is gone, or there are no workers.
    """
    order = TopologicalSorter({task.name: task.after for task in tasks}).static_order()
    known = {task.name: task for task in tasks}
    ordered = [known[name] for name in order]
    return _here(ordered, tell) if client is None else _there(ordered, client, tell, patience)


def _here(tasks: Sequence[Task], tell: Tell) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}
    for task in tasks:
        before = [outcomes[name] for name in task.after]
        report = partial(_tell_report, tell, task.name)
        outcome = _attempt(task.name, task.function, task.arguments, report, *before)
        outcomes[task.name] = outcome
        tell(outcome)
        _stop_if_nothing_can_go_on(outcome)
    return list(outcomes.values())


def _tell_report(tell: Tell, task: str, done: int) -> None:
    tell(Reported(task, done))


def _there(tasks: Sequence[Task], client: Client, tell: Tell, patience: float) -> list[Outcome]:
    from distributed import Future

    run = uuid.uuid4().hex[:8]  # two runs that share a scheduler share no names
    events: SimpleQueue[Event | Future] = SimpleQueue()
    client.subscribe_topic(run, lambda event: events.put(Reported(*event[1])))
    client.subscribe_topic("all", lambda event: _notice(event[1], run, events))
    first = _longest_first(tasks)
    futures: dict[str, Future] = {}
    names: dict[str, str] = {}
    for task in tasks:
        future = client.submit(
            _attempt_there,
            run,
            task.name,
            task.function,
            task.arguments,
            *[futures[name] for name in task.after],
            key=f"{task.name}-{run}",
            pure=False,
            priority=first[task.name],
        )
        futures[task.name], names[future.key] = future, task.name
        future.add_done_callback(events.put)
    outcomes: dict[str, Outcome] = {}
    try:
        while len(outcomes) < len(tasks):
            event = _next(events, client, patience)
            if isinstance(event, Future):
                event = _outcome(event, names)
                outcomes[event.task] = event
                for sentence in event.warnings:
                    tell(Noticed(sentence))
            tell(event)
            if isinstance(event, Outcome):
                _stop_if_nothing_can_go_on(event)
    finally:
        if client.status == "running":
            client.cancel(list(futures.values()))
            client.unsubscribe_topic(run)
            client.unsubscribe_topic("all")
    return list(outcomes.values())


def _next(events: SimpleQueue, client: Client, patience: float) -> Event | Future:
    """The next event; the client itself would wait for ever for what is gone."""
    begin = seen = time.monotonic()
    told = False
    while True:
        try:
            return events.get(timeout=1)
        except Empty:
            now = time.monotonic()
        if client.status != "running":
            if now - begin > SCHEDULER_PATIENCE:
                raise RunError(GONE)
            continue
        begin = now
        if client.scheduler_info(n_workers=1)["workers"]:
            seen = now
        elif now - seen > patience:
            raise RunError(f"no worker is left; {KEPT}")
        elif now - seen > WORKER_PATIENCE and not told:
            told = True
            events.put(Noticed("no worker is there; waiting for one"))


def _attempt_there(run: str, name: str, function: Callable, arguments: tuple, *before) -> Outcome:
    """In a worker: the same, with what is reported sent to the driver of this run."""
    from distributed import get_worker

    worker = get_worker()

    def report(done: int) -> None:
        worker.log_event(run, (name, done))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        outcome = _attempt(name, function, arguments, report, *before)
    said = (str(w.message) for w in caught if w.category is UserWarning)
    return replace(outcome, warnings=tuple(said))


def _attempt(
    name: str, function: Callable, arguments: tuple, report: Report, *before: Outcome
) -> Outcome:
    if any(outcome.state != "done" for outcome in before):
        return Outcome(name, "skipped")
    try:
        return Outcome(name, "done", function(*arguments, report))
    except Exception as error:
        kinds = (StoreError, InputError, RanksLost)
        kind = next((k for k in kinds if isinstance(error, k)), RunError)
        said = isinstance(error, InputError | RunError)
        why = str(error) if said else f"{type(error).__name__}: {error}"
        return Outcome(name, "failed", why=why, kind=kind, traceback=traceback.format_exc())


def _stop_if_nothing_can_go_on(outcome: Outcome) -> None:
    if outcome.kind in (StoreError, RanksLost):
        raise outcome.kind(outcome.why)


def _outcome(future: Future, names: dict[str, str]) -> Outcome:
    """How a future ended, its worker's deaths included."""
    from distributed.scheduler import KilledWorker

    name = names[future.key]
    if future.status == "finished":
        return future.result()
    error = future.exception() if future.status == "error" else None
    if not isinstance(error, KilledWorker):
        raise RunError(GONE) from error
    if names.get(error.task) != name:
        return Outcome(name, "skipped")
    return Outcome(
        name,
        "failed",
        why=f"{error.allowed_failures + 1} workers died while they had it, killed from outside or "
        "over their memory limit",
    )


def _notice(event: dict, run: str, events: SimpleQueue) -> None:
    """Tell of a worker that died in the middle of this run's tasks; others get them."""
    if event.get("action") != "remove-worker" or event.get("expected"):
        return
    lost = [key for key in event["processing-tasks"] if key.endswith(run)]
    if lost:
        events.put(
            Noticed(
                f"the worker {event['worker']} died, killed from outside or over its memory limit; "
                "its task starts again from its last checkpoint"
            )
        )


def _longest_first(tasks: Sequence[Task]) -> dict[str, int]:
    """Priorities: the cost of the longest chain of tasks that begins with this one."""
    costs = {task.name: task.cost for task in tasks}
    chain = dict(costs)
    for task in reversed(tasks):  # in topological order
        for name in task.after:
            chain[name] = max(chain[name], costs[name] + chain[task.name])
    return chain
