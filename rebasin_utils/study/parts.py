"""The parts of a study's settings that several stages read: `part.field`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass

from rebasin_utils.errors import InputError
from rebasin_utils.nets import data, own_nets
from rebasin_utils.nets.data import AS_THEY_ARE, SOURCES, Reading
from rebasin_utils.nets.models import MODELS
from rebasin_utils.nets.sources import SMALLEST, Crop
from rebasin_utils.training.recipes import Recipe

SparseMethod = Literal["lth", "naive", "permuted", "random_mask", "random_permutation"]
SPARSE_METHODS: tuple[SparseMethod, ...] = SparseMethod.__args__
METHODS = ("dense", "imp", *SPARSE_METHODS)

Procedure = Literal["lrr", "aws", "finetuning"]
PROCEDURES: tuple[Procedure, ...] = Procedure.__args__

Sparsity = Annotated[float, Field(ge=0, lt=1)]
Epoch = Annotated[int, Field(ge=0)]


class Part(BaseModel):
    """A part of the settings: `part.field`. It cannot be changed and has no other fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(Part):
    """The images: a data set that goes by a name, or the user's own.

    What is said of own images (`side`, `test_share`, `test_seed`, `flip`, `crop`) goes with those
    only, but for one `crop`. Whether they are streamed, and by how many processes, changes no
    number.
    """

    source: str = Field(
        description=f"one of {', '.join(SOURCES)}, or the path of an image folder or an .npz file"
    )
    pool: int = Field(1, ge=1, description="average this many pixels into one, both ways")
    train_limit: int | None = Field(None, ge=1, description="use the first n training images only")
    test_limit: int | None = Field(None, ge=1, description="use the first n test images only")
    limit: int | None = Field(
        None, ge=1, description="use n training images only, equally many of every class"
    )
    augment: bool = Field(True, description="random crop and flip of the training images")
    scale_pad: bool = Field(
        False, description="crop from less padding where images were pooled; own images always do"
    )
    side: int | None = Field(
        None, ge=1, description="own images: resize the shorter side to this and crop the middle"
    )
    test_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="own images: hold out this share of every class as test images",
    )
    test_seed: int = Field(0, ge=0, description="own images: which ones are held out")
    flip: bool = Field(True, description="own images: flipped ones are as good, as of most photos")
    crop: Crop = Field(
        "padded",
        description="own images: how augmentation cuts them, from the padded image, or a random "
        "part of the original, resized to side; part: of images of one size, such a part of them, "
        "also of tiny-imagenet",
    )
    smallest: float = Field(
        SMALLEST, gt=0, le=1, description="share of an image that such a part has at least"
    )
    mean: tuple[float, ...] | None = Field(
        None, description="of pixels in [0, 1], a number a channel; none: the data set's own"
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="by which they are divided, likewise"
    )
    stream: bool | None = Field(
        None,
        description="decode a folder's images while they are needed; none: where they would take "
        "more than a quarter of the free memory",
    )
    loader_workers: int | None = Field(
        None,
        ge=0,
        le=256,
        description="processes that decode streamed images; none: none on a CPU, and one a core, "
        "at most 8, beside a GPU",
    )

    @field_validator("source")
    @classmethod
    def _a_name_or_a_path(cls, value: str) -> str:
        if value not in SOURCES:
            try:
                data.path_of(value)
            except InputError as error:
                raise ValueError(str(error).partition(": ")[2]) from None
        return value

    @property
    def reading(self) -> Reading:
        """How own images are read."""
        own = (self.side, self.test_share, self.test_seed, self.flip)
        return Reading(*own, self.crop, self.smallest)

    def facts(self) -> dict[str, Any]:
        """What a run depends on; a path never does, only what lies there."""
        facts = {
            "dataset": self.source,
            "pool": self.pool,
            "train_limit": self.train_limit,
            "test_limit": self.test_limit,
            "augment": self.augment,
        }
        cut = {"crop": self.crop, "smallest": self.smallest}
        if self.source not in SOURCES:
            reading = asdict(self.reading)
            for name, value in cut.items():
                if value == getattr(AS_THEY_ARE, name):  # as before there was another one
                    del reading[name]
            facts |= {"dataset": data.fingerprint(self.source), "reading": reading}
        else:
            facts |= {n: v for n, v in cut.items() if v != getattr(AS_THEY_ARE, n)}
        later = {"limit": self.limit, "scale_pad": self.scale_pad}  # hashed where they are used
        later |= {"mean": self.mean, "std": self.std}
        return facts | {name: value for name, value in later.items() if value}


class Model(Part):
    """The architecture of both nets: one of the study's, or the user's own."""

    name: str = Field(
        description=f"one of {', '.join(MODELS)}, or torchvision:NAME, timm:NAME, module:CALLABLE, "
        "./file.py:CALLABLE"
    )
    width: int = Field(1, ge=1, le=64, description="width multiplier")
    args: dict[str, Any] = Field({}, description="arguments of the callable that makes an own net")
    not_prunable: tuple[str, ...] = Field(
        (), description="weights that pruning leaves out, by name or pattern (*.downsample.*)"
    )

    @field_validator("name")
    @classmethod
    def _a_name_or_a_place(cls, value: str) -> str:
        return value if ":" in value else _one_of(value, MODELS)

    def __hash__(self) -> int:
        return hash((self.name, self.width))  # `args` has no hash; equality looks at it

    @property
    def label(self) -> str:
        """The name as a part of a file's name."""
        name = self.name.rpartition("/")[2].replace(".py:", "-")
        return re.sub(r"[^\w.-]+", "-", name)

    def facts(self) -> dict[str, Any]:
        """What a run depends on; a path never does, only what is written there."""
        facts: dict[str, Any] = {"model": self.name, "width": self.width}
        if self.name not in MODELS:
            source = own_nets.fingerprint(self.name)
            facts |= {"model": self.name.rpartition(":")[2], "source": source, "args": self.args}
        return facts | ({"not_prunable": list(self.not_prunable)} if self.not_prunable else {})


#: The nets A and B of every pair, two files; {pair} and {epoch} may stand in their names.
Files = tuple[str, str] | None


@pydantic_dataclass(
    frozen=True,
    config=ConfigDict(extra="forbid", validate_by_name=True, serialize_by_alias=True),
)
class Dense(Recipe):
    """The training of A and B; or the files of two nets that were trained elsewhere.

    from: the trained nets, safetensors or state dicts. early: the same nets after few epochs, from
    which sparse runs start; {epoch} stands for how many, 0 being the init. {pair} stands for the
    number of the pair.
    """

    from_: Files = Field(None, alias="from")
    early: Files = None


@pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Imp(Recipe):
    """The fine-tuning after every pruning round, and what is pruned.

    prune_shortcuts: the ResNets' shortcut convolutions, too. prune_b: net B, too, to compare A's
    ticket with its own.
    """

    prune_shortcuts: bool = False
    prune_b: bool = False


class Sparse(Part):
    """The sparse runs: one for every method, sparsity, rewind epoch and pair."""

    lr: float = Field(0.02, gt=0, allow_inf_nan=False, description="learning rate of these runs")
    epochs: int | None = Field(
        None,
        ge=0,
        description="of every run, whatever it starts from; none: what the dense training has left "
        "after the rewind epoch, as in the paper, so that late starts train less",
    )
    sparsities: tuple[Sparsity, ...] = Field((), description="target sparsities of the tickets")
    rewind_epochs: tuple[Epoch, ...] = Field(
        (), description="start from the dense nets as they were after this many epochs"
    )
    methods: tuple[SparseMethod, ...] = Field(
        SPARSE_METHODS, description="whose mask, on which net"
    )

    @field_validator("sparsities", "rewind_epochs", "methods")
    @classmethod
    def _no_repeats(cls, values: tuple) -> tuple:
        return _each_once(values)


class Matching(Part):
    """How π is found."""

    objective: Literal["correlation", "covariance", "inner_product"] = Field(
        "correlation", description="similarity of two units that the matching maximises"
    )
    samples: int | None = Field(None, ge=1, description="training images to match on")


class Paths(Part):
    """How the way between two nets is measured."""

    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0),
        description="points of the path between A and B; none: it is not measured",
    )
    samples: int | None = Field(None, ge=1, description="test images to measure a path on")
    statistics_samples: int = Field(
        2000, ge=1, description="training images on which merged nets' statistics are corrected"
    )
    to_every_round: bool = Field(
        False, description="measure the path from A to every IMP iterate, not to the tickets only"
    )

    @field_validator("alphas")
    @classmethod
    def _no_repeats(cls, values: tuple) -> tuple:
        return _each_once(values)


class CloserLook(Part):
    """One cell of the grid, at which early matching, ensembles and the plane look closer."""

    sparsity: Sparsity | None = Field(
        None, description="of the cell; none, or one outside the grid: nothing is looked at closer"
    )
    rewind_epoch: Epoch | None = Field(None, description="of the cell")
    controls: tuple[SparseMethod, ...] = Field(
        (), description="methods that are run in this cell only, beside those of the whole grid"
    )
    match_epochs: tuple[Epoch, ...] = Field(
        (), description="match A with B after these epochs, too (early matching)"
    )
    match_images: tuple[Annotated[int, Field(ge=8)], ...] = Field(
        (), description="match A with B on so few training images, too"
    )
    ensemble_size: int = Field(
        0, ge=0, description="members of an ensemble, below 2: none; needs imp.prune_b"
    )
    plane_points: int = Field(
        0, ge=0, le=201, description="points a side of the map through three nets, below 2: none"
    )

    @field_validator("match_epochs", "match_images", "controls")
    @classmethod
    def _no_repeats(cls, values: tuple) -> tuple:
        return _each_once(values)


class Signs(Part):
    """Signed masks: how they are drawn, what of them is put on another init, and from when.

    Tickets are drawn by `training.pruning`'s LRR, AWS and fine-tuning, from A's init, at a constant
    rate; the classifier is not pruned. What is transferred is trained by the dense recipe with this
    part's `lr` and `epochs`.
    """

    rounds: tuple[Annotated[int, Field(ge=1, le=60)], ...] = Field(
        (), description="transfer from the tickets after these pruning rounds; none: no signs"
    )
    rate: float = Field(0.2, gt=0, lt=1, description="share of what is left that a round prunes")
    procedures: tuple[Procedure, ...] = Field(
        PROCEDURES, description="how the tickets are drawn; aws needs norm layers"
    )
    warm_up: Epoch = Field(10, description="epochs before the first round")
    round_epochs: Epoch = Field(10, description="epochs after every round")
    lr: float = Field(0.1, gt=0, allow_inf_nan=False, description="of rounds and transfers")
    finetuning_lr: float = Field(
        0.01, gt=0, allow_inf_nan=False, description="of rounds without learning-rate rewinding"
    )
    epochs: Epoch = Field(100, description="of every transfer, with the dense recipe's schedule")
    rewind_epochs: tuple[Epoch, ...] = Field(
        (0,), description="put the last ticket on B after these epochs, under every address"
    )
    agreement_epochs: tuple[Epoch, ...] = Field(
        (), description="compare the signs of B with the ticket's after these epochs"
    )
    rescale: bool = Field(
        False, description="divide B's init by √density, layer by layer; for nets without norms"
    )

    @field_validator("rounds", "procedures", "rewind_epochs", "agreement_epochs")
    @classmethod
    def _no_repeats(cls, values: tuple) -> tuple:
        return _each_once(values)


class AsReleased(Part):
    """What the released code does otherwise ; all off is the paper's text."""

    rewind_off_by_one: bool = Field(False, description='"k" is k + 1 epochs')
    imp_tolerance: float = Field(
        0.0, ge=0, lt=0.1, description="stop this close below a target; released code: 0.005"
    )
    stream_tap: Literal["last", "released_code"] = Field(
        "last", description="block whose output the last residual stream is matched on"
    )
    match_std: Literal["pooled", "mean_of_batches"] = Field(
        "pooled", description="standard deviations of the correlation; released code: mean"
    )
    match_augmented: bool = Field(
        False, description="match on an epoch of training batches of 128, shuffled and augmented"
    )


def _each_once(values: tuple) -> tuple:
    if len(set(values)) != len(values):
        raise ValueError("every value must occur once")
    return values


def _one_of(value: str, names: Iterable[str]) -> str:
    if value not in names:
        raise ValueError(f"choose one of {', '.join(names)}")
    return value
