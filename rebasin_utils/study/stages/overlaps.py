"""How much of A's ticket B's own pruning keeps: as it is, permuted by π, permuted at random.

Metrics: `overlaps`, each with sparsity, kind, overlap (share of A's kept weights).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd
import torch

from rebasin_utils.nets import masks
from rebasin_utils.study.seeds import derive_seed
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage
from rebasin_utils.study.stages import imp, matching
from rebasin_utils.study.stages.trained import read
from rebasin_utils.symmetry.permutation import permute, random_permutation


class Overlaps(Stage):
    name = "overlaps"

    def wanted(self, settings: Settings) -> Iterable[Node]:
        if settings.imp.prune_b:
            for seed in settings.pairs:
                for sparsity in settings.sparse.sparsities:
                    yield of_pair(settings, seed, sparsity)

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        for node in nodes:
            begin = time.monotonic()
            generator = torch.Generator().manual_seed(derive_seed("overlaps", node.seed))
            mask, own = (run.state(ticket, "mask") for ticket in node.parents[1:])
            moves = {
                "permuted": run.tensors(node.parents[0]),
                "random_permutation": random_permutation(run.spec, generator),
            }
            kinds = {"mask": mask} | {n: permute(run.spec, p, mask) for n, p in moves.items()}
            found = [
                {"sparsity": node.at["sparsity"], "kind": kind, "overlap": masks.overlap(m, own)}
                for kind, m in kinds.items()
            ]
            metrics = {"overlaps": found}
            yield Made(node, {"metrics": metrics, "seconds": time.monotonic() - begin})


OVERLAPS = Overlaps()


def of_pair(settings: Settings, seed: int, sparsity: float) -> Node:
    """The overlaps of a pair's two tickets at a sparsity."""
    tickets = (imp.ticket(settings, role, seed, sparsity) for role in "AB")
    parents = (matching.of_pair(settings, seed), *tickets)
    at = {"seed": seed, "sparsity": sparsity}
    label = f"S{sparsity:.4g}-seed{seed}"
    return OVERLAPS.node(settings, label, at, dict(at), parents)


def table(study: Reader) -> pd.DataFrame:
    """Share of A's ticket that B's own pruning keeps, too: sparsity, seed, kind, overlap.

    kind: `mask` as it is, `permuted` by π, or by a `random_permutation`.
    """
    rows = [
        {"sparsity": each["sparsity"], "seed": node.seed, **each}
        for node, metrics in read(study, "overlaps")
        for each in metrics["overlaps"]
    ]
    return pd.DataFrame(rows)
