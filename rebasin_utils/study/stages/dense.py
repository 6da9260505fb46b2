"""Dense nets: A and B of every pair, each from its own init, and their states on the way.

`rewind` is the state of a dense run after so many epochs, 0 being the init. It is stored when the
run is made; an epoch that is asked for later costs only the epochs up to it, and nothing else is
computed again. Where a user brings the nets (`dense.from`), both are read from files.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, groupby
from typing import Any

from rebasin_utils.errors import InputError
from rebasin_utils.study.seeds import derive_seed
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Stage, chunks
from rebasin_utils.study.stages import brought
from rebasin_utils.study.stages.trained import ROLES, made, named, row, tested
from rebasin_utils.training.train import TOGETHER, Job, Trained


class Dense(Stage):
    name = "dense"
    version = 2
    keeps = ("final",)

    def check(self, settings: Settings) -> None:
        brought.check(settings)

    def wanted(self, settings: Settings) -> Iterable[Node]:
        for seed in settings.pairs:
            for role in ROLES:
                yield net(settings, role, seed)

    def ready(self, run: Context) -> None:
        if brought.are(run.settings):
            deque(brought.states(run, run.nodes("dense") + run.nodes("rewind")), maxlen=0)

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        if brought.are(run.settings):
            done = [Trained(state, {}, [], False, 0.0) for state in brought.states(run, nodes)]
            _refuse_changed(nodes)
            for node, trained, test in zip(nodes, done, tested(run, done), strict=True):
                yield made(run, node, trained, test, None)
            return
        states = [run.byproducts(node) for node in nodes]
        jobs = [
            _job(run, node, tuple(state.at["epoch"] for state in kept))
            for node, kept in zip(nodes, states, strict=True)
        ]
        done = run.train(nodes, jobs, run.settings.dense)
        for node, kept, trained, test in zip(nodes, states, done, tested(run, done), strict=True):
            for state in kept:
                tensors = named("final", trained.snapshots[state.at["epoch"]])
                yield Made(state, {"seconds": 0.0}, tensors)
            yield made(run, node, trained, test, None)

    def alike(self, node: Node) -> Hashable:
        return "all"

    def lots(self, nodes: Sequence[Node], together: bool) -> list[list[Node]]:
        return of_whole_nets(nodes, together)

    def rows(self, node: Node, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [row(node, record, method="dense", net=node.at["role"])]


class Rewind(Stage):
    name = "rewind"
    version = 2
    keeps = ("final",)

    def wanted(self, settings: Settings) -> Iterable[Node]:
        return ()  # whoever starts from such a state depends on it

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        epoch = nodes[0].at["epoch"]
        if brought.are(run.settings):
            states = list(brought.states(run, nodes))
            _refuse_changed(nodes)
            for node, state in zip(nodes, states, strict=True):
                yield Made(node, {"seconds": 0.0}, named("final", state))
            return
        jobs = [_job(run, node, (epoch,)) for node in nodes]
        for node, trained in zip(
            nodes, run.train(nodes, jobs, run.settings.dense, until=epoch), strict=True
        ):
            yield Made(node, {"seconds": trained.seconds}, named("final", trained.state))

    def alike(self, node: Node) -> Hashable:
        return node.at["epoch"]

    def lots(self, nodes: Sequence[Node], together: bool) -> list[list[Node]]:
        ordered = sorted(nodes, key=lambda n: (n.at["epoch"], n.seed, n.at["role"]))
        return [
            lot
            for _, of_one_epoch in groupby(ordered, key=lambda n: n.at["epoch"])
            for lot in chunks(of_one_epoch, TOGETHER if together else 1)
        ]


DENSE, REWIND = Dense(), Rewind()


def net(settings: Settings, role: str, seed: int) -> Node:
    """Net A or B of a pair, trained from its own init."""
    at = {"role": role, "seed": seed}
    facts = _facts(settings, role, seed)
    epochs = 0 if brought.are(settings) else settings.dense.epochs
    return DENSE.node(settings, f"{role}-seed{seed}", at, facts, epochs=epochs)


def state_after(settings: Settings, role: str, seed: int, epoch: int) -> Node:
    """The state of a dense run after `epoch` epochs; 0 is its init."""
    at = {"role": role, "seed": seed, "epoch": epoch}
    label = f"{role}-epoch{epoch}-seed{seed}"
    if brought.are(settings):
        return REWIND.node(settings, label, at, _facts(settings, role, seed, epoch))
    facts = _facts(settings, role, seed) | {"after": epoch}
    return REWIND.node(settings, label, at, facts, made_by=net(settings, role, seed))


def of_whole_nets(nodes: Sequence[Node], together: bool) -> list[list[Node]]:
    """Lots in which each net has all its nodes, a few nets each."""
    nets = {}
    for node in nodes:
        net = node.settings.data.source, node.at["role"], node.seed
        nets.setdefault(net, []).append(node)
    return [
        list(chain.from_iterable(lot))
        for lot in chunks(nets.values(), TOGETHER // 3 if together else 1)
    ]


def refuse_diverged(run: Context, nodes: Iterable[Node]) -> None:
    """A net that diverged can be neither matched nor pruned.

    Raises:
        InputError: one sentence, with a way out.
    """
    for node in nodes:
        if run.record(node).get("metrics", {}).get("diverged"):
            raise InputError(
                f"net {node.at['role']} of pair {node.seed} diverged in its dense training, so it "
                f"can be neither matched nor pruned; try a smaller dense.lr than "
                f"{run.settings.dense.lr}"
            )


def _facts(settings: Settings, role: str, seed: int, epoch: int | None = None) -> dict[str, Any]:
    if brought.are(settings):
        how = brought.facts(settings, role, seed, epoch)
    else:
        how = {"recipe": settings.dense.facts()}
    all_share = _nets_and_images(settings, int(time.monotonic() // 2))
    return {**all_share, **how, "role": role, "seed": seed}


def _refuse_changed(nodes: Iterable[Node]) -> None:
    """A file that was written anew since the plan was made would be stored as what it was."""
    for node in nodes:
        role, seed, epoch = node.at["role"], node.seed, node.at.get("epoch")
        now = (
            net(node.settings, role, seed)
            if epoch is None
            else state_after(node.settings, role, seed, epoch)
        )
        if now != node:
            path = brought.file_of(node.settings, role, seed, epoch)
            raise InputError(f"checkpoint = {str(path)!r}: it has changed since it was planned for")


@lru_cache(maxsize=64)
def _nets_and_images(settings: Settings, moment: int) -> dict[str, Any]:
    """What all of a study depends on; a plan asks for it hundreds of times.

    moment: two seconds, for the content of a user's own files may change.
    """
    return {**settings.data.facts(), **settings.model.facts()}


def _job(run: Context, node: Node, snapshots: tuple[int, ...]) -> Job:
    role, seed = node.at["role"], node.seed
    init = run.fresh(derive_seed("init", role, seed)).state_dict()
    return Job(init, derive_seed("data", role, seed), snapshots=snapshots)
