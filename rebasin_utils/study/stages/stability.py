"""Whether a transfer's end is settled by what was carried over: stability to SGD noise.

Two transfers of one ticket, from the same init with two orders of the data ("orders"), or from two
inits with one order ("inits"). Their ends have one mask; a barrier between them says that the noise
chose (Frankle et al. 2020, Section 2). Metrics: `alphas`; `points`, accuracy and loss at every
alpha.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from rebasin_utils.study.parts import Procedure
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage
from rebasin_utils.study.stages import sign_transfer
from rebasin_utils.study.stages.merged import barriers_along
from rebasin_utils.study.stages.sign_paths import ALPHAS, along


class Stability(Stage):
    name = "stability"

    def wanted(self, settings: Settings) -> Iterable[Node]:
        if not settings.signs.rounds:
            return
        number = settings.signs.rounds[-1]
        for seed in settings.pairs:
            for procedure, kind in compared(settings):
                for noise in ("orders", "inits"):
                    yield between(settings, noise, procedure, kind, seed, number)

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        for node in nodes:
            begin = time.monotonic()
            first, second = (run.state(parent) for parent in node.parents)
            metrics = {"alphas": ALPHAS, "points": along(run, first, second)}
            yield Made(node, {"metrics": metrics, "seconds": time.monotonic() - begin})


STABILITY = Stability()


def compared(settings: Settings) -> list[tuple[Procedure, str]]:
    """The tickets, and what of them is carried over."""
    tickets: list[tuple[Procedure, str]] = [("lrr", "mask"), ("lrr", "signs"), ("aws", "signs")]
    return [ticket for ticket in tickets if ticket[0] in settings.signs.procedures]


def between(
    settings: Settings, noise: str, procedure: Procedure, kind: str, seed: int, number: int
) -> Node:
    """Two transfers that differ in the order of the data ("orders") or in their init ("inits")."""
    which = (settings, kind, procedure, seed, number)
    others = {"orders": {"order": 1}, "inits": {"net": ("C", seed)}}  # an init that no pair has
    parents = (sign_transfer.one(*which), sign_transfer.one(*which, **others[noise]))
    at = {"noise": noise, "procedure": procedure, "kind": kind, "seed": seed, "round": number}
    label = f"{noise}-{kind}-{procedure}-round{number}-seed{seed}"
    depends_on = {"path_samples": settings.paths.samples}
    return STABILITY.node(settings, label, at, depends_on, parents)


def table(study: Reader) -> pd.DataFrame:
    """Barriers between two ends.

    Returns:
        noise, procedure, kind, round, seed, barrier (of the test error, pp), loss (nats).
    """
    rows = []
    for node in study.nodes("stability"):
        metrics = study.record(node)["metrics"]
        points = pd.DataFrame(metrics["points"])
        both = barriers_along(metrics["alphas"], points["accuracy"], points["loss"])
        at = {n: node.at[n] for n in ("noise", "procedure", "kind", "round")}
        rows.append({**at, "seed": node.seed, "barrier": both["error"], "loss": both["loss"]})
    return pd.DataFrame(rows)
