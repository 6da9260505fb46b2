"""Bad settings are refused in one sentence that names the field, the value and what is allowed."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass

import pytest

from rebasin_utils.errors import InputError
from rebasin_utils.nets.data import SOURCES
from rebasin_utils.nets.models import MODELS
from rebasin_utils.study.parts import SPARSE_METHODS, Dense, Imp
from rebasin_utils.study.settings import MOVED, Settings, assignments, dotted, parsed
from rebasin_utils.training.recipes import Recipe

GOOD = Settings(
    name="good",
    data=dict(source="fashion-mnist-10k"),
    model=dict(name="mlp"),
    dense=Dense(epochs=10, lr=0.1, momentum=0.8, weight_decay=1e-3, batch_size=32),
    imp=Imp(epochs=2, lr=0.01),
    sparse=dict(lr=0.03, sparsities=(0.5, 0.9), rewind_epochs=(0, 3)),
)

BAD = [
    # changes, and what the sentence must hold: field, value, what is allowed
    ({"data.source": "mnist"}, ["data.source", "'mnist'", *SOURCES]),
    ({"model.name": "resnet"}, ["model.name", "'resnet'", *MODELS]),
    ({"name": "Über"}, ["name", "'Über'", "a-z0-9"]),
    ({"name": "../up"}, ["name", "'../up'", "a-z0-9"]),
    ({"name": ""}, ["name", "''", "a-z0-9"]),
    ({"seeds": 0}, ["seeds", "0", "greater than or equal to 1"]),
    ({"seeds": -1}, ["seeds", "-1", "greater than or equal to 1"]),
    ({"seeds": 2.5}, ["seeds", "2.5", "integer"]),
    ({"seeds": "many"}, ["seeds", "'many'", "integer"]),
    ({"seeds": None}, ["seeds", "None", "integer"]),
    ({"model.width": 0}, ["model.width", "0", "greater than or equal to 1"]),
    ({"model.width": 65}, ["model.width", "65", "less than or equal to 64"]),
    ({"data.pool": 0}, ["data.pool", "0", "greater than or equal to 1"]),
    ({"data.train_limit": 0}, ["data.train_limit", "0", "greater than or equal to 1"]),
    ({"data.test_limit": 0}, ["data.test_limit", "0", "greater than or equal to 1"]),
    ({"sparse.sparsities": (0.5, 1.0)}, ["sparse.sparsities[1]", "1.0", "less than 1"]),
    ({"sparse.sparsities": (-0.1,)},
     ["sparse.sparsities[0]", "-0.1", "greater than or equal to 0"]),
    ({"sparse.sparsities": (math.nan,)}, ["sparse.sparsities[0]", "nan"]),
    ({"sparse.sparsities": 0.5}, ["sparse.sparsities", "0.5", "tuple"]),
    ({"sparse.sparsities": (0.5, 0.5)}, ["sparse.sparsities", "(0.5, 0.5)", "once"]),
    ({"sparse.rewind_epochs": (10,)}, ["sparse.rewind_epochs", "10", "below", "10 epochs"]),
    ({"sparse.rewind_epochs": (0, 11)}, ["sparse.rewind_epochs", "11", "below", "10 epochs"]),
    ({"sparse.rewind_epochs": (-1,)},
     ["sparse.rewind_epochs[0]", "-1", "greater than or equal to 0"]),
    ({"sparse.rewind_epochs": (1, 1)}, ["sparse.rewind_epochs", "(1, 1)", "once"]),
    ({"sparse.methods": ("lht",)}, ["sparse.methods[0]", "'lht'", *SPARSE_METHODS]),
    ({"sparse.methods": ("dense",)}, ["sparse.methods[0]", "'dense'", *SPARSE_METHODS]),
    ({"sparse.methods": ("lth", "lth")}, ["sparse.methods", "('lth', 'lth')", "once"]),
    ({"sparse.lr": 0}, ["sparse.lr", "0", "greater than 0"]),
    ({"sparse.lr": math.inf}, ["sparse.lr", "inf", "finite"]),
    ({"sparse.lr": math.nan}, ["sparse.lr", "nan"]),
    ({"as_released.imp_tolerance": 0.1}, ["as_released.imp_tolerance", "0.1", "less than 0.1"]),
    ({"as_released.imp_tolerance": -0.1},
     ["as_released.imp_tolerance", "-0.1", "greater than or equal to 0"]),
    ({"matching.objective": "l2"},
     ["matching.objective", "'l2'", "correlation", "covariance", "inner_product"]),
    ({"as_released.match_std": "mean"},
     ["as_released.match_std", "'mean'", "pooled", "mean_of_batches"]),
    ({"matching.samples": 0}, ["matching.samples", "0", "greater than or equal to 1"]),
    ({"as_released.stream_tap": "first"},
     ["as_released.stream_tap", "'first'", "last", "released_code"]),
    ({"paths.alphas": (0.0, 0.5)}, ["paths.alphas", "[0.0, 0.5]", "from 0 to 1"]),
    ({"paths.alphas": (0.5,)}, ["paths.alphas", "[0.5]", "from 0 to 1"]),
    ({"paths.alphas": (0.0, 1.5, 1.0)}, ["paths.alphas[1]", "1.5", "less than or equal to 1"]),
    ({"paths.statistics_samples": 0},
     ["paths.statistics_samples", "0", "greater than or equal to 1"]),
    ({"seds": 3}, ["seds", "3", "no such setting", "seeds", "sparse.sparsities"]),
    ({"dense.lr": -1}, ["dense.lr", "-1", "greater than 0"]),
    ({"dense.lr": math.nan}, ["dense.lr", "nan"]),
    ({"dense.lr": math.inf}, ["dense.lr", "inf", "finite"]),
    ({"dense.epochs": -1}, ["dense.epochs", "-1", "greater than or equal to 0"]),
    ({"dense.epochs": 3}, ["sparse.rewind_epochs", "3", "below", "3 epochs"]),
    ({"dense.batch_size": 0}, ["dense.batch_size", "0", "greater than or equal to 1"]),
    ({"dense.learning_rate": 1}, ["dense.learning_rate", "1", "no such setting", "dense.lr"]),
    ({"dense": {"epochs": 9, "lr": 1, "momentom": 0.5}},
     ["dense.momentom", "0.5", "no such setting", "dense.momentum"]),
    ({"imp.momentum": 1.0}, ["imp.momentum", "1.0", "less than 1"]),
    ({"imp.weight_decay": -1e-4}, ["imp.weight_decay", "-0.0001", "greater than or equal to 0"]),
    ({"imp": 5}, ["imp", "5"]),
    ({"seeds.lr": 5}, ["seeds.lr", "5", "no such setting"]),
    ({"ipm.lr": 5}, ["ipm.lr", "5", "no such setting"]),
    ({"imp.learning_rate": 1}, ["imp.learning_rate", "1", "no such setting", "imp.lr"]),
    ({"imp.prune_b": "perhaps"}, ["imp.prune_b", "'perhaps'", "boolean"]),
    ({"sparse.sparsity": 0.5},
     ["sparse.sparsity", "0.5", "no such setting", "sparse.sparsities"]),
    ({"sparse": {"sparsity": 0.5}},
     ["sparse.sparsity", "0.5", "no such setting", "sparse.sparsities"]),
    ({"paths.samples": 0}, ["paths.samples", "0", "greater than or equal to 1"]),
    ({"closer_look.match_epochs": (10,)},
     ["closer_look.match_epochs", "10", "below", "10 epochs"]),
    ({"closer_look.match_epochs": (1, 1)}, ["closer_look.match_epochs", "(1, 1)", "once"]),
    ({"closer_look.sparsity": 1}, ["closer_look.sparsity", "1", "less than 1"]),
    ({"closer_look.rewind_epoch": -1},
     ["closer_look.rewind_epoch", "-1", "greater than or equal to 0"]),
    ({"closer_look.ensemble_size": -1},
     ["closer_look.ensemble_size", "-1", "greater than or equal to 0"]),
    ({"closer_look.plane_points": 202},
     ["closer_look.plane_points", "202", "less than or equal to 201"]),
    ({"data": 5}, ["data", "5"]),
    ({"data": {}}, ["data.source", "required"]),
    ({"name.first": "a"}, ["name.first", "'a'", "no such setting", "seeds"]),
    ({"plugins": ("nowhere.to.be.found",)},
     ["plugins", "'nowhere.to.be.found'", "cannot be imported"]),
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
    with pytest.raises(InputError, match=r"^model: .*required"):
        Settings.of(values)
    with pytest.raises(InputError, match=r"^model\.name: .*required"):
        Settings.of(values | {"model": {"width": 2}})


@pytest.mark.parametrize("old", MOVED)
def test_a_setting_that_had_another_name_is_told_by_its_new_one(old):
    sentence = f"{old} = 1: this setting is now called {MOVED[old]}"
    with pytest.raises(InputError) as raised:
        GOOD.with_values(**{old: 1})
    assert str(raised.value) == sentence
    assert old not in dotted(GOOD)
    assert set(MOVED[old].split(" and ")) <= set(dotted(GOOD))


#: Every setting as it was called before there were parts.
OLD = {
    "name", "dataset", "model", "width", "seeds", "pool", "train_limit", "test_limit", "augment",
    "dense", "imp", "sparse_lr", "sparsities", "rewind_epochs", "methods", "tickets_of_b",
    "prune_shortcuts", "match_on", "match_samples", "alphas", "path_samples", "statistics_samples",
    "paths_to_every_round", "cell", "match_epochs", "ensemble_size", "plane_points",
    "rewind_off_by_one", "imp_tolerance", "stream_tap", "match_std",
}  # fmt: skip


def test_no_old_name_is_forgotten():
    still = {"name", "seeds", "model", "dense", "imp"}  # of what is called so, or of a part
    assert OLD - set(MOVED) == still
    with pytest.raises(InputError, match=r"^model = 'vgg11': .*model\.name"):
        GOOD.with_values(model="vgg11")


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


def test_a_part_may_be_given_as_a_whole():
    changed = GOOD.with_values(sparse={"lr": 0.5}, **{"data.pool": 2})
    assert (changed.sparse.lr, changed.sparse.sparsities) == (0.5, ())  # not what it was: all of it
    assert (changed.data.pool, changed.data.source) == (2, GOOD.data.source)


def test_every_setting_has_one_dotted_name_that_changes_it():
    names = dotted(GOOD)
    assert names["data.source"] == "fashion-mnist-10k"
    assert names["sparse.sparsities"] == (0.5, 0.9)
    assert names["imp.prune_b"] is False
    for name, value in names.items():
        assert dotted(GOOD.with_values(**{name: value})) == names


def test_values_are_written_as_on_the_command_line():
    texts = ["seeds=5", "dense.lr=0.1", 'sparse.methods=["lth"]', "data.source=fashion-mnist"]
    texts += ["data.augment=False", "imp.prune_b=true", "data.train_limit=None", "name=a=b"]
    assert assignments(texts) == {
        "seeds": 5, "dense.lr": 0.1, "sparse.methods": ["lth"], "data.source": "fashion-mnist",
        "data.augment": False, "imp.prune_b": True, "data.train_limit": None, "name": "a=b",
    }  # fmt: skip
    assert [parsed(text) for text in ("None", "null", "1e-3", "x", "")] == [
        None, None, 1e-3, "x", "",
    ]  # fmt: skip
    for text in ("seeds", "=5", ""):
        with pytest.raises(InputError, match="write it as name=value"):
            assignments([text])


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="frozen"):
        GOOD.seeds = 5
    with pytest.raises(ValueError, match="frozen"):
        GOOD.sparse.lr = 5
    with pytest.raises(AttributeError):
        GOOD.dense.lr = 5


def test_a_sparse_run_has_the_dense_recipe_over_the_epochs_that_are_left():
    for k in (0, 3):
        recipe = GOOD.sparse_recipe(k)
        assert recipe.epochs == 10 - k
        assert recipe.lr == 0.03
        assert (recipe.momentum, recipe.weight_decay, recipe.batch_size) == (0.8, 1e-3, 32)


def test_rewind_epoch_zero_is_the_init_unless_the_released_code_is_asked_for():
    assert [GOOD.saved_epoch(k) for k in (0, 3)] == [0, 3]
    released = GOOD.with_values(**{"as_released.rewind_off_by_one": True})
    assert [released.saved_epoch(k) for k in (0, 3)] == [1, 4]
    assert released.sparse_recipe(3) == GOOD.sparse_recipe(3)


def test_every_setting_says_what_it_is():
    for name, field in Settings.model_fields.items():
        assert field.description, name
        part = field.annotation
        for inner, own in getattr(part, "model_fields", {}).items():
            assert own.description, f"{name}.{inner}"
        if is_dataclass(part):  # a recipe says it in a sentence of its own
            new = {f.name.rstrip("_") for f in fields(part)} - {f.name for f in fields(Recipe)}
            assert all(f"{inner}: " in part.__doc__ for inner in new)


@pytest.mark.parametrize(
    ("cell", "closer"),
    [((0.5, 3), True), ((0.7, 3), False), ((0.5, 1), False), ((None, None), False)],
)
def test_only_a_cell_of_the_grid_is_looked_at_closer(cell, closer):
    names = ("closer_look.sparsity", "closer_look.rewind_epoch")
    assert GOOD.with_values(**dict(zip(names, cell, strict=True))).looks_closer is closer


def test_the_fine_tuning_is_the_recipe_of_imp_and_nothing_else():
    imp = Imp(epochs=2, lr=0.01, momentum=0.3, prune_b=True, prune_shortcuts=True)
    assert imp.recipe == Recipe(epochs=2, lr=0.01, momentum=0.3)
    assert type(imp.recipe) is Recipe


def test_a_recipe_is_the_papers_unless_said_otherwise():
    recipe = Recipe(epochs=1, lr=0.1)
    assert (recipe.momentum, recipe.weight_decay, recipe.batch_size) == (0.9, 5e-4, 128)
