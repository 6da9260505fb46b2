"""The named studies: from a unit test to the published tables.

A preset is a tuple of `Settings`. Those at the papers' own scale are in `paper_presets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rebasin_utils.errors import InputError
from rebasin_utils.study.imagenet_presets import (
    PAPER_IMAGENET,
    PAPER_IMAGENET_AS_RELEASED,
    POCKET_IMAGENET,
)
from rebasin_utils.study.paper_presets import COMPARED, PAPER, PUBLISHED, TENTHS
from rebasin_utils.study.parts import Dense, Imp
from rebasin_utils.study.settings import Settings, dotted

_POCKET_DATA = dict(source="fashion-mnist-10k", pool=2, augment=False)

_SMOKE = Settings(
    name="smoke",
    seeds=2,
    data=dict(**_POCKET_DATA, train_limit=512, test_limit=1000),
    model=dict(name="mlp"),
    dense=Dense(epochs=2, lr=0.08),
    imp=Imp(epochs=1, lr=0.02, prune_b=True),
    sparse=dict(sparsities=(0.5, 0.8), rewind_epochs=(0, 1)),
    paths=dict(statistics_samples=256, to_every_round=True),
    closer_look=dict(
        sparsity=0.8,
        rewind_epoch=1,
        match_epochs=(1,),
        match_images=(16, 128),
        ensemble_size=2,
        plane_points=3,
    ),
)

#: Nine pairs: three ensembles of five that share no net. The sparse runs have the dense ones' rate
#: and as many epochs, whatever they start from; effects are then of the paper's size.
_POCKET_GRID = Settings(
    name="pocket-mlp",
    seeds=9,
    data=_POCKET_DATA,
    model=dict(name="mlp"),
    dense=Dense(epochs=10, lr=0.08),
    imp=Imp(epochs=3, lr=0.02, prune_b=True),
    sparse=dict(
        epochs=10,
        lr=0.08,
        sparsities=(0.80, 0.90, 0.97),
        rewind_epochs=(0, 2, 5),
        methods=COMPARED,
    ),
    budgets=dict(epochs=(0,)),
    rescaling=dict(rewind_epochs=(0,)),
    paths=dict(alphas=TENTHS),
    closer_look=dict(
        sparsity=0.90,
        rewind_epoch=2,
        controls=("random_mask", "random_permutation"),
        match_epochs=(0, 1, 2, 5),
        match_images=(20, 100, 500, 2000),
        ensemble_size=5,
        plane_points=21,
    ),
)


_SMOKE_WIDTHS = tuple(
    _SMOKE.with_values(
        name=f"smoke-w{width}",
        sparse=dict(sparsities=(0.5,), rewind_epochs=(1,), methods=COMPARED),
        paths=dict(statistics_samples=256),
        closer_look=dict(sparsity=0.5, rewind_epoch=1),
        **{"model.width": width, "imp.prune_b": False},
    )
    for width in (1, 2)
)


def _pocket_resnet(width: int) -> Settings:
    """Dense nets and the paths between them; sparse runs of residual nets are evening's."""
    return Settings(
        name="pocket-resnet8" + (f"-w{width}" if width > 1 else ""),
        seeds=3,
        data=dict(
            source="fashion-mnist-10k", pool=4, train_limit=3000, test_limit=1000, augment=False
        ),
        model=dict(name="resnet8", width=width),
        dense=Dense(epochs=6, lr=0.08),
        imp=Imp(epochs=1, lr=0.02),
        paths=dict(samples=1000, statistics_samples=400),
    )


_FASHION = dict(source="fashion-mnist-10k", pool=2, augment=False)
_CIFAR = dict(source="cifar10-jpeg", pool=2, limit=10_000, scale_pad=True)


def _evening(
    name: str,
    seeds: int,
    sparsities: tuple[float, ...],
    rewinds: tuple[int, ...],
    data: Mapping[str, Any],
    model: str = "resnet8",
    width: int = 1,
) -> Settings:
    """A residual net with equal budgets, as pocket's; 95% at k = 2 is looked at closer."""
    return Settings(
        name=f"evening-{name}",
        seeds=seeds,
        data=data,
        model=dict(name=model, width=width),
        dense=Dense(epochs=15, lr=0.08),
        imp=Imp(epochs=2, lr=0.02),
        sparse=dict(
            epochs=15, lr=0.08, sparsities=sparsities, rewind_epochs=rewinds, methods=COMPARED
        ),
        paths=dict(alphas=TENTHS, samples=2000),
        closer_look=dict(sparsity=0.95, rewind_epoch=2, match_epochs=(1, 5)),
    )


def _signs(name: str, model: str, lr: float, seeds: int, **signs: Any) -> Settings:
    """36% a round: as many weights left after 10 rounds as after 20 of the paper's."""
    return Settings(
        name=name,
        seeds=seeds,
        data=_POCKET_DATA,
        model=dict(name=model),
        dense=Dense(epochs=10, lr=lr),
        imp=Imp(epochs=0, lr=lr),
        paths=dict(alphas=()),
        signs=dict(rate=0.36, lr=lr, warm_up=6, round_epochs=3, epochs=6, **signs),
    )


_POCKET_SIGNS = (
    _signs(
        "pocket-signs",
        "mlp_bn",
        0.1,
        5,
        rounds=(6, 10),
        rewind_epochs=(0, 2),
        agreement_epochs=(0, 1, 2, 4, 8),
    ),
    _signs(
        "pocket-signs-no-norm",
        "mlp",
        0.05,
        5,
        rounds=(9,),
        procedures=("lrr",),
        rewind_epochs=(),
        rescale=True,
    ),
)


def _reuse(name: str, source: str, target: str) -> Settings:
    """The grid's nets and tickets on the one side, the digits' on the other; nothing else."""
    return _POCKET_GRID.with_values(
        name=name,
        seeds=6,
        sparse=dict(epochs=10, lr=0.08, sparsities=(0.90,), rewind_epochs=(0, 5), methods=()),
        paths=dict(alphas=()),
        closer_look={},
        budgets={},
        rescaling={},
        **{"data.source": target, "reuse.source": source, "imp.prune_b": False},
    )


_POCKET_REUSE = (
    _reuse("pocket-fashion-to-digits", "fashion-mnist-10k", "mnist-5k"),
    _reuse("pocket-digits-to-fashion", "mnist-5k", "fashion-mnist-10k"),
)

_SMOKE_REUSE = (
    _POCKET_REUSE[0].with_values(
        name="smoke-reuse",
        seeds=2,
        sparse=dict(epochs=2, sparsities=(0.5,), rewind_epochs=(0, 1), methods=()),
        **{
            "dense.epochs": 2,
            "imp.epochs": 1,
            "data.train_limit": 512,
            "data.test_limit": 1000,
        },
    ),
)

_SMOKE_SIGNS = tuple(
    settings.with_values(
        name=settings.name.replace("pocket", "smoke"),
        seeds=2,
        data=dict(**_POCKET_DATA, train_limit=512, test_limit=1000),
        **{
            "dense.epochs": 2,
            "paths.statistics_samples": 256,
            "signs.rounds": (1, 2) if len(settings.signs.rounds) > 1 else (2,),
            "signs.warm_up": 1,
            "signs.round_epochs": 1,
            "signs.epochs": 2,
            "signs.rewind_epochs": settings.signs.rewind_epochs and (0, 1),
            "signs.agreement_epochs": settings.signs.agreement_epochs and (0, 1),
        },
    )
    for settings in _POCKET_SIGNS
)

#: By priority.
_EVENING = (
    _evening("resnet8", 8, (0.90, 0.95), (0, 2, 5), _CIFAR),
    _evening("resnet8-w2", 8, (0.95,), (0, 2), _CIFAR, width=2),
    _evening("resnet8-fashion", 8, (0.95,), (0, 2), _FASHION),
    _evening("resnet8-w4", 8, (0.95,), (2,), _CIFAR, width=4),
    _evening("resnet20", 8, (0.95,), (2,), _CIFAR, "resnet20"),
)


def _workstation(width: int) -> Settings:
    return Settings(
        name=f"workstation-resnet20-w{width}",
        seeds=3,
        data=dict(source="fashion-mnist"),
        model=dict(name="resnet20", width=width),
        dense=Dense(epochs=30, lr=0.08),
        imp=Imp(epochs=5, lr=0.01, momentum=0.0, weight_decay=0.0, prune_b=True),
        sparse=dict(sparsities=(0.90, 0.97), rewind_epochs=(0, 2, 5)),
        paths=dict(alphas=TENTHS, to_every_round=True),
        closer_look=dict(
            sparsity=0.90,
            rewind_epoch=2,
            match_epochs=(0, 1, 2, 5, 10, 20),
            ensemble_size=5,
            plane_points=21 if width == 1 else 0,
        ),
    )


PRESETS: dict[str, tuple[Settings, ...]] = {
    "smoke": (_SMOKE,),
    "smoke-widths": _SMOKE_WIDTHS,
    "smoke-signs": _SMOKE_SIGNS,
    "smoke-reuse": _SMOKE_REUSE,
    "pocket": (
        _POCKET_GRID,
        _pocket_resnet(1),
        _pocket_resnet(2),
        *_POCKET_SIGNS,
        *_POCKET_REUSE,
    ),
    "pocket-imagenet": (POCKET_IMAGENET,),
    "evening": _EVENING,
    "workstation": (_workstation(1), _workstation(4)),
    "paper": PAPER,
    **{s.name: (s,) for s in _EVENING},
    **PUBLISHED,
    **{s.name: (s,) for s in (*PAPER_IMAGENET, *PAPER_IMAGENET_AS_RELEASED)},
}

#: What each preset is for, in a line.
PURPOSE = {
    "smoke": "unit tests: a few hundred images, seconds",
    "smoke-widths": "the same for what compares widths",
    "smoke-signs": "the same for signed masks",
    "smoke-reuse": "the same for a mask on other data",
    "pocket": "real evidence on a laptop, minutes: the default everywhere",
    "pocket-imagenet": "what ImageNet asks for in miniature, a minute: JPEGs, bottlenecks",
    "evening": "residual nets on CIFAR-10 without a GPU, hours: its results ship",
    "workstation": "one GPU, about half an hour: full Fashion-MNIST, ResNet20",
    "paper": "every published CIFAR table of sparse runs: GPU-days, a cluster",
    "paper-table1": "the ensembles of Table 1",
    "paper-table15": "early matching, Table 15",
    "paper-figure3": "the paths of Figure 3, all widths",
    "paper-figure4a": "dense to IMP iterates, Figure 4a",
    "paper-figure4b": "the plane of Figure 4b",
    "sign-paper-cifar100": "the second paper's nets and rounds on CIFAR-100: GPU-weeks",
    "sign-paper-tiny-imagenet": "the same on Tiny-ImageNet",
    "sign-paper-imagenet": "its three nets on ImageNet, two of them with Adam: GPU-months",
    "paper-resnet50-w1-imagenet": "ResNet50 on ImageNet, Table 10: several GPUs, torchrun",
    "paper-resnet50-w2-imagenet": "the same twice as wide, four times within the bottlenecks",
    "paper-svhn": "the mask on other data, CIFAR-10 to SVHN: the rebuttal's table",
}


def preset(name: str) -> tuple[Settings, ...]:
    """The studies of a preset; InputError when there is none of that name."""
    if name not in PRESETS:
        raise InputError(
            f"preset = {name!r}: choose one of {', '.join(PURPOSE)}, or one of the "
            f"{len(PRESETS) - len(PURPOSE)} single studies and twins that `rebasin presets` lists"
        )
    return PRESETS[name]


def changed(name: str, changes: Mapping[str, Any]) -> list[Settings]:
    """The studies of a preset with some settings changed, by their dotted names.

    Studies that the changes make equal are one.

    Raises:
        InputError: when there is no such preset or setting, or a value is not allowed.
    """
    found: dict[Settings, Settings] = {}
    for settings in preset(name):
        other = settings.with_values(**changes)
        found.setdefault(other.model_copy(update={"name": ""}), other)
    return list(found.values())


def differences(name: str) -> dict[str, tuple[Any, Any]]:
    """What a preset's studies set otherwise: by dotted name, (there, here).

    "There" is the preset of the same name without `-as-released` where there is one, else
    the first study of `pocket`. Of several studies, the first that differs is named.
    """
    studies = preset(name)
    twin = name.removesuffix("-as-released")
    others = PRESETS[twin] if twin != name else PRESETS["pocket"][:1] * len(studies)
    found: dict[str, tuple[Any, Any]] = {}
    for settings, other in zip(studies, others, strict=True):
        there = dotted(other)
        for field, here in dotted(settings).items():
            if field != "name" and here != there.get(field):
                found.setdefault(field, (there.get(field), here))
    return found


def described(settings: Settings) -> str:
    """A study in a few words."""
    s = settings
    return f"{s.name}: {s.model.name}×{s.model.width} on {s.data.source}, {s.seeds} pairs"
