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

    top5: the share of samples whose class is among the five that have the largest logits.
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

    ranks: each takes a part of the samples; all get the same answers.

    Raises:
        InputError: when one of the states is none.
    """
    n, metrics = len(images), []
    images = images if ranks is None else ranks.share(images)
    for answers in _answers(model, states, images, batch_size):
        correct = among = loss = torch.zeros((), device=images.device, dtype=torch.float64)
        for logits, y in answers:
            # Of ten classes this goes along the samples, and argmax along memory: both much faster.
            each = F.cross_entropy(logits.mT, y.expand(len(logits), -1), reduction="none")
            loss = loss + each.sum(-1).to(torch.float64)
            logits = logits.contiguous()
            correct = correct + (logits.argmax(-1) == y).sum(-1)
            five = logits.topk(min(5, logits.shape[-1])).indices
            among = among + (five == y[:, None]).any(-1).sum(-1)
        if ranks is not None:
            ranks.sum(correct, loss, among)
        means = ((total / n).tolist() for total in (correct, loss, among))
        metrics += [Metrics(*measured) for measured in zip(*means, strict=True)]
    return metrics


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
