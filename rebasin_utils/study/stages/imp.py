"""Tickets: iterative magnitude pruning of a dense net, a node a round.

Each round starts from the full round before it; the rounds that land on a target sparsity draw its
ticket (`training.pruning`). An artifact holds the fine-tuned net (`final`) and the `mask`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pandas as pd

from rebasin_utils.nets import masks
from rebasin_utils.nets.masks import Mask
from rebasin_utils.study.seeds import derive_seed
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage
from rebasin_utils.study.stages import dense
from rebasin_utils.study.stages.trained import ROLES, made, row, tested
from rebasin_utils.training import pruning
from rebasin_utils.training.pruning import Round


class Imp(Stage):
    name = "imp"
    keeps = ("final", "mask")

    def wanted(self, settings: Settings) -> Iterable[Node]:
        for role in ROLES if settings.imp.prune_b else ("A",):
            for seed in settings.pairs:
                for step in rounds(settings):
                    yield after(settings, role, seed, step)

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        step = _round(nodes[0])
        dense.refuse_diverged(run, [node.parents[0] for node in nodes])
        names = masks.prunable(run.model, run.settings.imp.prune_shortcuts)
        states = [run.state(node.parents[-1]) for node in nodes]
        before = [
            run.state(node.parents[-1], "mask")
            if len(node.parents) > 1
            else masks.dense_mask(state, names)
            for node, state in zip(nodes, states, strict=True)
        ]
        pruned = [pruning.prune(s, m, step.sparsity) for s, m in zip(states, before, strict=True)]
        seeds = [derive_seed("imp", node.at["role"], node.seed) for node in nodes]
        jobs = pruning.tuning(states, pruned, seeds, step)
        recipe = pruning.recipe_of(step, run.settings.imp.recipe)
        done = run.train(nodes, jobs, recipe)
        for node, mask, trained, test in zip(nodes, pruned, done, tested(run, done), strict=True):
            yield made(run, node, trained, test, mask, mask=mask)

    def alike(self, node: Node) -> Hashable:
        return node.at["round"], node.at["sparsity"]

    def lots(self, nodes: Sequence[Node], together: bool) -> list[list[Node]]:
        return dense.of_whole_nets(nodes, together)

    def rows(self, node: Node, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        step = _round(node)
        if not step.targets:
            return []
        columns = dict(method="imp", net=node.at["role"], sparsity=step.targets[0])
        return [row(node, record, **columns, epochs=node.epochs * step.number)]


IMP = Imp()


@lru_cache(maxsize=256)
def rounds(settings: Settings) -> tuple[Round, ...]:
    """The pruning rounds that the sparsities ask for, in order."""
    sparsities, tolerance = settings.sparse.sparsities, settings.as_released.imp_tolerance
    return tuple(pruning.schedule(sparsities, tolerance))


@lru_cache(maxsize=4096)
def after(settings: Settings, role: str, seed: int, step: Round) -> Node:
    """One pruning round of a net's trajectory."""
    full = {r.number: r for r in rounds(settings) if r.full and r.number}
    before = full.get(step.number - 1)
    parents = (dense.net(settings, role, seed),)
    parents += (after(settings, role, seed, before),) if before else ()
    depends_on = {
        "recipe": settings.imp.recipe.facts(),
        "number": step.number,
        "sparsity": step.sparsity,
        "prune_shortcuts": settings.imp.prune_shortcuts,
    }
    at = {"role": role, "seed": seed, "round": step.number, "sparsity": step.sparsity}
    epochs = settings.imp.epochs if step.number else 0
    return IMP.node(settings, f"{role}-{step.name}-seed{seed}", at, depends_on, parents, epochs)


def ticket(settings: Settings, role: str, seed: int, sparsity: float) -> Node:
    """The pruning round that drew a net's ticket at `sparsity`."""
    step = next(r for r in rounds(settings) if sparsity in r.targets)
    return after(settings, role, seed, step)


def mask(study: Reader, seed: int, sparsity: float, role: str = "A") -> Mask:
    """The ticket of net A (or B) of a pair."""
    return study.state(ticket(study.settings, role, seed, sparsity), "mask")


def trajectory(study: Reader, role: str = "A") -> pd.DataFrame:
    """Pruning, round by round: seed, round, sparsity, test_accuracy; round 0 is the dense net."""
    rows = []
    for seed in study.settings.pairs:
        nodes = [dense.net(study.settings, role, seed)]
        nodes += [after(study.settings, role, seed, step) for step in rounds(study.settings)]
        for node in nodes:
            metrics = study.record(node)["metrics"]
            rows.append(
                {
                    "seed": seed,
                    "round": node.at.get("round", 0),
                    "sparsity": metrics["prunable_sparsity"],
                    "test_accuracy": metrics["test_accuracy"],
                }
            )
    return pd.DataFrame(rows).sort_values(["seed", "sparsity"], ignore_index=True)


def _round(node: Node) -> Round:
    number, sparsity = node.at["round"], node.at["sparsity"]
    return next(r for r in rounds(node.settings) if (r.number, r.sparsity) == (number, sparsity))
