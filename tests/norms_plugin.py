"""A stage and a chapter from outside the package: how long the dense nets' weight vectors are."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from rebasin_utils.chapters.chapter import Chapter, Picture
from rebasin_utils.chapters.evidence import COLUMNS, row
from rebasin_utils.chapters.style import blank
from rebasin_utils.study.parts import Part
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage
from rebasin_utils.study.stages import dense
from rebasin_utils.study.study import Study


class NormsPart(Part):
    order: int = 2


class Norms(Stage):
    name = "norms"
    Part = NormsPart

    def wanted(self, settings: Settings) -> Iterable[Node]:
        return [of_pair(settings, seed) for seed in settings.pairs]

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        for node in nodes:
            begin = time.monotonic()
            nets = zip("AB", node.parents, strict=True)
            metrics = {role: _norm(run, net, node.settings.norms.order) for role, net in nets}
            yield Made(node, {"metrics": metrics, "seconds": time.monotonic() - begin})


NORMS = Norms()


def of_pair(settings: Settings, seed: int) -> Node:
    parents = (dense.net(settings, "A", seed), dense.net(settings, "B", seed))
    depends_on = {"order": settings.norms.order}
    return NORMS.node(settings, f"seed{seed}", {"seed": seed}, depends_on, parents)


def _norm(run: Reader, net: Node, order: int) -> float:
    weights = run.state(net).values()
    return sum(float((w.abs() ** order).sum()) for w in weights) ** (1 / order)


def table(study: Reader) -> pd.DataFrame:
    """seed, A, B: the norms of a pair's nets."""
    nodes = study.nodes("norms")
    return pd.DataFrame([{"seed": n.seed, **study.record(n)["metrics"]} for n in nodes])


class HowLong(Chapter):
    notebook = "90-how-long"
    stages = ("norms",)

    def pictures(self, studies: Sequence[Study]) -> Iterator[Picture]:
        for study in studies:
            norms = table(study)
            figure = blank("‖A‖", "‖B‖")
            figure.add_scatter(x=norms["A"], y=norms["B"], mode="markers")
            yield Picture(f"{study.settings.name}-norms", figure, norms)

    def verdicts(self, studies: Sequence[Study]) -> Iterator[tuple[str, pd.DataFrame]]:
        for study in studies:
            norms = table(study)
            differences = {"all": norms["B"] - norms["A"]}
            claim = row("B is longer than A", "not in the paper", "B − A: ", differences)
            yield f"{study.settings.name}, norms", pd.DataFrame([claim], columns=COLUMNS)


STAGES = [NORMS]
CHAPTERS = [HowLong()]
