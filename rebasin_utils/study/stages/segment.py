"""The path between two solutions.

Two that grew from net A: dense A to its IMP iterates (the paper's Figure 4a), and to LTH. And two
sparse ones with the same mask, LTH on A and a run on B: π(LTH) to permuted, and, as the control,
LTH to naive. Whether two nets are of one mode can be told from nets with the same mask only: where
the masks differ, the masks make a barrier.

Measured on test images, for every correction. Metrics: `alphas`; `paths`, each with correction, and
accuracy and loss at every alpha.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Sequence

import pandas as pd

from rebasin_utils.landscape.interpolation import merger
from rebasin_utils.landscape.repair import Probe
from rebasin_utils.nets.masks import State
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Stage, chunks
from rebasin_utils.study.stages import dense, imp, matching, sparse
from rebasin_utils.study.stages.merged import (
    barriers_along,
    corrections,
    measured_on,
    points,
    samples,
    tested,
)
from rebasin_utils.study.stages.trained import read
from rebasin_utils.symmetry.permutation import permute

#: The two ends. With a "permuted" end, π is applied to the other.
SEGMENTS = ("dense-imp", "dense-lth", "lth-permuted", "lth-naive")

ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


class Segment(Stage):
    name = "segment"
    version = 2

    def wanted(self, settings: Settings) -> Iterable[Node]:
        to_every_round = settings.paths.to_every_round
        for seed in settings.pairs:
            for step in imp.rounds(settings):
                if step.number and (step.targets or to_every_round):
                    yield between(settings, "dense-imp", seed, step.sparsity)
            for kind, rewind_epochs in _of_sparse_runs(settings).items():
                for sparsity in settings.sparse.sparsities:
                    for rewind_epoch in rewind_epochs:
                        yield between(settings, kind, seed, sparsity, rewind_epoch)

    def alike(self, node: Node) -> Hashable:
        return "all"

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        model, probe = run.model, Probe(run.model)
        images, corrected_on = measured_on(run), samples(run)
        for node in nodes:
            begin = time.monotonic()
            first, second = ends = [run.state(parent) for parent in node.parents[:2]]
            known = tested(run, zip(node.parents, ends, strict=False))
            if len(node.parents) > 2:
                first = permute(run.spec, run.tensors(node.parents[2]), first)
            states: list[State] = []
            for correction in corrections(model):
                at = merger(model, first, second, correction, corrected_on, probe)
                states += map(at, ALPHAS)
            measured = chunks(points(model, states, images, known), len(ALPHAS))
            paths = [
                {"correction": correction, "points": along}
                for correction, along in zip(corrections(model), measured, strict=True)
            ]
            metrics = {"alphas": ALPHAS, "paths": paths}
            yield Made(node, {"metrics": metrics, "seconds": time.monotonic() - begin})


SEGMENT = Segment()


def _of_sparse_runs(settings: Settings) -> dict[str, tuple[int, ...]]:
    """The kinds of `SEGMENTS` that end in sparse runs of the study, and their rewind epochs.

    Between sparse nets only that of the closer look.
    """
    there = {"dense", *settings.sparse.methods}
    look = (settings.closer_look.rewind_epoch,) if settings.looks_closer else ()
    return {
        kind: settings.sparse.rewind_epochs if kind == "dense-lth" else look
        for kind in SEGMENTS
        if set(kind.split("-")) <= there
    }


def between(
    settings: Settings, kind: str, seed: int, sparsity: float, rewind_epoch: int | None = None
) -> Node:
    """The path between two solutions of a pair; `kind` is one of `SEGMENTS`.

    Args:
        sparsity: of the pruned ends: that of any pruning round for "dense-imp".
        rewind_epoch: of the sparse runs at the ends.
    """
    at = {"kind": kind, "seed": seed, "sparsity": sparsity}
    label = f"{kind}-S{sparsity:.4g}-seed{seed}"
    if rewind_epoch is not None:
        at["rewind_epoch"] = rewind_epoch
        label += f"-k{rewind_epoch}"

    def end(name: str) -> Node:
        if name == "dense":
            return dense.net(settings, "A", seed)
        if name == "imp":
            step = next(r for r in imp.rounds(settings) if sparsity in (r.sparsity, *r.targets))
            return imp.after(settings, "A", seed, step)
        return sparse.one(settings, name, sparsity, rewind_epoch, seed)

    depends_on = {
        "path_samples": settings.paths.samples,
        "statistics_samples": settings.paths.statistics_samples,
    }
    parents = tuple(map(end, kind.split("-")))
    if kind == "lth-permuted":
        parents += (matching.of_pair(settings, seed),)
    return SEGMENT.node(settings, label, at, depends_on, parents)


def barriers(study: Reader) -> pd.DataFrame:
    """Barriers between two solutions, on test images.

    Returns:
        kind (of `SEGMENTS`), seed, sparsity, rewind_epoch (of the sparse runs), correction, loss
        (nats), error (pp).
    """
    rows = []
    for node, metrics in read(study, "segment"):
        for path in metrics["paths"]:
            points = pd.DataFrame(path["points"])
            rows.append(
                {
                    "kind": node.at["kind"],
                    "seed": node.seed,
                    "sparsity": node.at["sparsity"],
                    "rewind_epoch": node.at.get("rewind_epoch"),
                    "correction": path["correction"],
                    **barriers_along(metrics["alphas"], points["accuracy"], points["loss"]),
                }
            )
    return pd.DataFrame(rows).astype({"rewind_epoch": "Int64"})
