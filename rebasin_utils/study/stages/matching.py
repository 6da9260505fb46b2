"""π: the permutation of A's units that matches them to B's, or to another net's.

The grid matches with the pair's own B, trained to its end. Early matching takes B as it was after
few epochs; ensembles take other nets as the reference.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from rebasin_utils.nets.data import in_order, training_batches
from rebasin_utils.study.seeds import derive_seed
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stage import Context, Made, Node, Reader, Scalar, Stage
from rebasin_utils.study.stages import dense
from rebasin_utils.symmetry.permutation import Permutation
from rebasin_utils.training.ranks import Ranks


class Matching(Stage):
    name = "matching"
    version = 2

    def wanted(self, settings: Settings) -> Iterable[Node]:
        """For the path between the nets; whoever else moves units by a π depends on it."""
        return [of_pair(settings, seed) for seed in settings.pairs if settings.paths.alphas]

    def compute(self, run: Context, nodes: Sequence[Node]) -> Iterator[Made]:
        for node in nodes:
            begin = time.monotonic()
            dense.refuse_diverged(run, node.parents)
            moving, reference = (run.state(parent) for parent in node.parents)
            matched = run.match(moving, reference, node.at.get("images"))
            record = {"metrics": matched.quality(), "seconds": time.monotonic() - begin}
            yield Made(node, record, matched.permutation)


MATCHING = Matching()


def of_pair(
    settings: Settings,
    seed: int,
    net: tuple[str, int] | None = None,
    epoch: int | None = None,
    images: int | None = None,
) -> Node:
    """The permutation of A's units that matches them to B's, or to another net's.

    Args:
        net: role and seed of the reference, if not the pair's own B.
        epoch: match with the reference as it was after this epoch, not at its end.
        images: match on the first so many training images, not on as many as the settings say.
    """
    role, of = net or ("B", seed)
    moving = dense.net(settings, "A", seed)
    at, label = {"seed": seed}, f"seed{seed}"
    if epoch is None:
        reference = dense.net(settings, role, of)
    else:
        reference = dense.state_after(settings, role, of, epoch)
        at["match_epoch"] = epoch
    if net is not None:
        at["reference"] = f"{role}{of}"
        label += f"-with-{role}{of}"
    elif epoch is not None:
        label += f"-at-epoch{epoch}"
    if images is not None:
        at["images"] = images
        label += f"-on-{images}-images"
    return between(settings, label, at, (moving, reference), images)


def between(
    settings: Settings,
    label: str,
    at: Mapping[str, Scalar],
    nets: tuple[Node, Node],
    images: int | None = None,
) -> Node:
    """The permutation of the first net's units that matches them to the second's.

    They are matched on the images of `settings`, which may be others than a net was trained on.
    """
    depends_on: dict[str, Any] = {
        "match_on": settings.matching.objective,
        "match_samples": settings.matching.samples if images is None else images,
        "match_std": settings.as_released.match_std,
        "stream_tap": settings.as_released.stream_tap,
    }
    if settings.as_released.match_augmented:
        depends_on["match_augmented"] = True
    if any(net.settings.data != settings.data for net in nets):
        depends_on["images"] = settings.data.facts()
    return MATCHING.node(settings, label, at, depends_on, nets)


def batches(
    study: Reader, images: int | None = None, ranks: Ranks | None = None
) -> Iterator[Tensor]:
    """The training images on which activations are matched: as they are, and in order.

    images: the first so many, if not as many as the settings say. ranks: this one's part of them.

    As in the released code: an epoch of training batches of 128, shuffled and augmented, the last,
    incomplete one dropped.
    """
    split = study.split("train")
    samples = study.settings.matching.samples if images is None else images
    if samples is not None:
        split = split.head(samples)
    if study.settings.as_released.match_augmented:
        made = training_batches(split, min(128, len(split)), study.settings.data.augment)
        every = (x[0] for x, _ in made.epoch([derive_seed("matching")], 0))
        return every if ranks is None else islice(every, ranks.rank, None, ranks.size)
    if ranks is not None:
        split = ranks.share(split)
    return (x for x, _ in in_order(split, 500))


def permutation(study: Reader, seed: int) -> Permutation:
    """π of a pair: π(A) ≈ B."""
    return study.tensors(of_pair(study.settings, seed))
