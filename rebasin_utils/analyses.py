"""The stages of a study that train nothing: each measures nets that are stored already.

A function here takes the study and one node of its plan and returns the node's metrics, plain
values for JSON.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from torch import nn

from rebasin_utils import diversity, interpolation, masks, repair
from rebasin_utils.data import Images, in_order
from rebasin_utils.interpolation import Correction
from rebasin_utils.masks import State
from rebasin_utils.permutation import permute
from rebasin_utils.plan import Node
from rebasin_utils.plane import Plane, survey
from rebasin_utils.repair import Statistics
from rebasin_utils.training import Metrics, predict

if TYPE_CHECKING:
    from rebasin_utils.study import Study

#: Points of the path between two solutions of one net.
SEGMENT_ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)

#: The map of `plane` reaches this far on both axes (the paper's Figure 4b).
PLANE_RANGE = (-1.5, 2.5)


def corrections(model: nn.Module) -> tuple[Correction, ...]:
    """The corrections of a merged net that are defined for this architecture."""
    return (
        ("none", "bn_reset", "repair")
        if interpolation.has_batch_norm(model)
        else ("none", "repair")
    )


def connectivity(study: Study, node: Node) -> dict[str, Any]:
    """The path from A, permuted or not, to B, with and without correction; collapse at its middle.

    `paths`: path, correction, split, and accuracy and loss at every one of `alphas`. `variances`:
    path, correction, split, layer, and the variance at α = 0.5 relative to what lies between the
    ends'; "train" are the images on which the corrections measured.
    """
    moving, reference = (study.state(parent) for parent in node.parents[:2])
    matched = permute(study.spec, study.permutation(node.seed), moving)
    measured_on = {"test": _splits(study)["test"].head(2000), "train": _samples(study)}
    of_reference = {split: _statistics(study, reference, x) for split, x in measured_on.items()}
    paths, variances = [], []
    for name, first in (("unmatched", moving), ("matched", matched)):
        wanted = {
            split: repair.lerp_statistics(
                _statistics(study, first, images), of_reference[split], 0.5
            )
            for split, images in measured_on.items()
        }
        for correction in corrections(study.model):
            at = interpolation.merger(study.model, first, reference, correction, _samples(study))
            states = [at(alpha) for alpha in study.settings.alphas]
            for split, images in _splits(study).items():
                points = _finite(interpolation.evaluate(study.model, states, images))
                kind = {"path": name, "correction": correction, "split": split}
                paths.append({**kind, "points": points})
            middle = at(0.5)
            for split, images in measured_on.items():
                found = _statistics(study, middle, images)
                kind = {"path": name, "correction": correction, "split": split}
                variances += [
                    {**kind, "layer": layer, "ratio": ratio}
                    for layer, ratio in repair.variance_ratios(found, wanted[split]).items()
                ]
    return {"alphas": list(study.settings.alphas), "paths": paths, "variances": variances}


def segment(study: Study, node: Node) -> dict[str, Any]:
    """The path between two solutions of net A, on test images, for every correction."""
    first, second = (study.state(parent) for parent in node.parents)
    images = _splits(study)["test"]
    paths = []
    for correction in corrections(study.model):
        points = interpolation.path(
            study.model, first, second, SEGMENT_ALPHAS, images, correction, _samples(study)
        )
        paths.append({"correction": correction, "points": _finite(points)})
    return {"alphas": SEGMENT_ALPHAS, "paths": paths}


def ensemble(study: Study, node: Node) -> dict[str, Any]:
    """The members' test accuracies, that of their ensemble, and how every two of them differ."""
    labels = study.test_images.labels.cpu()
    logits = predict(study.model, [study.state(n) for n in node.parents], study.test_images)
    return {
        "accuracies": (logits.argmax(-1) == labels).double().mean(-1).tolist(),
        "ensemble": diversity.ensemble_accuracy(logits, labels),
        "pairs": diversity.pairs(logits).to_dict("records"),
    }


def plane(study: Study, node: Node) -> dict[str, Any]:
    """The map through sparse π(A) (0, 0), the permuted run's end (1, 0) and dense π(A) (x, 1).

    `models` and `path`, the states of the permuted run after every epoch, are given by where they
    are seen from above: x, y, and the distance from the plane.
    """
    dense, other, run = node.parents[:3]
    permutation = study.permutation(node.seed)
    moved = permute(study.spec, permutation, study.state(dense))
    mask = permute(study.spec, permutation, study.mask(node.seed, run.sparsity))
    masked = masks.apply(mask, moved)
    through = Plane.through(study.model, masked, study.state(run), moved)
    low, high = PLANE_RANGE
    ticks = [
        low + (high - low) * i / (study.settings.plane_points - 1)
        for i in range(study.settings.plane_points)
    ]
    grid = survey(study.model, through, ticks, ticks, _splits(study)["test"], _samples(study))
    models = {
        "π(A), masked": masked,
        "permuted, trained": study.state(run),
        "π(A), dense": moved,
        "B, dense": study.state(other),
    }
    return {
        "ticks": ticks,
        "accuracy": [[point.accuracy for point in row] for row in grid],
        "loss": [[point["loss"] for point in _finite(row)] for row in grid],
        "models": {name: through.coordinates(state) for name, state in models.items()},
        "path": [through.coordinates(state) for state in study.retrace(run).values()],
    }


MEASURE = {
    "connectivity": connectivity,
    "segment": segment,
    "diversity": ensemble,
    "plane": plane,
}


def _statistics(study: Study, state: State, images: Images) -> Statistics:
    return repair.statistics(study.model, state, (x for x, _ in in_order(images, 2000)))


def _samples(study: Study) -> Images:
    """The training images on which the statistics of merged nets are corrected."""
    return study.train_images.head(study.settings.statistics_samples)


def _splits(study: Study) -> dict[str, Images]:
    """The images that paths are measured on."""
    splits = {"test": study.test_images, "train": study.train_images}
    n = study.settings.path_samples
    return {name: images if n is None else images.head(n) for name, images in splits.items()}


def _finite(points: list[Metrics]) -> list[dict[str, float | None]]:
    """As dicts for JSON, which knows no infinity."""
    return [
        {k: v if math.isfinite(v) else None for k, v in point._asdict().items()} for point in points
    ]
