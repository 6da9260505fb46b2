"""Diversity metrics against hand-made cases, scipy and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import entropy

from rebasin_utils.errors import InputError
from rebasin_utils.landscape import diversity


def logits(*probabilities: list[float]) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


@pytest.fixture(params=[0, 1, 2])
def nets(request) -> torch.Tensor:
    """Three nets' logits on 40 samples of 5 classes."""
    generator = torch.Generator().manual_seed(request.param)
    return 3 * torch.randn(3, 40, 5, generator=generator, dtype=torch.float64)


def test_a_case_by_hand():
    p, q = logits([1.0, 0.0], [0.5, 0.5]), logits([0.5, 0.5], [0.5, 0.5])
    assert diversity.kl(p, q) == pytest.approx(math.log(2) / 2)  # ln 2 and 0
    assert diversity.kl(q, p) == math.inf
    # m = (¾, ¼): ½ ln 4/3 + ½ (½ ln ⅔ + ½ ln 2)
    expected = (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 4
    assert diversity.js(p, q) == pytest.approx(expected)
    assert (
        diversity.disagreement(logits([0.9, 0.1], [0.2, 0.8]), logits([0.6, 0.4], [0.7, 0.3]))
        == 0.5
    )


def test_nets_that_share_no_class_are_as_far_apart_as_can_be():
    p, q = logits([1.0, 0.0]), logits([0.0, 1.0])
    table = diversity.pairs(torch.stack([p, q]))
    assert table[["disagreement", "js_bits"]].iloc[0].tolist() == pytest.approx([1, 1])
    assert table["js"].iloc[0] == pytest.approx(math.log(2))


def test_a_net_differs_in_nothing_from_itself(nets):
    table = diversity.pairs(torch.stack([nets[0], nets[0] + 7.0]))  # the same probabilities
    assert table[list(diversity.METRICS)].abs().max(axis=None) < 1e-12


def test_divergences_agree_with_scipy(nets):
    p, q, _ = softmax(nets.numpy(), axis=-1)
    assert diversity.kl(nets[0], nets[1]) == pytest.approx(entropy(p, q, axis=-1).mean())
    nats = np.square(jensenshannon(p, q, axis=-1)).mean()
    assert diversity.js(nets[0], nets[1]) == pytest.approx(nats)


def test_divergences_and_disagreement_agree_with_torchmetrics(nets):
    metrics = pytest.importorskip("torchmetrics.functional")
    p, q = nets[0].softmax(-1), nets[1].softmax(-1)
    expected = metrics.regression.kl_divergence(p, q).item()
    assert diversity.kl(nets[0], nets[1]) == pytest.approx(expected)
    both = dict(task="multiclass", num_classes=5, average="micro")
    agreement = metrics.accuracy(p.argmax(-1), q.argmax(-1), **both).item()
    assert diversity.disagreement(nets[0], nets[1]) == pytest.approx(1 - agreement)


def test_every_pair_is_listed_once_and_only_kl_depends_on_the_order(nets):
    table, reversed_ = diversity.pairs(nets), diversity.pairs(nets.flip(0))
    assert list(zip(table["first"], table["second"], strict=True)) == [(0, 1), (0, 2), (1, 2)]
    for metric in diversity.METRICS:
        same = sorted(table[metric]) == pytest.approx(sorted(reversed_[metric]))
        assert same == (metric != "kl")
    assert (table["symmetric_kl"] >= 2 * table["js"] - 1e-12).all()  # by convexity of KL
    assert table["js"].between(0, math.log(2)).all()


def test_an_ensemble_answers_with_its_mean_probability_not_by_vote():
    sure, unsure = [0.98, 0.01, 0.01], [0.3, 0.4, 0.3]
    nets = torch.stack([logits(sure), logits(unsure), logits(unsure)])
    assert diversity.ensemble_accuracy(nets, torch.tensor([0])) == 1
    assert diversity.ensemble_accuracy(nets, torch.tensor([1])) == 0  # the majority's answer


def test_logits_of_other_samples_are_refused():
    with pytest.raises(InputError, match=r"\(3, 2\) and \(4, 2\)"):
        diversity.kl(torch.zeros(3, 2), torch.zeros(4, 2))
