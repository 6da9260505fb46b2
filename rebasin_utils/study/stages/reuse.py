"""The mask on other data: A is trained and pruned on one data set, B is trained on another.

The rebuttal of Adnan et al. 2025 has a table of masks re-used on SVHN, without any details, so this
is ours. A, trained and pruned on the source, gives its mask m. B is trained from its own init on
the target, the study's own `data`. π matches A to B on the target's images, or, to compare, on the
source's. From B after k epochs: m as it is, π(m), a random mask of its layers' densities, and as
the measure B's own ticket, drawn on the target. No mask prunes the classifier, whose classes are
others.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import Field

from rebasin_utils.errors import InputError
from rebasin_utils.nets import data, masks
from rebasin_utils.nets.masks import Mask
from rebasin_utils.study.parts import Part
from rebasin_utils.study.seeds import derive_seed
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage, chunks
from rebasin_utils.study.stages import dense, imp, matching
from rebasin_utils.study.stages.trained import made, tested
from rebasin_utils.symmetry.permutation import permute
from rebasin_utils.training.train import TOGETHER, Job

Start = Literal["naive", "permuted", "permuted_by_source", "random_mask", "own"]
STARTS: tuple[Start, ...] = Start.__args__


class ReusePart(Part):
    """A mask from other data, put on this study's B in every cell of its grid."""

    source: str = Field(
        "",
        description="data set that A is trained and pruned on, of the same size and as many "
        "classes; none: off",
    )


class Reuse(Stage):
    name = "reuse"
    keeps = ("final",)
    Part = ReusePart

    def check(self, settings: Settings) -> None:
        if settings.reuse.source == settings.data.source:
            raise InputError(
                f"reuse.source = {settings.reuse.source!r}: must be other data than data.source"
            )

    def ready(self, run: Context) -> None:
        settings = run.settings
        if not settings.reuse.source:
            return
        ours, theirs = (
            data.source_of(s.data.source, s.data.reading) for s in (settings, source(settings))
        )
        if (ours.shape, ours.classes) != (theirs.shape, theirs.classes):
            raise InputError(
                f"reuse.source = {settings.reuse.source!r}: its images are {theirs.shape} in "
                f"{theirs.classes} classes, and those of data.source {ours.shape} in {ours.classes}"
            )

    def wanted(self, settings: Settings) -> Iterable[Node]:
        if not settings.reuse.source:
            return
        for sparsity in settings.sparse.sparsities:
            for rewind_epoch in settings.sparse.rewind_epochs:
                for start in STARTS:
                    for seed in settings.pairs:
                        yield one(settings, start, sparsity, rewind_epoch, seed)

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        used = [mask_for(run, node) for node in nodes]
        jobs = [
            Job(run.state(node.parents[0]), derive_seed("sparse", node.seed), mask)
            for node, mask in zip(nodes, used, strict=True)
        ]
        done = run.train(nodes, jobs, run.settings.sparse_recipe(nodes[0].at["rewind_epoch"]))
        for node, mask, trained, test in zip(nodes, used, done, tested(run, done), strict=True):
            yield made(run, node, trained, test, mask)

    def alike(self, node: Node) -> Hashable:
        return node.epochs

    def lots(self, nodes: Sequence[Node], together: bool) -> list[list[Node]]:
        ordered = sorted(nodes, key=self.alike)
        return [
            lot
            for _, alike in groupby(ordered, key=self.alike)
            for lot in chunks(alike, TOGETHER if together else 1)
        ]


REUSE = Reuse()


@lru_cache(maxsize=64)
def source(settings: Settings) -> Settings:
    """The study in which A is trained and pruned; nothing else of it is wanted here."""
    changes: dict[str, Any] = {
        "name": f"{settings.name}-source",
        "data.source": settings.reuse.source,
        "reuse.source": "",
        "sparse.methods": (),
    }
    return settings.with_values(**changes)


def one(settings: Settings, start: Start, sparsity: float, rewind_epoch: int, seed: int) -> Node:
    """A run of B on the target from one of `STARTS`."""
    begin = dense.state_after(settings, "B", seed, settings.saved_epoch(rewind_epoch))
    if start == "own":
        parents = (begin, imp.ticket(settings, "B", seed, sparsity))
    else:
        parents = (begin, imp.ticket(source(settings), "A", seed, sparsity))
    if start in ("permuted", "permuted_by_source"):
        parents += (between(settings, seed, on_source=start == "permuted_by_source"),)
    recipe = settings.sparse_recipe(rewind_epoch)
    facts = {"start": start, "sparsity": sparsity, "recipe": recipe.facts(), "seed": seed}
    at = {"start": start, "sparsity": sparsity, "rewind_epoch": rewind_epoch, "seed": seed}
    label = f"{start}-S{sparsity:.4g}-k{rewind_epoch}-seed{seed}"
    return REUSE.node(settings, label, at, facts, parents, recipe.epochs)


def between(settings: Settings, seed: int, on_source: bool) -> Node:
    """The permutation of A's units, trained on the source, that matches them to B's."""
    of = source(settings) if on_source else settings
    parents = (dense.net(source(settings), "A", seed), dense.net(settings, "B", seed))
    return matching.between(of, f"other-data-seed{seed}", {"seed": seed}, parents)


def mask_for(run: Reader, node: Node) -> Mask:
    """What a start makes of its ticket, without the classifier."""
    classifier = f"{masks.classifier(run.model)}.weight"
    ticket = run.state(node.parents[1], "mask")
    mask = {name: kept for name, kept in ticket.items() if name != classifier}
    if node.at["start"] == "random_mask":
        generator = torch.Generator().manual_seed(derive_seed("reuse", node.seed))
        return masks.random_layerwise(mask, generator)
    if len(node.parents) > 2:
        return permute(run.spec, run.tensors(node.parents[2]), mask)
    return mask


def table(study: Reader) -> pd.DataFrame:
    """Test accuracies on the target: start, sparsity, rewind_epoch, seed, test_accuracy (share)."""
    return pd.DataFrame(
        {**node.at, "test_accuracy": study.record(node)["metrics"]["test_accuracy"]}
        for node in study.nodes("reuse")
    )
