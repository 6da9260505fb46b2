"""Sparse runs: A with its ticket (LTH), or B with what a method makes of A's ticket.

The grid has one run for every method, sparsity, rewind epoch and pair; controls are run in the cell
that is looked at closer. Beyond the grid, ensembles start from other nets or shuffle the data
otherwise, early matching and few images take another π, budgets another number of epochs, and
rescaling another scale of the weights.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from rebasin_utils.nets import masks
from rebasin_utils.nets.masks import Mask
from rebasin_utils.study.parts import SparseMethod
from rebasin_utils.study.seeds import derive_seed
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage, chunks
from rebasin_utils.study.stages import dense, imp, matching
from rebasin_utils.study.stages.trained import made, row, tested
from rebasin_utils.symmetry.permutation import permute, random_permutation
from rebasin_utils.training.train import TOGETHER, Job

#: Where a run of the grid stands; one that does anything otherwise has more to say.
OF_THE_GRID = {"method", "sparsity", "rewind_epoch", "seed"}


class Sparse(Stage):
    name = "sparse"
    keeps = ("final",)

    def wanted(self, settings: Settings) -> Iterable[Node]:
        for rewind_epoch in settings.sparse.rewind_epochs:
            for sparsity in settings.sparse.sparsities:
                for method in settings.sparse.methods:
                    for seed in settings.pairs:
                        yield one(settings, method, sparsity, rewind_epoch, seed)
        if settings.looks_closer:
            look = settings.closer_look
            for method in look.controls:
                for seed in settings.pairs:
                    yield one(settings, method, look.sparsity, look.rewind_epoch, seed)

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        used = [mask_for(run, node) for node in nodes]
        jobs = [job(run, node, mask) for node, mask in zip(nodes, used, strict=True)]
        recipe = run.settings.sparse_recipe(*self.alike(nodes[0]))
        done = run.train(nodes, jobs, recipe)
        for node, mask, trained, test in zip(nodes, used, done, tested(run, done), strict=True):
            yield made(run, node, trained, test, mask)

    def alike(self, node: Node) -> Hashable:
        return node.at["rewind_epoch"], node.epochs

    def lots(self, nodes: Sequence[Node], together: bool) -> list[list[Node]]:
        if not nodes:
            return []
        order = nodes[0].settings.sparse.rewind_epochs.index
        ordered = sorted(nodes, key=lambda n: (order(n.at["rewind_epoch"]), -n.epochs))
        return [
            lot
            for _, alike in groupby(ordered, key=self.alike)
            for lot in chunks(alike, TOGETHER if together else 1)
        ]

    def rows(self, node: Node, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        if set(node.at) != OF_THE_GRID:
            return []
        at = node.at
        columns = {name: at[name] for name in ("method", "sparsity", "rewind_epoch")}
        return [row(node, record, net="A" if at["method"] == "lth" else "B", **columns)]


SPARSE = Sparse()


def one(
    settings: Settings,
    method: SparseMethod,
    sparsity: float,
    rewind_epoch: int,
    seed: int,
    *,
    net: tuple[str, int] | None = None,
    order: int = 0,
    match_epoch: int | None = None,
    match_images: int | None = None,
    epochs: int | None = None,
    rescale: str = "",
) -> Node:
    """One sparse run.

    Args:
        net: role and seed of the net to start from, if not the pair's own.
        order: another order of the data than the grid's, which is 0.
        match_epoch: of a permuted run, the epoch of B that π was matched with, if not its last.
        match_images: of a permuted run, how many images π was matched on, if not as many as the
            grid's.
        epochs: trained for so many, if not as the grid's.
        rescale: the basis of `masks.sparse_aware`, where the start is rescaled to the mask.
    """
    role, of = net or ("A" if method == "lth" else "B", seed)
    start = dense.state_after(settings, role, of, settings.saved_epoch(rewind_epoch))
    parents = (start, imp.ticket(settings, "A", seed, sparsity))
    if method == "permuted":
        parents += (matching.of_pair(settings, seed, net, match_epoch, match_images),)
    recipe = settings.sparse_recipe(rewind_epoch, epochs)
    facts = {"method": method, "sparsity": sparsity, "recipe": recipe.facts(), "seed": seed}
    at = {"method": method, "sparsity": sparsity, "rewind_epoch": rewind_epoch, "seed": seed}
    label = f"{method}-S{sparsity:.4g}-k{rewind_epoch}-seed{seed}"
    if net is not None:
        at["net"] = f"{role}{of}"
        label += f"-from-{role}{of}"
    if order:
        facts["order"] = at["order"] = order
        label += f"-order{order}"
    if match_epoch is not None:
        at["match_epoch"] = match_epoch
        label += f"-at-epoch{match_epoch}"
    if match_images is not None:
        at["match_images"] = match_images
        label += f"-on-{match_images}-images"
    if recipe != settings.sparse_recipe(rewind_epoch):
        at["epochs"] = recipe.epochs
        label += f"-{recipe.epochs}-epochs"
    if rescale:
        facts["rescale"] = at["rescale"] = rescale
        label += f"-rescaled-by-{rescale}"
    return SPARSE.node(settings, label, at, facts, parents, recipe.epochs)


def job(run: Reader, node: Node, mask: Mask) -> Job:
    """How the run of a node is trained."""
    order = (node.at["order"],) if "order" in node.at else ()
    start = run.state(node.parents[0])
    if "rescale" in node.at:
        start = masks.sparse_aware(mask, start, node.at["rescale"])
    return Job(start, derive_seed("sparse", node.seed, *order), mask)


def mask_for(run: Reader, node: Node) -> Mask:
    """What a run's method makes of A's ticket."""
    method, sparsity = node.at["method"], node.at["sparsity"]
    mask = run.state(node.parents[1], "mask")
    generator = torch.Generator().manual_seed(derive_seed(method, node.seed, sparsity))
    if method == "permuted":
        return permute(run.spec, run.tensors(node.parents[2]), mask)
    if method == "random_permutation":
        return permute(run.spec, random_permutation(run.spec, generator), mask)
    if method == "random_mask":
        return masks.random_layerwise(mask, generator)
    return mask
