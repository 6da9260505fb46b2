"""The presets are what they say, and the paper's are the paper's, number by number."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from rebasin_utils.chapters import published
from rebasin_utils.errors import InputError
from rebasin_utils.nets.data import SOURCES
from rebasin_utils.study.paper_presets import as_released
from rebasin_utils.study.parts import SPARSE_METHODS
from rebasin_utils.study.plan import Plan
from rebasin_utils.study.presets import (
    PRESETS,
    PURPOSE,
    changed,
    described,
    preset,
)
from rebasin_utils.study.settings import Settings
from rebasin_utils.study.stages import imp

ALL = {settings.name: settings for studies in PRESETS.values() for settings in studies}
PAPER = {settings.name: settings for settings in preset("paper")}
RELEASED = {name: ALL[f"{name}-as-released"] for name in PAPER}

#: preset -> the published table that it repeats.
TABLES = {
    "paper-resnet20-w1-cifar10": "ws_table3_resnet20_w1_cifar10",
    "paper-resnet20-w4-cifar10": "ws_table4_resnet20_w4_cifar10",
    "paper-vgg11-w1-cifar10": "ws_table5_vgg11_w1_cifar10",
    "paper-resnet20-w8-cifar10": "icml_table7_resnet20_w8_cifar10",
    "paper-resnet20-w16-cifar10": "icml_table8_resnet20_w16_cifar10",
    "paper-resnet20-w1-cifar100": "icml_table11_resnet20_w1_cifar100",
    "paper-resnet20-w4-cifar100": "icml_table12_resnet20_w4_cifar100",
    "paper-resnet20-w8-cifar100": "icml_table13_resnet20_w8_cifar100",
    "paper-resnet20-w16-cifar100": "icml_table14_resnet20_w16_cifar100",
}

#: preset -> (sparse epochs of three methods, dense epochs, IMP epochs as released), three seeds.
BUDGETS = {
    "paper-resnet20-w1-cifar10": (54_000, 1_200, 2_700),
    "paper-resnet20-w4-cifar10": (54_000, 1_200, 2_700),
    "paper-resnet20-w8-cifar10": (29_340, 1_200, 2_700),
    "paper-resnet20-w16-cifar10": (29_340, 1_200, 2_700),
    "paper-resnet20-w1-cifar100": (29_340, 1_200, 2_700),
    "paper-resnet20-w4-cifar100": (29_340, 1_200, 2_700),
    "paper-resnet20-w8-cifar100": (29_340, 1_200, 2_700),
    "paper-resnet20-w16-cifar100": (29_340, 1_200, 2_700),
    "paper-vgg11-w1-cifar10": (22_950, 1_200, 1_800),
}


@cache
def plan(name: str) -> Plan:
    """Tests share it: nobody can change a plan."""
    return Plan(ALL[name])


def epochs(settings: Settings, stage: str) -> int:
    return sum(node.epochs for node in plan(settings.name).nodes(stage))


# -------------------------------------------------------------------------- every preset


@pytest.mark.parametrize("name", ALL)
def test_every_preset_is_valid_and_outlives_json(name):
    settings = ALL[name]
    assert Settings.of(settings.model_dump()) == settings
    assert Settings.model_validate_json(settings.model_dump_json()) == settings
    height = SOURCES[settings.data.source].shape[1]
    assert height % settings.data.pool == 0


@pytest.mark.parametrize("name", ALL)
def test_no_two_artifacts_of_a_preset_share_a_place(name):
    nodes = plan(name).all_nodes()
    twice = [path for path, n in Counter(node.key.path for node in nodes).items() if n > 1]
    assert not twice
    assert len({node.key.digest for node in nodes}) == len(nodes)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("together", [False, True])
def test_the_lots_for_the_workers_hold_every_artifact_once_and_children_after_parents(
    name, together
):
    for stage in plan(name).stages:
        lots = plan(name).tasks(stage, together)
        dealt = [node.key for lot in lots for node in lot]
        assert Counter(dealt) == Counter(node.key for node in plan(name).nodes(stage))
        for lot in lots:
            place = {node.key: i for i, node in enumerate(lot)}
            for i, node in enumerate(lot):
                for parent in node.parents:
                    if parent.stage == stage:  # a round and the one it starts from
                        assert place[parent.key] < i


def test_names_are_unique_and_every_preset_that_people_choose_has_its_purpose():
    by_name = Counter(s.name for studies in map(PRESETS.get, PURPOSE) for s in studies)
    assert set(by_name.values()) == {1}
    assert {"smoke", "pocket", "workstation", "paper"} <= set(PURPOSE)
    assert set(PURPOSE) <= set(PRESETS)


def test_an_unknown_preset_is_refused_with_the_names_there_are():
    with pytest.raises(InputError) as raised:
        preset("pokect")
    said = str(raised.value)
    assert said.startswith(f"preset = 'pokect': choose one of {', '.join(PURPOSE)}, or one of ")
    assert f"the {len(PRESETS.keys() - PURPOSE.keys())} single studies" in said


def test_a_preset_is_changed_by_dotted_names():
    (smoke,) = changed("smoke", {"seeds": 3, "dense.lr": 0.5})
    assert smoke == preset("smoke")[0].with_values(seeds=3, **{"dense.lr": 0.5})
    assert changed("pocket", {}) == list(preset("pocket"))
    with pytest.raises(InputError, match=r"^sparse\.learning_rate = 1: no such setting"):
        changed("smoke", {"sparse.learning_rate": 1})
    with pytest.raises(InputError, match=r"^preset = 'pokect': "):
        changed("pokect", {})


def test_studies_that_a_change_makes_equal_are_one():
    one, two = preset("smoke-widths")
    assert one.model.width != two.model.width
    assert changed("smoke-widths", {"model.width": 2}) == [one.with_values(**{"model.width": 2})]
    assert len(changed("smoke-widths", {"seeds": 3})) == 2


def test_a_study_is_described_in_a_few_words():
    assert described(preset("smoke")[0]) == "smoke: mlp×1 on fashion-mnist-10k, 2 pairs"
    assert len({described(settings) for settings in ALL.values()}) == len(ALL)


# -------------------------------------------------------------------------- the laptop's


def test_the_pocket_grid_is_large_enough_for_the_main_claim_and_needs_no_download():
    grid, *others = preset("pocket")
    assert grid.seeds >= 8
    assert len(grid.sparse.sparsities) >= 3
    assert 0.90 in grid.sparse.sparsities
    assert len(grid.sparse.rewind_epochs) >= 3
    assert 0 in grid.sparse.rewind_epochs
    assert grid.sparse.epochs == grid.dense.epochs  # whatever a run starts from
    assert {*grid.sparse.methods, *grid.closer_look.controls} == set(SPARSE_METHODS)
    assert grid.imp.prune_b
    for settings in (grid, *others, *preset("smoke")):
        assert SOURCES[settings.data.source].torchvision is None
    for settings in (grid, *others, *preset("smoke"), *preset("workstation")):
        assert not settings.as_released.rewind_off_by_one
        assert settings.as_released.imp_tolerance == 0
        assert settings.as_released.stream_tap == "last"
        assert settings.as_released.match_std == "pooled"


# -------------------------------------------------------------------------- the paper's


def test_there_is_a_preset_for_every_published_cifar_table():
    assert set(TABLES) == set(PAPER)


@pytest.mark.parametrize("name", TABLES)
def test_a_paper_preset_asks_for_exactly_the_cells_of_its_table(name):
    settings, table = PAPER[name], published.table(TABLES[name])
    cells = {
        (sparsity, k, method.lower())
        for sparsity, k, method in table[["sparsity", "rewind_epoch", "method"]].itertuples(
            index=False
        )
    }
    nodes = plan(name).nodes("sparse")
    asked = {tuple(n.at[at] for at in ("sparsity", "rewind_epoch", "method")) for n in nodes}
    assert asked == cells
    (model,), (width,), (dataset,) = (set(table[c]) for c in ("model", "width", "dataset"))
    assert (settings.model.name, settings.model.width) == (model.lower(), width)
    assert settings.data.source == dataset.lower().replace("-", "")


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("variant", [PAPER, RELEASED], ids=["text", "as released"])
def test_the_papers_hyperparameters_are_those_of_the_protocol(name, variant):
    s = variant[name]
    assert s.seeds == 3
    assert s.data.augment
    assert (s.data.pool, s.data.train_limit, s.matching.samples) == (1, None, None)
    assert s.matching.objective == "correlation"
    # Section 1.3: dense training
    assert (s.dense.epochs, s.dense.lr) == (200, 0.08)
    assert (s.dense.momentum, s.dense.weight_decay, s.dense.batch_size) == (0.9, 5e-4, 128)
    # Section 1.4: IMP by plain SGD, since the released runs pass it no momentum and no decay
    assert (s.imp.epochs, s.imp.lr, s.imp.batch_size) == (50, 0.01, 128)
    assert (s.imp.momentum, s.imp.weight_decay) == (0, 0)
    assert not s.imp.prune_shortcuts
    # Section 1.6: sparse training over what is left of the 200 epochs
    for k in s.sparse.rewind_epochs:
        sparse = s.sparse_recipe(k)
        assert (sparse.epochs, sparse.lr) == (200 - k, 0.02)
        assert (sparse.momentum, sparse.weight_decay, sparse.batch_size) == (0.9, 5e-4, 128)
    assert set(s.sparse.methods) == {"lth", "naive", "permuted"}
    # Section 1.8: eleven points
    assert s.paths.alphas == pytest.approx([i / 10 for i in range(11)])


def test_the_papers_text_is_followed_where_the_code_differs():
    for settings in PAPER.values():
        assert not settings.as_released.rewind_off_by_one
        assert all(settings.saved_epoch(k) == k for k in settings.sparse.rewind_epochs)
        assert settings.as_released.imp_tolerance == 0
        assert settings.as_released.stream_tap == "last"
        assert settings.as_released.match_std == "pooled"
        drawn = {t: r.sparsity for r in imp.rounds(settings) for t in r.targets}
        assert drawn == {t: pytest.approx(t, abs=1e-9) for t in settings.sparse.sparsities}


@pytest.mark.parametrize("name", PAPER)
def test_the_released_codes_deviations_are_switches_and_nothing_else_differs(name):
    text, code = PAPER[name].model_dump(), RELEASED[name].model_dump()
    assert {part for part in text if text[part] != code[part]} == {"name", "as_released"}
    assert code["name"] == f"{name}-as-released"
    assert as_released(PAPER[name]) == RELEASED[name]
    model, text, code = code["model"]["name"], text["as_released"], code["as_released"]
    differing = {field for field in text if text[field] != code[field]}
    allowed = {
        "rewind_off_by_one", "imp_tolerance", "stream_tap", "match_std", "match_augmented"
    }  # fmt: skip
    assert code["rewind_off_by_one"]
    assert code["match_augmented"]
    if model == "resnet20":
        assert differing == allowed
        assert code["imp_tolerance"] == 0.005
        assert code["stream_tap"] == "released_code"
        assert code["match_std"] == "mean_of_batches"
    else:  # VGG was matched with pooled moments and pruned with a tolerance of 5e-7
        assert differing <= {"rewind_off_by_one", "stream_tap", "match_augmented"}


def test_the_released_ninety_five_percent_is_945024():
    settings = RELEASED["paper-resnet20-w1-cifar10"]
    drawn = {t: r.sparsity for r in imp.rounds(settings) for t in r.targets}
    assert {t: round(s, 6) for t, s in drawn.items()} == {
        0.80: 0.8, 0.90: 0.9, 0.95: 0.945024, 0.97: 0.97
    }  # fmt: skip


@pytest.mark.parametrize("name", BUDGETS)
def test_a_table_costs_the_epochs_that_were_counted_for_it(name):
    sparse, dense, imp = BUDGETS[name]
    assert epochs(RELEASED[name], "sparse") == epochs(PAPER[name], "sparse") == sparse
    assert epochs(RELEASED[name], "dense") == epochs(PAPER[name], "dense") == dense
    assert epochs(RELEASED[name], "imp") == imp
    if PAPER[name].model.name == "resnet20":
        assert epochs(PAPER[name], "imp") == imp + 150  # 95% hit exactly costs a branch more
        assert dense + imp == 3_900


@pytest.mark.parametrize("settings", preset("sign-paper-imagenet"), ids=lambda s: s.name)
def test_the_sign_papers_imagenet_runs_have_its_numbers(settings):
    quoted = published.table("aws_hyperparameters").query("dataset == 'ImageNet'")
    net = settings.name.removeprefix("sign-paper-").removesuffix("-imagenet").replace("-", "")
    archs = quoted["arch"].str.lower().str.replace("-", "").str.split(" ").str[0]
    (row,) = quoted[(quoted["pruning_rounds"] > 0) & (archs == net)].itertuples()
    s, dense = settings.signs, settings.dense
    assert (dense.optimizer, s.lr) == (row.optimizer.lower(), float(row.lr))
    assert dense.weight_decay == float(row.weight_decay)
    assert (dense.batch_size, s.rate) == (int(row.batch_size), 0.2)
    assert row.epochs == f"{s.warm_up} + {s.round_epochs} per round"
    assert s.rounds == (int(row.pruning_rounds),)
    assert 1 - 0.8 ** s.rounds[0] == pytest.approx(float(row.final_sparsity), abs=1e-3)
    assert (s.epochs, dense.schedule) == (100, "cosine to a thousandth")


def test_the_sign_papers_twins_have_what_its_code_does_otherwise():
    """Protocol 1.15."""
    for settings in preset("sign-paper-cifar100-as-released"):
        assert settings.data.mean == (0.4914, 0.4822, 0.4465)
        assert settings.data.std == (0.2023, 0.1994, 0.2010)
        assert settings.data.crop == "padded"
    for settings in preset("sign-paper-tiny-imagenet-as-released"):
        assert (settings.data.crop, settings.data.smallest) == ("part", 0.5)
        assert settings.data.mean is None
    for dataset in ("cifar100", "tiny-imagenet"):
        names = [s.model.name for s in preset(f"sign-paper-{dataset}-as-released")]
        assert [name for name in names if "dropout" in name] == ["efficientnet_b0_small_dropout"]
