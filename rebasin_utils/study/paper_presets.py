"""Both papers at their own scale, table by table and figure by figure.

The `paper-…` presets follow the text of Adnan et al. 2025, the `sign-paper-…` presets that of Oh et
al. 2025. Each of a CIFAR or Tiny-ImageNet table has a twin, `…-as-released`, with the deviations of
the released code switched on, for comparison with the published numbers, which that code made.
"""

from __future__ import annotations

from typing import Any

from rebasin_utils.study.parts import Dense, Imp
from rebasin_utils.study.settings import Settings

#: The methods that the paper compares, and the points of a path.
COMPARED = ("lth", "naive", "permuted")
TENTHS = tuple(i / 10 for i in range(11))

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
        seeds=3,
        data=dict(source=dataset),
        model=dict(name=model, width=width),
        dense=Dense(epochs=200, lr=0.08),
        imp=Imp(epochs=50, lr=0.01, momentum=0.0, weight_decay=0.0),
        sparse=dict(sparsities=sparsities, rewind_epochs=rewinds, methods=COMPARED),
        paths=dict(alphas=TENTHS, statistics_samples=50_000),
    )


def _paper_nets(name: str, width: int, dataset: str, **changes: Any) -> Settings:
    """ResNet20 by the protocol of the tables, for what the paper shows beside them."""
    settings = _paper("resnet20", width, dataset, (), ())
    return settings.with_values(name=f"paper-{name}", **changes)


def _ensembles(name: str, width: int, dataset: str, sparsity: float) -> Settings:
    """The rewind epoch is not published; accuracies near 10 fit."""
    look = dict(sparsity=sparsity, rewind_epoch=10, ensemble_size=5)
    return _paper_nets(
        name,
        width,
        dataset,
        sparse=dict(sparsities=(sparsity,), rewind_epochs=(10,), methods=COMPARED),
        closer_look=look,
        **{"imp.prune_b": True},
    )


def _early(sparsity: float) -> Settings:
    look = dict(sparsity=sparsity, rewind_epoch=20, match_epochs=(5, 20, 50, 100))
    return _paper_nets(
        f"table15-s{sparsity:.2f}",
        1,
        "cifar10",
        sparse=dict(sparsities=(sparsity,), rewind_epochs=(20,), methods=COMPARED),
        closer_look=look,
    )


#: Table 1; its CIFAR-100 half fits 95%. Table 15. Figures 3, 4a, 4b.
_SHOWN = {
    "paper-table1": (
        _ensembles("table1-cifar10", 1, "cifar10", 0.90),
        _ensembles("table1-cifar100", 4, "cifar100", 0.95),
    ),
    "paper-table15": tuple(map(_early, _FOUR)),
    "paper-figure3": tuple(
        _paper_nets(f"figure3-w{width}-{dataset}", width, dataset)
        for dataset in ("cifar10", "cifar100")
        for width in (1, 4, 8, 16)
    ),
    "paper-figure4a": (
        _paper_nets(
            "figure4a",
            4,
            "cifar10",
            sparse=dict(sparsities=(0.90,), methods=()),
            **{"paths.to_every_round": True},
        ),
    ),
    "paper-figure4b": (
        _paper_nets(
            "figure4b",
            4,
            "cifar10",
            sparse=dict(sparsities=(0.90,), rewind_epochs=(20,), methods=("lth", "permuted")),
            closer_look=dict(sparsity=0.90, rewind_epoch=20, plane_points=21),
        ),
    ),
}


#: The rebuttal's table of masks on SVHN; where they came from is not published.
_PAPER_SVHN = _paper_nets(
    "svhn",
    1,
    "svhn",
    sparse=dict(sparsities=_FOUR, rewind_epochs=(10, 20), methods=()),
    reuse=dict(source="cifar10"),
    paths=dict(alphas=()),
)


def as_released(settings: Settings) -> Settings:
    """The same study with everything that the released code does otherwise."""
    model = settings.model.name
    return settings.with_values(
        name=f"{settings.name}-as-released",
        as_released=dict(
            rewind_off_by_one=True,
            imp_tolerance=0.0 if model.startswith("vgg") else 0.005,
            stream_tap="released_code",
            match_std="mean_of_batches" if model.startswith("resnet") else "pooled",
            match_augmented=True,
        ),
    )


#: Oh et al. 2025: (name, net, rate of its training).
_SIGN_NETS = (
    ("resnet50", "resnet50_small", 0.1),
    ("mobilenetv2", "mobilenet_v2_small", 0.05),
    ("efficientnet-b0", "efficientnet_b0_small", 0.1),
    ("shufflenet", "shufflenet_g3", 0.1),
)


def _sign_paper(name: str, model: str, lr: float, dataset: str) -> Settings:
    """Fifteen rounds of 20%, transfers of 100 epochs; its masks leave about 3.5%."""
    return Settings(
        name=f"sign-paper-{name}-{dataset}",
        seeds=2,
        data=dict(source=dataset),
        model=dict(name=model),
        dense=Dense(epochs=100, lr=lr, schedule="steps"),
        imp=Imp(epochs=0, lr=lr),
        paths=dict(alphas=(), statistics_samples=50_000),
        signs=dict(
            rate=0.2,
            lr=lr,
            warm_up=10,
            round_epochs=10,
            epochs=100,
            rounds=(5, 10, 15),
            procedures=("lrr", "aws"),
            rewind_epochs=() if model == "shufflenet_g3" else (0,),  # no unit of it can be moved
        ),
    )


def _sign_imagenet(
    name: str, model: str, optimizer: str, lr: float, weight_decay: float, batch_size: int
) -> Settings:
    """Ten rounds of five epochs; its masks leave 10.7%."""
    how = dict(lr=lr, weight_decay=weight_decay, batch_size=batch_size, optimizer=optimizer)
    return Settings(
        name=f"sign-paper-{name}-imagenet",
        seeds=2,
        data=dict(source="imagenet"),
        model=dict(name=model),
        dense=Dense(epochs=100, schedule="cosine to a thousandth", **how),
        imp=Imp(epochs=0, **how),
        paths=dict(alphas=(), statistics_samples=50_000),
        signs=dict(
            rate=0.2,
            lr=lr,
            warm_up=20,
            round_epochs=5,
            epochs=100,
            rounds=(10,),
            procedures=("lrr", "aws"),
        ),
    )


def _sign_as_released(settings: Settings) -> Settings:
    """CIFAR-100 normalised as CIFAR-10, parts of Tiny-ImageNet's images, EfficientNet's dropout."""
    changes: dict[str, Any] = {}
    if settings.data.source == "cifar100":
        changes = {"data.mean": (0.4914, 0.4822, 0.4465), "data.std": (0.2023, 0.1994, 0.2010)}
    elif settings.data.source == "tiny-imagenet":
        changes = {"data.crop": "part", "data.smallest": 0.5}
    if settings.model.name == "efficientnet_b0_small":
        changes["model.name"] = "efficientnet_b0_small_dropout"
    return settings.with_values(name=f"{settings.name}-as-released", **changes)


#: The same on ImageNet: (name, net, optimiser, rate, weight decay, batch).
_SIGN_IMAGENET = (
    ("resnet50", "resnet50", "adam", 0.001, 1e-5, 256),
    ("mobilenetv2", "mobilenet_v2", "sgd", 0.05, 5e-5, 256),
    ("mlp-mixer", "mlp_mixer", "adam", 0.001, 5e-5, 512),
)

_SIGN_PAPER = {
    "cifar100": tuple(_sign_paper(*net, "cifar100") for net in _SIGN_NETS),
    "tiny-imagenet": tuple(_sign_paper(*net, "tiny-imagenet") for net in _SIGN_NETS),
    "imagenet": tuple(_sign_imagenet(*net) for net in _SIGN_IMAGENET),
}

_SIGN_AS_RELEASED = {
    dataset: tuple(map(_sign_as_released, _SIGN_PAPER[dataset]))
    for dataset in ("cifar100", "tiny-imagenet")
}

PAPER = tuple(_paper(*table) for table in _TABLES)

#: Every preset of either paper, by its name.
PUBLISHED: dict[str, tuple[Settings, ...]] = {
    **{s.name: (s,) for s in PAPER},
    **{as_released(s).name: (as_released(s),) for s in PAPER},
    **_SHOWN,
    "paper-svhn": (_PAPER_SVHN,),
    **{f"sign-paper-{dataset}": studies for dataset, studies in _SIGN_PAPER.items()},
    **{s.name: (s,) for studies in _SIGN_PAPER.values() for s in studies},
    **{s.name: (s,) for studies in _SIGN_AS_RELEASED.values() for s in studies},
    **{f"sign-paper-{dataset}-as-released": s for dataset, s in _SIGN_AS_RELEASED.items()},
    **{f"{name}-as-released": tuple(map(as_released, s)) for name, s in _SHOWN.items()},
}
