"""Everything a study depends on, validated before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from rebasin_utils.data import SOURCES
from rebasin_utils.errors import InputError
from rebasin_utils.models import MODELS
from rebasin_utils.training import Recipe

SparseMethod = Literal["lth", "naive", "permuted", "random_mask", "random_permutation"]
SPARSE_METHODS: tuple[SparseMethod, ...] = SparseMethod.__args__
METHODS = ("dense", "imp", *SPARSE_METHODS)

Sparsity = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """One architecture on one data set, and what is asked of it.

    Raises:
        InputError: from `Settings.of`, one sentence that names the field, the value and what is
            allowed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="name of the study")
    dataset: str = Field(description=f"one of {', '.join(SOURCES)}")
    pool: int = Field(1, ge=1, description="average this many pixels into one, both ways")
    train_limit: int | None = Field(None, ge=1, description="use the first n training images only")
    test_limit: int | None = Field(None, ge=1, description="use the first n test images only")
    augment: bool = Field(True, description="random crop and flip of the training images")
    model: str = Field(description=f"one of {', '.join(MODELS)}")
    width: int = Field(1, ge=1, le=64, description="width multiplier of the model")
    seeds: int = Field(3, ge=1, le=1000, description="number of A–B pairs")
    dense: Recipe = Field(description="training of A and B")
    imp: Recipe = Field(description="fine-tuning after every pruning round")
    sparse_lr: float = Field(
        0.02, gt=0, allow_inf_nan=False, description="learning rate of the sparse runs"
    )
    sparsities: tuple[Sparsity, ...] = Field((), description="target sparsities of the tickets")
    rewind_epochs: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="the sparse runs start from the dense nets after this many epochs"
    )
    methods: tuple[SparseMethod, ...] = Field(SPARSE_METHODS, description="the sparse runs")
    tickets_of_b: bool = Field(False, description="prune B, too, to compare A's ticket with its")
    prune_shortcuts: bool = Field(False, description="prune the ResNets' shortcut convolutions too")
    match_on: Literal["correlation", "covariance", "inner_product"] = Field(
        "correlation", description="similarity of two units that the matching maximises"
    )
    match_samples: int | None = Field(None, ge=1, description="training images to match on")
    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0), description="points of the path between A and B"
    )
    path_samples: int | None = Field(None, ge=1, description="test images to measure a path on")
    statistics_samples: int = Field(
        2000, ge=1, description="training images on which merged nets' statistics are corrected"
    )
    paths_to_every_round: bool = Field(
        False, description="measure the path from A to every IMP iterate, not to the tickets only"
    )
    cell: tuple[Sparsity, Annotated[int, Field(ge=0)]] | None = Field(
        None,
        description="(sparsity, rewind epoch) of the grid at which early matching, ensembles and "
        "the plane look closer; outside the grid: nowhere",
    )
    match_epochs: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (), description="match A with B after these epochs, too (early matching)"
    )
    ensemble_size: int = Field(
        0, ge=0, description="members of an ensemble, below 2: none; needs tickets_of_b"
    )
    plane_points: int = Field(
        0, ge=0, le=201, description="points a side of the map through three nets, below 2: none"
    )
    # What the released code does otherwise (protocol, section 3.1); all off is the paper's text.
    rewind_off_by_one: bool = Field(False, description='"k" is k + 1 epochs, as in released code')
    imp_tolerance: float = Field(
        0.0, ge=0, lt=0.1, description="stop this close below a target; released code: 0.005"
    )
    stream_tap: Literal["last", "released_code"] = Field(
        "last", description="block whose output the last residual stream is matched on"
    )
    match_std: Literal["pooled", "mean_of_batches"] = Field(
        "pooled", description="standard deviations of the correlation; released code: mean"
    )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Validated settings from plain values."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(_sentence(error)) from None

    def with_values(self, **changes: Any) -> Settings:
        """The same settings with some fields changed, validated again.

        A dotted name reaches into a recipe: `with_values(**{"dense.lr": 0.1})`.
        """
        values = self.model_dump()
        for field, value in changes.items():
            head, _, tail = field.partition(".")
            if head not in values or (tail and tail not in _as_dict(values[head])):
                allowed = [*values, *(f"dense.{f}" for f in _as_dict(values["dense"]))]
                raise InputError(
                    f"{field} = {value!r}: no such setting; there are {_join(allowed)}"
                )
            values[head] = {**_as_dict(values[head]), tail: value} if tail else value
        return type(self).of(values)

    @field_validator("dataset")
    @classmethod
    def _known_dataset(cls, value: str) -> str:
        return _one_of(value, SOURCES)

    @field_validator("model")
    @classmethod
    def _known_model(cls, value: str) -> str:
        return _one_of(value, MODELS)

    @field_validator("sparsities", "rewind_epochs", "methods", "alphas", "match_epochs")
    @classmethod
    def _no_repeats(cls, values: tuple) -> tuple:
        if len(set(values)) != len(values):
            raise ValueError("every value must occur once")
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        for field in ("rewind_epochs", "match_epochs"):
            late = [k for k in getattr(self, field) if k >= self.dense.epochs]
            if late:
                raise ValueError(
                    f"{field} = {late[0]}: must be below the dense training's "
                    f"{self.dense.epochs} epochs"
                )
        if self.alphas[:1] != (0.0,) or self.alphas[-1:] != (1.0,):
            raise ValueError(f"alphas = {list(self.alphas)}: must go from 0 to 1")
        return self

    @property
    def snapshots(self) -> dict[int, int]:
        """Rewind epoch -> the number of epochs after which that state was saved."""
        return {k: k + 1 if self.rewind_off_by_one else k for k in self.rewind_epochs}

    @property
    def looks_closer(self) -> bool:
        """Whether the cell is in the grid."""
        return (
            self.cell is not None
            and self.cell[0] in self.sparsities
            and self.cell[1] in self.rewind_epochs
        )

    @property
    def saved_epochs(self) -> list[int]:
        """The epochs after which the dense nets' states are kept."""
        return sorted({*self.snapshots.values(), *self.match_epochs})

    def sparse_recipe(self, rewind_epoch: int) -> Recipe:
        """The dense recipe from its start, with `sparse_lr`, over the epochs that are left."""
        return Recipe(
            epochs=self.dense.epochs - rewind_epoch,
            lr=self.sparse_lr,
            momentum=self.dense.momentum,
            weight_decay=self.dense.weight_decay,
            batch_size=self.dense.batch_size,
        )


def _as_dict(value: Any) -> dict:
    return value if isinstance(value, dict) else {}


def _join(names: Any) -> str:
    return ", ".join(names)


def _one_of(value: str, names: Mapping) -> str:
    if value not in names:
        raise ValueError(f"choose one of {_join(names)}")
    return value


def _sentence(error: ValidationError) -> str:
    """The first problem as `field = value: what is allowed`."""
    first = error.errors()[0]
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]).lstrip(".")
    what = first["msg"].removeprefix("Value error, ")
    what = what.replace("Input should be", "must be")
    if first["type"] == "missing":
        return f"{where}: this setting is required"
    if first["type"] == "extra_forbidden":
        what = f"no such setting; there are {_join(Settings.model_fields)}"
    if first["type"] == "unexpected_keyword_argument":
        what = f"no such setting; there are {_join(f.name for f in fields(Recipe))}"
    return f"{where} = {first['input']!r}: {what}" if where else what
