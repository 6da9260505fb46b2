"""The path from A, permuted or not, to B: with and without correction, and collapse at its middle.

Metrics: `alphas`; `paths`, each with path, correction, split, and accuracy and loss at every alpha;
`variances`, each with path, correction, split, layer, and the variance at α = 0.5 relative to what
lies between the ends'. "train" are the images on which the corrections measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pandas as pd

from rebasin_utils.landscape import interpolation, repair
from rebasin_utils.nets.data import Split, in_order
from rebasin_utils.nets.masks import State
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage, chunks
from rebasin_utils.study.stages import dense, matching
from rebasin_utils.study.stages.merged import (
    barriers_along,
    corrections,
    measured_on,
    points,
    samples,
    tested,
)
from rebasin_utils.symmetry.permutation import permute


class Connectivity(Stage):
    name = "connectivity"
    version = 4

    def wanted(self, settings: Settings) -> Iterable[Node]:
        return [between(settings, seed) for seed in settings.pairs if settings.paths.alphas]

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        for node in nodes:
            begin = time.monotonic()
            metrics = _measure(run, node)
            yield Made(node, {"metrics": metrics, "seconds": time.monotonic() - begin})


CONNECTIVITY = Connectivity()


def between(settings: Settings, seed: int) -> Node:
    """Loss and accuracy on the path from A, permuted or not, to B."""
    nets = (dense.net(settings, "A", seed), dense.net(settings, "B", seed))
    parents = (*nets, matching.of_pair(settings, seed))
    depends_on = {
        "alphas": settings.paths.alphas,
        "path_samples": settings.paths.samples,
        "statistics_samples": settings.paths.statistics_samples,
    }
    return CONNECTIVITY.node(settings, f"seed{seed}", {"seed": seed}, depends_on, parents)


def _measure(run: Context, node: Node) -> dict[str, Any]:
    model, alphas = run.model, run.settings.paths.alphas
    moving, reference = ends = [run.state(parent) for parent in node.parents[:2]]
    known = {"test": tested(run, zip(node.parents, ends, strict=False)), "train": {}}
    matched = permute(run.spec, run.tensors(node.parents[2]), moving)
    splits = {split: measured_on(run, split) for split in ("test", "train")}
    corrected_on = samples(run)
    of_variance = {"test": splits["test"].head(2000), "train": corrected_on}
    probe = repair.Probe(model)

    def statistics(state: State, images: Split) -> repair.Statistics:
        return probe.statistics(state, (x for x, _ in in_order(images, 2000)))

    of_reference = {split: statistics(reference, x) for split, x in of_variance.items()}
    paths, variances = [], []
    for name, first in (("unmatched", moving), ("matched", matched)):
        wanted = {
            split: repair.lerp_statistics(statistics(first, images), of_reference[split], 0.5)
            for split, images in of_variance.items()
        }
        along: list[State] = []
        for correction in corrections(model):
            at = cache(
                interpolation.merger(model, first, reference, correction, corrected_on, probe)
            )
            along += map(at, alphas)
            middle = at(0.5)
            for split, images in of_variance.items():
                found = statistics(middle, images)
                kind = {"path": name, "correction": correction, "split": split}
                variances += [
                    {**kind, "layer": layer, "ratio": ratio}
                    for layer, ratio in repair.variance_ratios(found, wanted[split]).items()
                ]
        at_alphas = {
            split: chunks(points(model, along, images, known[split]), len(alphas))
            for split, images in splits.items()
        }
        paths += [
            {"path": name, "correction": correction, "split": split, "points": next(found)}
            for correction in corrections(model)
            for split, found in at_alphas.items()
        ]
    return {"alphas": list(alphas), "paths": paths, "variances": variances}


# ------------------------------------------------------------------------ tables


def paths(study: Reader, split: str = "test") -> pd.DataFrame:
    """Accuracy and loss between A and B: path, seed, alpha, accuracy, loss.

    path: `unmatched` or `matched`, and what was done to the merged net, if anything: `_bn_reset` or
    `_repair`. split: "test" or "train".
    """
    rows = []
    for node in study.nodes("connectivity"):
        metrics = study.record(node)["metrics"]
        rows += [
            {"path": _name(path), "seed": node.seed, "alpha": alpha, **point}
            for path in metrics["paths"]
            if path["split"] == split
            for alpha, point in zip(metrics["alphas"], path["points"], strict=True)
        ]
    return pd.DataFrame(rows)


def variances(study: Reader, split: str = "test") -> pd.DataFrame:
    """Variance of every layer halfway from A to B, relative to the ends': seed, path, layer, ratio.

    Below 1 it has collapsed (Jordan et al. 2023, Section 3).

    split: measured on "test" images, or on the "train" images that the corrections measured, too.
    """
    rows = [
        {"seed": node.seed, "path": _name(each), "layer": each["layer"], "ratio": each["ratio"]}
        for node in study.nodes("connectivity")
        for each in study.record(node)["metrics"]["variances"]
        if each["split"] == split
    ]
    return pd.DataFrame(rows)


def barriers(study: Reader) -> pd.DataFrame:
    """Barriers between A and B (equation 3): path, split, seed, loss (nats), error (pp)."""
    rows = []
    for split in ("test", "train"):
        for (path, seed), at in paths(study, split).groupby(["path", "seed"], sort=False):
            both = barriers_along(at["alpha"], at["accuracy"], at["loss"])
            rows.append({"path": path, "split": split, "seed": seed, **both})
    return pd.DataFrame(rows)


def midpoints(study: Reader) -> pd.DataFrame:
    """Accuracy in % halfway between A and B: one row a kind of path; mean, std, n over pairs."""
    table = paths(study)
    at = 100 * table[table["alpha"] == 0.5].set_index("path")["accuracy"]
    summary = at.groupby("path", sort=False).agg(mean="mean", std="std", n="count")
    model = study.settings.model
    return summary.reset_index().assign(model=model.name, width=model.width)


def _name(path: Mapping[str, Any]) -> str:
    correction = path["correction"]
    return path["path"] if correction == "none" else f"{path['path']}_{correction}"
