"""How many images π needs: matched on few, and what that is worth.

It wants permuted runs whose π was matched on few images. Metrics: `in_sample`, the mean similarity
of matched units on the images that they were matched on; `held_out`, on the test images, and
`best_held_out`, of the assignment that is best there; `regret`, by which share π is lacking by the
bound of `symmetry.enough`; `barrier`, of the test error between π(A) and B in pp, batch norm's
statistics recomputed where there are any.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rebasin_utils.landscape import interpolation
from rebasin_utils.nets.data import in_order
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage
from rebasin_utils.study.stages import matching, sparse
from rebasin_utils.study.stages.merged import barriers_along, finite, measured_on, samples
from rebasin_utils.symmetry.assignment import best_assignment
from rebasin_utils.symmetry.matching import PRECISION, match_activations, similarities
from rebasin_utils.symmetry.permutation import permute
from rebasin_utils.training.evaluate import evaluate

_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


class FewImages(Stage):
    name = "few_images"
    version = 2

    def wanted(self, settings: Settings) -> Iterable[Node]:
        look = settings.closer_look
        for images in look.match_images:
            for seed in settings.pairs:
                yield worth(settings, seed, images)
                if settings.looks_closer and "permuted" in settings.sparse.methods:
                    yield permuted(settings, seed, images)

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        for node in nodes:
            begin = time.monotonic()
            metrics = _measure(run, node)
            yield Made(node, {"metrics": metrics, "seconds": time.monotonic() - begin})


FEW_IMAGES = FewImages()


def permuted(settings: Settings, seed: int, images: int | None = None) -> Node:
    """The permuted run at the closer look's cell, its π matched on so many images."""
    look = settings.closer_look
    cell = (look.sparsity, look.rewind_epoch, seed)
    return sparse.one(settings, "permuted", *cell, match_images=images)


def worth(settings: Settings, seed: int, images: int) -> Node:
    """What a π from so many images is worth."""
    found = matching.of_pair(settings, seed, images=images)
    at = {"seed": seed, "images": images}
    facts = {
        "path_samples": settings.paths.samples,
        "statistics_samples": settings.paths.statistics_samples,
    }
    label = f"{images}-images-seed{seed}"
    return FEW_IMAGES.node(settings, label, at, facts, (*found.parents, found))


def _measure(run: Context, node: Node) -> dict[str, float | None]:
    moving, reference = (run.network(parent) for parent in node.parents[:2])
    permutation = run.tensors(node.parents[2])
    images = run.split("train").head(node.at["images"])
    objective = run.settings.matching.objective
    parts = (x for x, _ in in_order(images, len(images) // 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # all of them are read, to learn the bound
        few = match_activations(
            run.spec, moving, reference, parts, objective=objective, until=1e-12
        )
    held = measured_on(run)
    batches = (x for x, _ in in_order(held, 500))
    truth = similarities(run.spec, moving, reference, batches, objective=objective)
    totals = {"held_out": 0.0, "best_held_out": 0.0}
    for name, (matrix, _) in truth.items():
        rows = np.arange(len(matrix))
        best = best_assignment(matrix, PRECISION)
        totals["held_out"] += float(matrix[rows, permutation[name].numpy()].sum())
        totals["best_held_out"] += float(matrix[rows, best].sum())
    units = sum(len(p) for p in permutation.values())
    metrics: dict[str, float | None] = {n: total / units for n, total in totals.items()}
    matched = run.record(node.parents[2])["metrics"].values()
    metrics["in_sample"] = sum(group["units"] * group["after"] for group in matched) / units
    metrics["regret"] = few.regret if math.isfinite(few.regret) else None
    state = permute(run.spec, permutation, run.state(node.parents[0]))
    correction = "bn_reset" if interpolation.has_batch_norm(run.model) else "none"
    at = interpolation.merger(
        run.model, state, run.state(node.parents[1]), correction, samples(run)
    )
    points = finite(evaluate(run.model, [at(alpha) for alpha in _ALPHAS], held))
    accuracies, losses = ([point[what] for point in points] for what in ("accuracy", "loss"))
    metrics["barrier"] = barriers_along(_ALPHAS, accuracies, losses)["error"]
    return metrics


def table(study: Reader) -> pd.DataFrame:
    """What few images are worth: images, seed, the metrics, test_accuracy of the permuted run.

    Where images is missing, π is the grid's own, from as many as the settings say, of which there
    is the accuracy alone.
    """
    s, rows = study.settings, []
    for images in (*s.closer_look.match_images, None):
        for seed in s.pairs:
            values: dict[str, Any] = {"images": images, "seed": seed}
            if images is not None:
                values |= study.record(worth(s, seed, images))["metrics"]
            if s.looks_closer and "permuted" in s.sparse.methods:
                record = study.record(permuted(s, seed, images))
                values["test_accuracy"] = record["metrics"]["test_accuracy"]
            rows.append(values)
    return pd.DataFrame(rows).astype({"images": "Int64"})
