"""The named studies: from a unit test to the published tables.

A preset is a tuple of `Settings`. The `paper-…` presets follow the paper's text; each has a twin,
`…-as-released`, with the deviations of the released code switched on, for comparison with the
published tables, which that code made.
"""

from __future__ import annotations

from rebasin_utils.errors import InputError
from rebasin_utils.settings import Settings
from rebasin_utils.training import Recipe

_POCKET_DATA = dict(dataset="fashion-mnist-10k", pool=2, augment=False)

_SMOKE = Settings(
    name="smoke",
    **_POCKET_DATA,
    train_limit=512,
    test_limit=1000,
    model="mlp",
    seeds=2,
    dense=Recipe(epochs=2, lr=0.08),
    imp=Recipe(epochs=1, lr=0.02),
    sparsities=(0.5, 0.8),
    rewind_epochs=(0, 1),
    tickets_of_b=True,
    paths_to_every_round=True,
    cell=(0.8, 1),
    match_epochs=(1,),
    ensemble_size=2,
    plane_points=3,
    statistics_samples=256,
)

_POCKET_GRID = Settings(
    name="pocket-mlp",
    **_POCKET_DATA,
    model="mlp",
    seeds=4,
    dense=Recipe(epochs=10, lr=0.08),
    imp=Recipe(epochs=3, lr=0.02),
    sparsities=(0.80, 0.90, 0.95, 0.97),
    rewind_epochs=(0, 1, 2, 5),
    tickets_of_b=True,
    alphas=tuple(i / 10 for i in range(11)),
    path_samples=2500,
    cell=(0.90, 2),
    match_epochs=(0, 1, 2, 5),
    ensemble_size=5,
    plane_points=21,
)


_SMOKE_WIDTHS = tuple(
    _SMOKE.with_values(
        name=f"smoke-w{width}",
        width=width,
        sparsities=(0.5,),
        rewind_epochs=(1,),
        methods=("lth", "naive", "permuted"),
        tickets_of_b=False,
        paths_to_every_round=False,
        cell=(0.5, 1),
        match_epochs=(),
        ensemble_size=0,
        plane_points=0,
    )
    for width in (1, 2)
)


def _pocket_resnet(width: int) -> Settings:
    return Settings(
        name="pocket-resnet8" + (f"-w{width}" if width > 1 else ""),
        dataset="fashion-mnist-10k",
        pool=4,
        train_limit=3000,
        test_limit=3000,
        augment=False,
        model="resnet8",
        width=width,
        seeds=3,
        dense=Recipe(epochs=6, lr=0.08),
        imp=Recipe(epochs=1, lr=0.02),
        sparsities=(0.90,),
        rewind_epochs=(2,),
        methods=("lth", "naive", "permuted"),
        cell=(0.90, 2),
        path_samples=600,
        statistics_samples=600,
    )


def _workstation(width: int) -> Settings:
    return Settings(
        name=f"workstation-resnet20-w{width}",
        dataset="fashion-mnist",
        model="resnet20",
        width=width,
        seeds=3,
        dense=Recipe(epochs=30, lr=0.08),
        imp=Recipe(epochs=5, lr=0.01, momentum=0.0, weight_decay=0.0),
        sparsities=(0.90, 0.97),
        rewind_epochs=(0, 2, 5),
        tickets_of_b=True,
        alphas=tuple(i / 10 for i in range(11)),
        paths_to_every_round=True,
        cell=(0.90, 2),
        match_epochs=(0, 1, 2, 5, 10, 20),
        ensemble_size=5,
        plane_points=21 if width == 1 else 0,
    )


_LONG = (0, 5, 10, 15, 20, 25, 50, 75, 100)
_SHORT = (0, 10, 25, 50, 100)
_VGG = (0, 5, 10, 15, 20, 25, 50)
_FOUR = (0.80, 0.90, 0.95, 0.97)

#: (model, width, data set, rewind epochs, sparsities) of every CIFAR table that was published.
_TABLES = (
    ("resnet20", 1, "cifar10", _LONG, _FOUR),
    ("resnet20", 4, "cifar10", _LONG, _FOUR),
    ("resnet20", 8, "cifar10", _SHORT, _FOUR),
    ("resnet20", 16, "cifar10", _SHORT, _FOUR),
    ("resnet20", 1, "cifar100", _SHORT, _FOUR),
    ("resnet20", 4, "cifar100", _SHORT, _FOUR),
    ("resnet20", 8, "cifar100", _SHORT, _FOUR),
    ("resnet20", 16, "cifar100", _SHORT, _FOUR),
    ("vgg11", 1, "cifar10", _VGG, (0.80, 0.90)),
)


def _paper(
    model: str, width: int, dataset: str, rewinds: tuple[int, ...], sparsities: tuple[float, ...]
) -> Settings:
    """Adnan et al. 2025, Sections 4 and A; the IMP optimiser is the released runs' plain SGD."""
    return Settings(
        name=f"paper-{model}-w{width}-{dataset}",
        dataset=dataset,
        model=model,
        width=width,
        seeds=3,
        dense=Recipe(epochs=200, lr=0.08),
        imp=Recipe(epochs=50, lr=0.01, momentum=0.0, weight_decay=0.0),
        sparse_lr=0.02,
        sparsities=sparsities,
        rewind_epochs=rewinds,
        methods=("lth", "naive", "permuted"),
        alphas=tuple(i / 10 for i in range(11)),
        statistics_samples=50_000,
    )


def as_released(settings: Settings) -> Settings:
    """The same study with everything that the released code does otherwise."""
    return settings.with_values(
        name=f"{settings.name}-as-released",
        rewind_off_by_one=True,
        imp_tolerance=0.0 if settings.model.startswith("vgg") else 0.005,
        stream_tap="released_code",
        match_std="mean_of_batches" if settings.model.startswith("resnet") else "pooled",
    )


_PAPER = tuple(_paper(*table) for table in _TABLES)

PRESETS: dict[str, tuple[Settings, ...]] = {
    "smoke": (_SMOKE,),
    "smoke-widths": _SMOKE_WIDTHS,
    "pocket": (_POCKET_GRID, _pocket_resnet(1), _pocket_resnet(2)),
    "workstation": (_workstation(1), _workstation(4)),
    "paper": _PAPER,
    **{s.name: (s,) for s in _PAPER},
    **{as_released(s).name: (as_released(s),) for s in _PAPER},
}

#: What each preset is for, in a line.
PURPOSE = {
    "smoke": "unit tests: a few hundred images, seconds",
    "smoke-widths": "the same for what compares widths",
    "pocket": "real evidence on a laptop, minutes: the default everywhere",
    "workstation": "one GPU, about half an hour: full Fashion-MNIST, ResNet20",
    "paper": "every published CIFAR table: GPU-days, a cluster",
}


def preset(name: str) -> tuple[Settings, ...]:
    """The studies of a preset; InputError when there is none of that name."""
    if name not in PRESETS:
        raise InputError(f"preset = {name!r}: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
