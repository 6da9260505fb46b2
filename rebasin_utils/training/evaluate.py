"""What trained networks answer: accuracy, loss, logits, of many states of one architecture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_utils.errors import require_state
from rebasin_utils.nets.data import Split, in_order
from rebasin_utils.nets.masks import State
from rebasin_utils.training.ranks import Ranks
from rebasin_utils.training.stacking import Single, Stacked, stack_for


class Metrics(NamedTuple):
    """Over all samples of a split: shares in [0, 1], and mean cross-entropy in nats.

    top5: the share of samples whose class is among the five that have the largest logits. Of equal
    logits the first is the largest; one that is no number is among no five.
    """

    accuracy: float
    loss: float
    top5: float


def evaluate(
    model: nn.Module,
    states: Sequence[State],
    images: Split,
    batch_size: int = 1000,
    ranks: Ranks | None = None,
) -> list[Metrics]:
    """Accuracy and loss of every state on every sample of `images`, in eval mode.

    A state that is there twice (the same object) is measured once.

    ranks: each takes a part of the samples; all get the same answers.

    Raises:
        InputError: when one of the states is none.
    """
    n, metrics = len(images), []
    images = images if ranks is None else ranks.share(images)
    distinct = {id(state): state for state in states}
    for answers in _answers(model, list(distinct.values()), images, batch_size):
        correct = among = loss = torch.zeros((), device=images.device, dtype=torch.float64)
        for logits, y in answers:
            # Of ten classes this goes along the samples, and argmax along memory: both much faster.
            by_class, labels = logits.mT, y.expand(len(logits), -1)
            each = F.cross_entropy(by_class, labels, reduction="none")
            loss = loss + each.sum(-1).to(torch.float64)
            correct = correct + (logits.contiguous().argmax(-1) == y).sum(-1)
            among = among + (_ahead(by_class, labels[:, None]) < 5).sum(-1)
        if ranks is not None:
            ranks.sum(correct, loss, among)
        means = ((total / n).tolist() for total in (correct, loss, among))
        metrics += [Metrics(*measured) for measured in zip(*means, strict=True)]
    found = dict(zip(distinct, metrics, strict=True))
    return [found[id(state)] for state in states]


def _ahead(by_class: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before each sample's own: a `topk` of ten takes ten times as long.

    by_class: logits [runs, classes, batch]; labels: [runs, 1, batch] -> [runs, batch].
    """
    own = by_class.gather(1, labels)
    earlier = torch.arange(by_class.shape[1], device=labels.device)[:, None] < labels
    return (~(by_class <= own) | ((by_class == own) & earlier)).sum(1)


def predict(
    model: nn.Module, states: Sequence[State], images: Split, batch_size: int = 1000
) -> Tensor:
    """Logits of every state on every sample, in eval mode: [states, samples, classes], CPU."""
    return torch.cat(
        [
            torch.cat([logits.cpu() for logits, _ in answers], 1)
            for answers in _answers(model, states, images, batch_size)
        ]
    )


def _answers(
    model: nn.Module, states: Sequence[State], images: Split, batch_size: int
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """For every stack of states: (logits [runs, batch, classes], labels [batch]) batch by batch.

    A stack is done with before the next is asked for.
    """
    for state in states:
        require_state(state, "one of the states")
    last = len(images) % batch_size or batch_size
    kind, together = stack_for(model, images, min(batch_size, len(images)), last)
    net: Stacked | Single | None = None
    for start in range(0, len(states), together):
        if isinstance(net, Single):
            net.load(states[start])
        else:
            net = kind(model, states[start : start + together], images.device)
        yield _of_batches(net, images, batch_size)


def _of_batches(
    net: Stacked | Single, images: Split, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    for x, y in in_order(images, batch_size):
        with torch.no_grad():
            yield net.logits(x.expand(net.runs, *x.shape)), y
