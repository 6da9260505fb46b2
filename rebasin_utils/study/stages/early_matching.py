"""Early matching: π from B as it was after few epochs (the paper's Appendix B, Table 15).

It wants permuted runs whose π was matched early. Metrics: `agreement`, the share of the units that
the early π and the grid's send to the same place.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage
from rebasin_utils.study.stages import imp, matching, sparse
from rebasin_utils.symmetry.permutation import Permutation


class EarlyMatching(Stage):
    name = "early_matching"

    def wanted(self, settings: Settings) -> Iterable[Node]:
        look, seeds = settings.closer_look, settings.pairs
        for seed in seeds:
            for epoch in look.match_epochs:
                yield matching.of_pair(settings, seed, epoch=epoch)
        if settings.looks_closer and "permuted" in settings.sparse.methods:
            for epoch in look.match_epochs:
                yield from (permuted(settings, seed, epoch) for seed in seeds)
        for seed in seeds:
            yield from (agreement(settings, seed, epoch) for epoch in look.match_epochs)

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        for node in nodes:
            begin = time.monotonic()
            early, final = (run.tensors(parent) for parent in node.parents)
            metrics = {"agreement": _agreement(early, final)}
            yield Made(node, {"metrics": metrics, "seconds": time.monotonic() - begin})


EARLY_MATCHING = EarlyMatching()


def permuted(settings: Settings, seed: int, epoch: int | None = None) -> Node:
    """The permuted run at the closer look's cell, its π matched with B after `epoch` epochs."""
    look = settings.closer_look
    cell = (look.sparsity, look.rewind_epoch, seed)
    return sparse.one(settings, "permuted", *cell, match_epoch=epoch)


def agreement(settings: Settings, seed: int, epoch: int) -> Node:
    """How far the π of an epoch is the final one."""
    parents = (matching.of_pair(settings, seed, epoch=epoch), matching.of_pair(settings, seed))
    at = {"seed": seed, "match_epoch": epoch}
    return EARLY_MATCHING.node(settings, f"epoch{epoch}-seed{seed}", at, {}, parents)


def _agreement(first: Permutation, second: Permutation) -> float:
    same = sum((first[name] == second[name]).sum().item() for name in second)
    return same / sum(len(index) for index in second.values())


def table(study: Reader) -> pd.DataFrame:
    """Permuted runs at the closer look's cell with an early π, and what they are measured by.

    Returns:
        sparsity, seed, method (permuted, naive or lth), match_epoch (of permuted; the last is that
        of the grid), test_accuracy, agreement (share of the units that this π and the grid's send
        to the same place).
    """
    s, rows = study.settings, []
    look = s.closer_look
    cell = (look.sparsity, look.rewind_epoch)
    for seed in s.pairs:
        runs = [("permuted", t, permuted(s, seed, t)) for t in look.match_epochs]
        runs += [("permuted", s.dense.epochs, permuted(s, seed))]
        others = [m for m in ("naive", "lth") if m in s.sparse.methods]
        runs += [(m, None, sparse.one(s, m, *cell, seed)) for m in others]
        for method, epoch, node in runs:
            share = 1.0 if method == "permuted" else None
            if epoch in look.match_epochs:
                share = study.record(agreement(s, seed, epoch))["metrics"]["agreement"]
            rows.append(
                {
                    "sparsity": look.sparsity,
                    "seed": seed,
                    "method": method,
                    "match_epoch": epoch,
                    "test_accuracy": study.record(node)["metrics"]["test_accuracy"],
                    "agreement": share,
                }
            )
    return pd.DataFrame(rows).astype({"match_epoch": "Int64"})


def bill(study: Reader) -> pd.DataFrame:
    """What a sparse net B at the closer look's cell costs its owner: mask, match_epoch, epochs.

    Of A and its ticket nothing is counted. B is trained until it is both matched and rewound to.
    """
    s = study.settings
    look = s.closer_look
    last, start = s.dense.epochs, look.rewind_epoch
    own = imp.ticket(s, "B", 0, look.sparsity).at["round"] * s.imp.epochs
    rows = [("A's, naive", None, start)]
    rows += [("A's, permuted", t, max(t, start)) for t in (*look.match_epochs, last)]
    rows += [("B's own, by IMP", None, last + own)]
    table = pd.DataFrame(rows, columns=["mask", "match_epoch", "epochs"])
    sparse_epochs = s.sparse_recipe(start).epochs
    return table.astype({"match_epoch": "Int64"}).assign(epochs=table["epochs"] + sparse_epochs)
