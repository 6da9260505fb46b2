"""What the stages that merge nets share: the images they measure on, the corrections, barriers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from rebasin_utils.landscape import interpolation
from rebasin_utils.landscape.interpolation import Correction, barrier
from rebasin_utils.nets.data import Split, in_order
from rebasin_utils.nets.masks import State
from rebasin_utils.study.stage import Node, Reader
from rebasin_utils.training.evaluate import Metrics, evaluate

#: Of the metrics, those that are measured along paths.
_MEASURED = ("accuracy", "loss")

#: Accuracy and loss, as a record has them.
Point = dict[str, float | None]


def corrections(model: nn.Module) -> tuple[Correction, ...]:
    """The corrections of a merged net that are defined for this architecture."""
    return (
        ("none", "bn_reset", "repair")
        if interpolation.has_batch_norm(model)
        else ("none", "repair")
    )


def samples(run: Reader) -> Split:
    """The training images on which the statistics of merged nets are corrected."""
    return run.split("train").head(run.settings.paths.statistics_samples).held()


def measured_on(run: Reader, split: str = "test") -> Split:
    """The images that paths are measured on."""
    n, images = run.settings.paths.samples, run.split(split)
    return (images if n is None else images.head(n)).held()


def with_statistics(run: Reader, state: State) -> State:
    """A net with its batch norms' statistics recomputed; as it is where there are none.

    On the first 2,000 training images, whatever else is measured on.
    """
    if not interpolation.has_batch_norm(run.model):
        return state
    batches = (x for x, _ in in_order(run.split("train").head(2000), 2000))
    return interpolation.reset_batch_norm(run.model, state, batches)


def tested(run: Reader, nets: Iterable[tuple[Node, State]]) -> dict[int, Point]:
    """What is known of trained nets' own states on `measured_on`, by the states' identity.

    Their records say it, where paths are measured on all test images.
    """
    if run.settings.paths.samples is not None:
        return {}
    metrics = {id(state): run.record(node)["metrics"] for node, state in nets}
    return {one: {name: m[f"test_{name}"] for name in _MEASURED} for one, m in metrics.items()}


def points(
    model: nn.Module, states: Sequence[State], images: Split, known: Mapping[int, Point]
) -> list[Point]:
    """Accuracy and loss of every state on `images`, measured where it is not `known` (`tested`)."""
    unknown = [state for state in states if id(state) not in known]
    measured = iter(finite(evaluate(model, unknown, images)))
    return [known.get(id(state)) or next(measured) for state in states]


def finite(points: Sequence[Metrics]) -> list[Point]:
    """Accuracies and losses as dicts for JSON, which knows no infinity."""
    return [
        {name: v if math.isfinite(v := getattr(point, name)) else None for name in _MEASURED}
        for point in points
    ]


def barriers_along(
    alphas: Sequence[float], accuracies: Sequence[float], losses: Sequence[float]
) -> dict[str, float]:
    """Barriers of the loss (nats) and of the error (pp) along one path."""
    alphas, errors = list(alphas), [100 * (1 - a) for a in accuracies]
    return {"loss": barrier(list(losses), alphas), "error": barrier(errors, alphas)}
