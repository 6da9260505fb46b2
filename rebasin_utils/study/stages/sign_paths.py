"""Where a transfer ends: the path to A's solution under the address that its mask was given.

Both ends have one mask; the batch norms' statistics are recomputed at every point, the ends' too.
Metrics: `alphas`; `points`, accuracy and loss at every alpha; `disagreement` with A's solution,
which knows no permutation.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from rebasin_utils.landscape import diversity, interpolation
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage
from rebasin_utils.study.stages import sign_transfer
from rebasin_utils.study.stages.merged import barriers_along, finite, measured_on, with_statistics
from rebasin_utils.symmetry.permutation import permute
from rebasin_utils.training.evaluate import evaluate, predict

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


class SignPaths(Stage):
    name = "sign_paths"

    def wanted(self, settings: Settings) -> Iterable[Node]:
        for node in sign_transfer.SIGN_TRANSFER.wanted(settings):
            if node.at["kind"] not in ("solution", "random_mask") and "owner" not in node.at:
                yield to_solution(settings, node)

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        for node in nodes:
            begin = time.monotonic()
            transfer, goal = node.parents[:2]
            end, solution = run.state(transfer), run.state(goal)
            permutation = sign_transfer.moves(run, transfer)
            moved = solution if permutation is None else permute(run.spec, permutation, solution)
            images = measured_on(run)
            logits = predict(run.model, [end, solution], images)
            metrics = {
                "alphas": ALPHAS,
                "points": along(run, moved, end),
                "disagreement": diversity.disagreement(*logits),
            }
            yield Made(node, {"metrics": metrics, "seconds": time.monotonic() - begin})


SIGN_PATHS = SignPaths()


def to_solution(settings: Settings, transfer: Node) -> Node:
    """The path from A's solution, under the transfer's address, to where the transfer ends."""
    at = {**transfer.at, "to": "solution"}
    ticket = (transfer.at["procedure"], transfer.seed, transfer.at["round"])
    solution = sign_transfer.one(settings, "solution", *ticket)
    return SIGN_PATHS.node(
        settings,
        transfer.key.label,
        at,
        {"path_samples": settings.paths.samples},
        (transfer, solution),
    )


def along(run: Context, first: dict, second: dict) -> list[dict[str, float | None]]:
    """Accuracy and loss on test images on the way between two states."""
    states = [with_statistics(run, interpolation.lerp(first, second, a)) for a in ALPHAS]
    return finite(evaluate(run.model, states, measured_on(run)))


def table(study: Reader) -> pd.DataFrame:
    """Where every transfer ends.

    Returns:
        procedure, round, kind, address, rewind_epoch, seed, barrier (of the test error, pp), loss
        (barrier, nats), disagreement (% of the test images, with A's solution).
    """
    rows = []
    for node in study.nodes("sign_paths"):
        metrics, at = study.record(node)["metrics"], node.at
        points = pd.DataFrame(metrics["points"])
        barriers = barriers_along(metrics["alphas"], points["accuracy"], points["loss"])
        rows.append(
            {
                "procedure": at["procedure"],
                "round": at["round"],
                "kind": at["kind"],
                "address": at.get("address", ""),
                "rewind_epoch": at["rewind_epoch"],
                "seed": node.seed,
                "barrier": barriers["error"],
                "loss": barriers["loss"],
                "disagreement": 100 * metrics["disagreement"],
            }
        )
    return pd.DataFrame(rows)
