"""Ensembles: how differently the members answer, and what they gain by it (the paper's Table 1).

Metrics: `accuracies` of the members, that of their `ensemble`, and of every two of them the `pairs`
of `landscape.diversity.METRICS`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from rebasin_utils.landscape import diversity
from rebasin_utils.landscape.diversity import METRICS
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage
from rebasin_utils.study.stages import dense, imp, sparse
from rebasin_utils.study.stages.trained import ROLES, read
from rebasin_utils.training.evaluate import predict


class Diversity(Stage):
    name = "diversity"

    def wanted(self, settings: Settings) -> Iterable[Node]:
        methods, seeds = compared(settings), tickets(settings)
        for method in methods:  # the runs of one method stand together
            for seed in seeds:
                yield from members(settings, method, seed)
        for seed in seeds:
            yield from (ensemble(settings, method, seed) for method in methods)

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        for node in nodes:
            begin = time.monotonic()
            images = run.split("test")
            labels = images.labels.cpu()
            logits = predict(run.model, [run.state(n) for n in node.parents], images)
            metrics = {
                "accuracies": (logits.argmax(-1) == labels).double().mean(-1).tolist(),
                "ensemble": diversity.ensemble_accuracy(logits, labels),
                "pairs": diversity.pairs(logits).to_dict("records"),
            }
            yield Made(node, {"metrics": metrics, "seconds": time.monotonic() - begin})


DIVERSITY = Diversity()


def compared(settings: Settings) -> list[str]:
    """The methods whose ensembles are compared."""
    asked = settings.looks_closer and settings.closer_look.ensemble_size > 1
    if not (asked and settings.imp.prune_b and settings.seeds > 1):
        return []
    of_runs = [m for m in ("lth", "permuted", "naive") if m in settings.sparse.methods]
    return ["dense", "imp", *of_runs]


def tickets(settings: Settings) -> list[int]:
    """The pairs whose A's ticket makes ensembles: so many that no net is in two of them.

    An ensemble takes the nets of its own pair and of those that follow.
    """
    size = _pairs_of_one(settings)
    return list(settings.pairs[::size])[: max(1, settings.seeds // size)]


def _pairs_of_one(settings: Settings) -> int:
    """Pairs that hold A, whose ticket it is, and as many other nets as there are members."""
    return settings.closer_look.ensemble_size // 2 + 1


def ensemble(settings: Settings, method: str, seed: int) -> Node:
    """How differently the members of a method's ensemble answer."""
    at = {"method": method, "seed": seed}
    parents = tuple(members(settings, method, seed))
    return DIVERSITY.node(settings, f"{method}-seed{seed}", at, {"method": method}, parents)


def members(settings: Settings, method: str, seed: int) -> list[Node]:
    """The nets of an ensemble at the closer look's cell (the paper's Section 4.2).

    seed: of the ticket, one of `tickets`.

    dense, imp: as many nets, each with its own init and ticket. lth: one net and one ticket under
    several orders of the data. permuted, naive: one ticket on several other nets.
    """
    look = settings.closer_look
    pairs = [i for i in settings.pairs if seed <= i < seed + _pairs_of_one(settings)]
    others = [(role, i) for i in pairs for role in ROLES][1 : look.ensemble_size + 1]
    alike = [("A", seed), *others][: len(others)]
    if method == "dense":
        return [dense.net(settings, *net) for net in alike]
    if method == "imp":
        return [imp.ticket(settings, *net, look.sparsity) for net in alike]
    cell = (settings, method, look.sparsity, look.rewind_epoch, seed)
    if method == "lth":
        return [sparse.one(*cell, order=i) for i in range(len(others))]
    return [sparse.one(*cell), *(sparse.one(*cell, net=net) for net in others[1:])]


def table(study: Reader) -> pd.DataFrame:
    """Every method's ensemble at the closer look's cell: one row a method and source of the ticket.

    Returns:
        method, seed, n, accuracy (mean of the members, %), ensemble (accuracy, %), and
        `diversity.METRICS`, each the mean over all pairs of members.
    """
    rows = [
        {
            "method": node.at["method"],
            "seed": node.seed,
            "n": len(found["accuracies"]),
            "accuracy": 100 * pd.Series(found["accuracies"]).mean(),
            "ensemble": 100 * found["ensemble"],
            **pd.DataFrame(found["pairs"])[list(METRICS)].mean(),
        }
        for node, found in read(study, "diversity")
    ]
    return pd.DataFrame(rows)
