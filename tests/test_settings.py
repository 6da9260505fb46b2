"""Bad settings are refused in one sentence that names the field, the value and what is allowed."""

from __future__ import annotations

import math

import pytest

from rebasin_utils.data import SOURCES
from rebasin_utils.errors import InputError
from rebasin_utils.models import MODELS
from rebasin_utils.settings import SPARSE_METHODS, Settings
from rebasin_utils.training import Recipe

GOOD = Settings(
    name="good",
    dataset="fashion-mnist-10k",
    model="mlp",
    dense=Recipe(epochs=10, lr=0.1, momentum=0.8, weight_decay=1e-3, batch_size=32),
    imp=Recipe(epochs=2, lr=0.01),
    sparse_lr=0.03,
    sparsities=(0.5, 0.9),
    rewind_epochs=(0, 3),
)

BAD = [
    # changes, and what the sentence must hold: field, value, what is allowed
    ({"dataset": "mnist"}, ["dataset", "'mnist'", *SOURCES]),
    ({"model": "resnet"}, ["model", "'resnet'", *MODELS]),
    ({"name": "Über"}, ["name", "'Über'", "a-z0-9"]),
    ({"name": "../up"}, ["name", "'../up'", "a-z0-9"]),
    ({"name": ""}, ["name", "''", "a-z0-9"]),
    ({"seeds": 0}, ["seeds", "0", "greater than or equal to 1"]),
    ({"seeds": -1}, ["seeds", "-1", "greater than or equal to 1"]),
    ({"seeds": 2.5}, ["seeds", "2.5", "integer"]),
    ({"seeds": "many"}, ["seeds", "'many'", "integer"]),
    ({"seeds": None}, ["seeds", "None", "integer"]),
    ({"width": 0}, ["width", "0", "greater than or equal to 1"]),
    ({"width": 65}, ["width", "65", "less than or equal to 64"]),
    ({"pool": 0}, ["pool", "0", "greater than or equal to 1"]),
    ({"train_limit": 0}, ["train_limit", "0", "greater than or equal to 1"]),
    ({"test_limit": 0}, ["test_limit", "0", "greater than or equal to 1"]),
    ({"sparsities": (0.5, 1.0)}, ["sparsities[1]", "1.0", "less than 1"]),
    ({"sparsities": (-0.1,)}, ["sparsities[0]", "-0.1", "greater than or equal to 0"]),
    ({"sparsities": (math.nan,)}, ["sparsities[0]", "nan"]),
    ({"sparsities": 0.5}, ["sparsities", "0.5", "tuple"]),
    ({"sparsities": (0.5, 0.5)}, ["sparsities", "(0.5, 0.5)", "once"]),
    ({"rewind_epochs": (10,)}, ["rewind_epochs", "10", "below", "10 epochs"]),
    ({"rewind_epochs": (0, 11)}, ["rewind_epochs", "11", "below", "10 epochs"]),
    ({"rewind_epochs": (-1,)}, ["rewind_epochs[0]", "-1", "greater than or equal to 0"]),
    ({"rewind_epochs": (1, 1)}, ["rewind_epochs", "(1, 1)", "once"]),
    ({"methods": ("lht",)}, ["methods[0]", "'lht'", *SPARSE_METHODS]),
    ({"methods": ("dense",)}, ["methods[0]", "'dense'", *SPARSE_METHODS]),
    ({"methods": ("lth", "lth")}, ["methods", "('lth', 'lth')", "once"]),
    ({"sparse_lr": 0}, ["sparse_lr", "0", "greater than 0"]),
    ({"sparse_lr": math.inf}, ["sparse_lr", "inf", "finite"]),
    ({"sparse_lr": math.nan}, ["sparse_lr", "nan"]),
    ({"imp_tolerance": 0.1}, ["imp_tolerance", "0.1", "less than 0.1"]),
    ({"imp_tolerance": -0.1}, ["imp_tolerance", "-0.1", "greater than or equal to 0"]),
    ({"match_on": "l2"}, ["match_on", "'l2'", "correlation", "covariance", "inner_product"]),
    ({"match_std": "mean"}, ["match_std", "'mean'", "pooled", "mean_of_batches"]),
    ({"match_samples": 0}, ["match_samples", "0", "greater than or equal to 1"]),
    ({"stream_tap": "first"}, ["stream_tap", "'first'", "last", "released_code"]),
    ({"alphas": (0.0, 0.5)}, ["alphas", "[0.0, 0.5]", "from 0 to 1"]),
    ({"alphas": ()}, ["alphas", "[]", "from 0 to 1"]),
    ({"alphas": (0.0, 1.5, 1.0)}, ["alphas[1]", "1.5", "less than or equal to 1"]),
    ({"statistics_samples": 0}, ["statistics_samples", "0", "greater than or equal to 1"]),
    ({"seds": 3}, ["seds", "3", "no such setting", "seeds", "sparsities"]),
    ({"dense.lr": -1}, ["dense.lr", "-1", "greater than 0"]),
    ({"dense.lr": math.nan}, ["dense.lr", "nan"]),
    ({"dense.lr": math.inf}, ["dense.lr", "inf", "finite"]),
    ({"dense.epochs": -1}, ["dense.epochs", "-1", "greater than or equal to 0"]),
    ({"dense.epochs": 3}, ["rewind_epochs", "3", "below", "3 epochs"]),
    ({"dense.batch_size": 0}, ["dense.batch_size", "0", "greater than or equal to 1"]),
    ({"dense.learning_rate": 1}, ["dense.learning_rate", "1", "no such setting", "dense.lr"]),
    ({"dense": {"epochs": 9, "lr": 1, "momentom": 0.5}},
     ["dense.momentom", "0.5", "no such setting", "momentum"]),
    ({"imp.momentum": 1.0}, ["imp.momentum", "1.0", "less than 1"]),
    ({"imp.weight_decay": -1e-4}, ["imp.weight_decay", "-0.0001", "greater than or equal to 0"]),
    ({"imp": 5}, ["imp", "5"]),
    ({"seeds.lr": 5}, ["seeds.lr", "5", "no such setting"]),
    ({"ipm.lr": 5}, ["ipm.lr", "5", "no such setting"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "parts"), BAD, ids=lambda x: str(x) if type(x) is dict else "")
def test_a_bad_setting_is_refused_in_one_sentence(changes, parts):
    with pytest.raises(InputError) as raised:
        GOOD.with_values(**changes)
    sentence = str(raised.value)
    assert "\n" not in sentence
    for part in parts:
        assert part in sentence
    assert sentence.index(parts[0]) == 0
    if "=" in sentence:
        assert sentence.startswith(f"{parts[0]} = ")


def test_a_missing_setting_is_named():
    values = GOOD.model_dump()
    del values["model"]
    with pytest.raises(InputError, match=r"model.*required"):
        Settings.of(values)


def test_settings_come_back_from_json_as_they_went():
    assert Settings.model_validate_json(GOOD.model_dump_json()) == GOOD
    assert Settings.of(GOOD.model_dump()) == GOOD


def test_changing_a_setting_makes_new_settings_and_leaves_the_old():
    before = GOOD.model_dump()
    changed = GOOD.with_values(seeds=7, **{"dense.lr": 0.5, "imp.epochs": 4})
    assert (changed.seeds, changed.dense.lr, changed.imp.epochs) == (7, 0.5, 4)
    assert changed.dense.momentum == GOOD.dense.momentum
    assert GOOD.model_dump() == before
    assert changed.with_values(seeds=3, **{"dense.lr": 0.1, "imp.epochs": 2}) == GOOD


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        GOOD.seeds = 5
    with pytest.raises(AttributeError):
        GOOD.dense.lr = 5


def test_a_sparse_run_has_the_dense_recipe_over_the_epochs_that_are_left():
    for k in (0, 3):
        recipe = GOOD.sparse_recipe(k)
        assert recipe.epochs == 10 - k
        assert recipe.lr == 0.03
        assert (recipe.momentum, recipe.weight_decay, recipe.batch_size) == (0.8, 1e-3, 32)


def test_rewind_epoch_zero_is_the_init_unless_the_released_code_is_asked_for():
    assert GOOD.snapshots == {0: 0, 3: 3}
    released = GOOD.with_values(rewind_off_by_one=True)
    assert released.snapshots == {0: 1, 3: 4}
    assert released.sparse_recipe(3) == GOOD.sparse_recipe(3)


def test_every_setting_says_what_it_is():
    for name, field in Settings.model_fields.items():
        assert field.description, name


def test_a_recipe_is_the_papers_unless_said_otherwise():
    recipe = Recipe(epochs=1, lr=0.1)
    assert (recipe.momentum, recipe.weight_decay, recipe.batch_size) == (0.9, 5e-4, 128)
