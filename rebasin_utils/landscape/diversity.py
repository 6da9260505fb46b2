"""How differently several networks answer, and how well they do so together.

For two nets with class probabilities p and q on the same samples, averaged over the samples:

    disagreement  share of samples with another most probable class           in [0, 1]
    KL            Σ p ln(p / q), nats; not symmetric                          in [0, ∞)
    symmetric KL  (KL(p, q) + KL(q, p)) / 2, nats                             in [0, ∞)
    JS            (KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2, nats        in [0, ln 2]
    JS in bits    JS / ln 2                                                   in [0, 1]

An ensemble answers with the mean of its members' probabilities. Fort et al. 2019 and Evci et al.
2022 compare solutions so; the paper's Table 1 does not say which base or direction it takes.
"""

from __future__ import annotations

import math
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from rebasin_utils.errors import InputError

#: What `pairs` measures of two nets.
METRICS = ("disagreement", "kl", "symmetric_kl", "js", "js_bits")


def disagreement(first: Tensor, second: Tensor) -> float:
    """Share of samples to which two nets give another class; logits [samples, classes]."""
    _check(first, second)
    return (first.argmax(-1) != second.argmax(-1)).double().mean().item()


def kl(first: Tensor, second: Tensor) -> float:
    """Mean Kullback–Leibler divergence KL(first, second), nats; logits [samples, classes]."""
    _check(first, second)
    return _kl(_log_p(first), _log_p(second))


def js(first: Tensor, second: Tensor) -> float:
    """Mean Jensen–Shannon divergence, nats; logits [samples, classes]."""
    _check(first, second)
    p, q = _log_p(first), _log_p(second)
    middle = torch.logaddexp(p, q) - math.log(2)
    return (_kl(p, middle) + _kl(q, middle)) / 2


def pairs(logits: Tensor) -> pd.DataFrame:
    """Every pair of nets: first, second and `METRICS`; KL is of the second from the first.

    Args:
        logits: [nets, samples, classes], all on the same samples.
    """
    rows = []
    for i, j in combinations(range(len(logits)), 2):
        first, second = logits[i], logits[j]
        there, back, shared = kl(first, second), kl(second, first), js(first, second)
        differ = disagreement(first, second)
        rows.append((i, j, differ, there, (there + back) / 2, shared, shared / math.log(2)))
    return pd.DataFrame(rows, columns=["first", "second", *METRICS])


def ensemble_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Accuracy in [0, 1] of the mean of the nets' probabilities.

    Args:
        logits: [nets, samples, classes]; labels: [samples].
    """
    answer = torch.logsumexp(_log_p(logits), 0).argmax(-1)
    return (answer == labels).double().mean().item()


def _log_p(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def _kl(log_p: Tensor, log_q: Tensor) -> float:
    terms = torch.where(log_p == -math.inf, 0.0, log_p.exp() * (log_p - log_q))
    return terms.sum(-1).mean().item()


def _check(first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape or first.ndim != 2:
        raise InputError(
            f"logits of shapes {tuple(first.shape)} and {tuple(second.shape)}: both must be "
            "[samples, classes], of the same samples"
        )
