"""Tickets with signs: LRR, AWS and, at equal epochs, fine-tuning; a node a round.

All begin with A's (or B's) init: a dense warm-up, then rounds of global pruning in which the
weights are trained on (`training.pruning`). They differ in how a round is trained: LRR at the
warm-up's rate, AWS so, with norm layers interpolated (Oh et al. 2025), fine-tuning at a small rate,
as IMP. An artifact holds the net (`final`, its batch norms' statistics recomputed) and the `mask`
that it was trained under.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

from rebasin_utils.nets import masks
from rebasin_utils.study.parts import Procedure
from rebasin_utils.study.seeds import derive_seed
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Stage
from rebasin_utils.study.stages import dense
from rebasin_utils.study.stages.merged import with_statistics
from rebasin_utils.study.stages.trained import made, tested
from rebasin_utils.training import pruning
from rebasin_utils.training.pruning import Round
from rebasin_utils.training.recipes import Recipe


class _Procedure(Stage):
    keeps = ("final", "mask")
    interpolates: ClassVar[bool] = False

    def wanted(self, settings: Settings) -> Iterable[Node]:
        return ()  # whoever transfers from a ticket depends on it

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        step = _numbered(run.settings, nodes[0].at["round"])
        states = [run.state(node.parents[0]) for node in nodes]
        names = masks.prunable(run.model, include_shortcuts=True, include_classifier=False)
        before = [
            run.state(node.parents[0], "mask") if step.number else masks.dense_mask(state, names)
            for node, state in zip(nodes, states, strict=True)
        ]
        pruned = [pruning.prune(s, m, step.sparsity) for s, m in zip(states, before, strict=True)]
        seeds = [derive_seed("rounds", node.at["role"], node.seed) for node in nodes]
        draws = [derive_seed("aws", node.at["role"], node.seed) for node in nodes]
        jobs = pruning.tuning(states, pruned, seeds, step, draws if self.interpolates else None)
        done = [
            replace(trained, state=with_statistics(run, trained.state))
            for trained in run.train(nodes, jobs, _recipe(run.settings, self.name, step))
        ]
        for node, mask, trained, test in zip(nodes, pruned, done, tested(run, done), strict=True):
            yield made(run, node, trained, test, mask, mask=mask)

    def alike(self, node: Node) -> Hashable:
        return node.at["round"]

    def lots(self, nodes: Sequence[Node], together: bool) -> list[list[Node]]:
        return dense.of_whole_nets(nodes, together)


class Lrr(_Procedure):
    name = "lrr"


class Aws(_Procedure):
    name = "aws"
    interpolates = True


class Finetuning(_Procedure):
    name = "finetuning"


LRR, AWS, FINETUNING = Lrr(), Aws(), Finetuning()
_PROCEDURES = {stage.name: stage for stage in (LRR, AWS, FINETUNING)}


@lru_cache(maxsize=4096)
def after(settings: Settings, procedure: Procedure, role: str, seed: int, number: int) -> Node:
    """A net's ticket after so many rounds; 0 is its dense warm-up."""
    if number:
        parent = after(settings, procedure, role, seed, number - 1)
    else:
        parent = dense.state_after(settings, role, seed, 0)
    step = _numbered(settings, number)
    recipe = _recipe(settings, procedure, step)
    depends_on = {"recipe": recipe.facts(), "number": number, "rate": settings.signs.rate}
    at = {"role": role, "seed": seed, "round": number}
    label = f"{role}-round{number}-seed{seed}"
    stage = _PROCEDURES[procedure]
    return stage.node(settings, label, at, depends_on, (parent,), recipe.epochs)


def sparsity(settings: Settings, number: int) -> float:
    """The sparsity after so many rounds."""
    return pruning.full_sparsity(number, settings.signs.rate)


def _numbered(settings: Settings, number: int) -> Round:
    return Round(number, sparsity(settings, number), (), settings.signs.rate)


def _recipe(settings: Settings, procedure: str, step: Round) -> Recipe:
    signs = settings.signs
    small = procedure == "finetuning" and step.number
    warm_up = replace(settings.dense.recipe, epochs=signs.warm_up, lr=signs.lr, schedule="constant")
    tuned = replace(
        warm_up, epochs=signs.round_epochs, lr=signs.finetuning_lr if small else signs.lr
    )
    return pruning.recipe_of(step, tuned, warm_up)


def transfer_recipe(settings: Settings) -> Recipe:
    """The dense recipe with the signs' rate and epochs."""
    return replace(settings.dense.recipe, epochs=settings.signs.epochs, lr=settings.signs.lr)
