"""The map through π(LTH) (0, 0), the permuted run's end (1, 0) and dense π(A) (x, 1).

Metrics: `ticks` of both axes; `accuracy` and `loss` of every point; `models` and `path`, the states
of the permuted run after every epoch, given by where they are seen from above: x, y, and the
distance from the plane (the paper's Figure 4b).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from rebasin_utils.landscape.plane import Plane as Through
from rebasin_utils.landscape.plane import survey
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Stage
from rebasin_utils.study.stages import dense, matching, sparse
from rebasin_utils.study.stages.merged import finite, measured_on, samples
from rebasin_utils.symmetry.permutation import permute

#: The map reaches this far on both axes (the paper's Figure 4b).
RANGE = (-1.5, 2.5)


class Plane(Stage):
    name = "plane"
    version = 3

    def wanted(self, settings: Settings) -> Iterable[Node]:
        asked = settings.looks_closer and settings.closer_look.plane_points > 1
        there = {"lth", "permuted"} <= set(settings.sparse.methods)
        return [of_pair(settings, 0)] if asked and there else []

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        for node in nodes:
            begin = time.monotonic()
            metrics = _measure(run, node)
            yield Made(node, {"metrics": metrics, "seconds": time.monotonic() - begin})


PLANE = Plane()


def of_pair(settings: Settings, seed: int) -> Node:
    """The map of one pair's sparse runs at the closer look's cell."""
    look = settings.closer_look
    runs = (
        sparse.one(settings, method, look.sparsity, look.rewind_epoch, seed)
        for method in ("lth", "permuted")
    )
    nets = (dense.net(settings, "A", seed), dense.net(settings, "B", seed))
    depends_on = {
        "plane_points": look.plane_points,
        "path_samples": settings.paths.samples,
        "statistics_samples": settings.paths.statistics_samples,
    }
    parents = (*nets, *runs, matching.of_pair(settings, seed))
    return PLANE.node(settings, f"seed{seed}", {"seed": seed}, depends_on, parents)


def _measure(run: Context, node: Node) -> dict[str, Any]:
    net, other, lth, permuted, matched = node.parents
    permutation = run.tensors(matched)
    moved, sparse_moved = (permute(run.spec, permutation, run.state(n)) for n in (net, lth))
    end = run.state(permuted)
    through = Through.through(run.model, sparse_moved, end, moved)
    points, (low, high) = run.settings.closer_look.plane_points, RANGE
    even = [low + (high - low) * i / (points - 1) for i in range(points)]
    ticks = sorted({*even, 0.0, 1.0})  # with the nets themselves
    grid = survey(run.model, through, ticks, ticks, measured_on(run), samples(run))
    models = {
        "π(LTH)": sparse_moved,
        "permuted": end,
        "π(A), dense": moved,
        "B, dense": run.state(other),
    }
    recipe = run.settings.sparse_recipe(permuted.at["rewind_epoch"])
    job = sparse.job(run, permuted, sparse.mask_for(run, permuted))
    again = replace(job, snapshots=tuple(range(recipe.epochs + 1)))
    (path,) = run.train([node], [again], recipe)
    return {
        "ticks": ticks,
        "accuracy": [[point.accuracy for point in row] for row in grid],
        "loss": [[point["loss"] for point in finite(row)] for row in grid],
        "models": {name: through.coordinates(state) for name, state in models.items()},
        "path": [through.coordinates(state) for state in path.snapshots.values()],
    }


def table(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """The data of the map: what (grid, path or a model's name), x, y, beside, accuracy, loss."""
    ticks = metrics["ticks"]
    rows = [
        ("grid", x, y, 0.0, accuracy, loss)
        for y, accuracies, losses in zip(ticks, metrics["accuracy"], metrics["loss"], strict=True)
        for x, accuracy, loss in zip(ticks, accuracies, losses, strict=True)
    ]
    rows += [("path", *where, None, None) for where in metrics["path"]]
    rows += [(name, *where, None, None) for name, where in metrics["models"].items()]
    return pd.DataFrame(rows, columns=["what", "x", "y", "beside", "accuracy", "loss"])
