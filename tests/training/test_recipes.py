"""A recipe says how a run is trained, and what of that a key hashes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from rebasin_utils.training.recipes import Recipe

FIELDS = {
    "epochs": st.integers(0, 300),
    "lr": st.floats(1e-6, 10),
    "momentum": st.floats(0, 0.99),
    "weight_decay": st.floats(0, 1),
    "batch_size": st.integers(1, 4096),
}


@given(st.fixed_dictionaries(FIELDS))
@settings(deadline=None)
def test_the_facts_of_a_cosine_are_its_numbers_and_nothing_else(numbers):
    """What keys were hashed from when there was no other schedule."""
    facts = Recipe(**numbers).facts()
    assert list(facts.items()) == [(name, numbers[name]) for name in FIELDS]
    assert Recipe(**numbers, schedule="cosine").facts() == facts


def test_a_constant_rate_is_a_fact():
    cosine, constant = (Recipe(5, 0.1, schedule=s) for s in ("cosine", "constant"))
    assert constant.facts() == cosine.facts() | {"schedule": "constant"}


def test_every_fact_makes_the_recipe_again():
    for recipe in (Recipe(5, 0.1), Recipe(5, 0.1, 0.0, 0.0, 64, "constant")):
        assert Recipe(**recipe.facts()) == recipe


def test_the_learning_rate_is_torchs_cosine_from_one_to_zero():
    recipe = Recipe(epochs=17, lr=0.3)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 17)
    for epoch in range(18):
        expected = optimizer.param_groups[0]["lr"]
        assert recipe.lr * recipe.lr_factor(epoch) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        cosine.step()


def test_a_cosine_to_a_thousandth_is_torchs():
    recipe = Recipe(epochs=17, lr=0.3, schedule="cosine to a thousandth")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 17, eta_min=0.0003)
    for epoch in range(18):
        expected = optimizer.param_groups[0]["lr"]
        assert recipe.lr * recipe.lr_factor(epoch) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        cosine.step()


def test_adam_is_a_fact_and_sgd_is_none():
    sgd, adam = (Recipe(5, 0.1, optimizer=name) for name in ("sgd", "adam"))
    assert sgd.facts() == Recipe(5, 0.1).facts()
    assert adam.facts() == sgd.facts() | {"optimizer": "adam"}


def test_a_constant_learning_rate_stays_what_it_is():
    recipe = Recipe(epochs=17, lr=0.3, schedule="constant")
    assert {recipe.lr_factor(epoch) for epoch in range(18)} == {1.0}


def test_another_schedule_is_refused():
    with pytest.raises(ValidationError, match=r"'cosine', .*'steps', 'imagenet' or 'constant'"):
        Recipe(5, 0.1, schedule="linear")


def test_steps_are_a_tenth_from_the_middle_and_a_hundredth_from_three_quarters():
    recipe = Recipe(epochs=100, lr=0.3, schedule="steps")
    factors = [recipe.lr_factor(epoch) for epoch in range(100)]
    assert factors == pytest.approx([1.0] * 50 + [0.1] * 25 + [0.01] * 25)


def test_the_imagenet_schedule_is_the_released_codes():
    recipe = Recipe(epochs=90, lr=0.04, schedule="imagenet")
    for epoch in range(1, 91):
        full = (0.4 - 0.01) / 5 * epoch if epoch <= 5 else 0.4 * 0.1 ** (epoch // 31)
        assert recipe.lr * recipe.lr_factor(epoch - 1) == pytest.approx(full / 10), epoch
    short = Recipe(epochs=39, lr=0.04, schedule="imagenet")  # restarted and cut off, at k = 50
    assert all(short.lr_factor(e) == recipe.lr_factor(e) for e in range(39))
