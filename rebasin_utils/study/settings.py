"""Everything a study depends on, in parts, validated before any work starts.

A setting goes by a dotted name, `part.field`: `data.pool`, `dense.lr`, `closer_look.sparsity`. What
several stages read stands here; a stage that needs settings of its own brings its part with it
(`stage.Stage.Part`), under the stage's name.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from rebasin_utils.errors import InputError
from rebasin_utils.study import plugins
from rebasin_utils.study.parts import (
    AsReleased,
    CloserLook,
    Data,
    Dense,
    Imp,
    Matching,
    Model,
    Paths,
    Signs,
    Sparse,
)
from rebasin_utils.training.recipes import Recipe


class Settings(BaseModel):
    """One architecture on one data set, and what is asked of it.

    Raises:
        InputError: from `Settings.of`, one sentence that names the field, the value and what is
            allowed.
    """

    model_config = ConfigDict(extra="allow", frozen=True)  # the parts that stages bring with them

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="name of the study")
    seeds: int = Field(3, ge=1, le=1000, description="number of A–B pairs")
    first_seed: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="number of the first pair; several machines share a "
        "study when each computes other pairs",
    )
    plugins: tuple[str, ...] = Field((), description="modules that bring stages or chapters")
    data: Data = Field(description="the images")
    model: Model = Field(description="the architecture of both nets")
    dense: Dense = Field(description="training of A and B, or their files")
    imp: Imp = Field(description="pruning, and the fine-tuning after every round")
    sparse: Sparse = Field(Sparse(), description="the sparse runs")
    matching: Matching = Field(Matching(), description="how π is found")
    paths: Paths = Field(Paths(), description="how the way between two nets is measured")
    closer_look: CloserLook = Field(CloserLook(), description="the cell that is looked at closer")
    signs: Signs = Field(Signs(), description="signed masks")
    as_released: AsReleased = Field(AsReleased(), description="what released code does otherwise")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Validated settings from plain values, parts as mappings."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(_sentence(error)) from None

    def with_values(self, **changes: Any) -> Settings:
        """The same settings with some fields changed, validated again.

        A dotted name reaches into a part: `with_values(seeds=5, **{"dense.lr": 0.1})`.
        """
        named = {"plugins": changes.get("plugins", self.plugins)}
        # Plug-ins bring settings that may be among the changes, so theirs come first.
        values = self.of(self.model_dump() | named).model_dump()
        for name, value in changes.items():
            moved = MOVED.get(name)
            if name == "model" and isinstance(value, str):  # also the name of a part
                moved = "model.name"
            if moved:
                raise InputError(f"{name} = {value!r}: this setting is now called {moved}")
            part, dot, field = name.partition(".")
            if part not in values or (dot and part in ("name", "seeds", "first_seed", "plugins")):
                there = ", ".join(dotted(self))
                raise InputError(f"{name} = {value!r}: no such setting; there are {there}")
            if dot and field not in values[part]:
                there = ", ".join(f"{part}.{f}" for f in values[part])
                raise InputError(f"{name} = {value!r}: no such setting; there are {there}")
            values[part] = {**values[part], field: value} if dot else value
        return type(self).of(values)

    @model_validator(mode="before")
    @classmethod
    def _parts_of_stages(cls, values: Any) -> Any:
        """Validate the parts that stages bring; whatever else is unknown is refused."""
        if not isinstance(values, Mapping):
            return values
        named = values.get("plugins", ())
        brought = plugins.parts(named if isinstance(named, tuple | list) else ())
        unknown = [name for name in values if name not in cls.model_fields and name not in brought]
        if unknown:
            name = unknown[0]
            there = ", ".join([*cls.model_fields, *brought])
            raise ValueError(f"{name} = {values[name]!r}: no such setting; there are {there}")
        found = {name: _of_part(part, name, values.get(name, {})) for name, part in brought.items()}
        return {**values, **found}

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        for name, epochs in (
            ("sparse.rewind_epochs", self.sparse.rewind_epochs),
            ("closer_look.match_epochs", self.closer_look.match_epochs),
            ("signs.rewind_epochs", self.signs.rewind_epochs if self.signs.rounds else ()),
            ("signs.agreement_epochs", self.signs.agreement_epochs),
        ):
            late = [k for k in epochs if k >= self.dense.epochs]
            if late:
                raise ValueError(
                    f"{name} = {late[0]}: must be below the dense training's "
                    f"{self.dense.epochs} epochs"
                )
        alphas = self.paths.alphas
        if alphas and (alphas[0], alphas[-1]) != (0.0, 1.0):
            raise ValueError(f"paths.alphas = {list(alphas)}: must go from 0 to 1")
        return self

    @property
    def pairs(self) -> range:
        """The numbers of the pairs, each the seed of its two nets."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def looks_closer(self) -> bool:
        """Whether the cell of the closer look is in the grid."""
        look, grid = self.closer_look, self.sparse
        return look.sparsity in grid.sparsities and look.rewind_epoch in grid.rewind_epochs

    def saved_epoch(self, rewind_epoch: int) -> int:
        """The number of epochs after which the state of that rewind epoch is saved."""
        return rewind_epoch + self.as_released.rewind_off_by_one

    def sparse_recipe(self, rewind_epoch: int, epochs: int | None = None) -> Recipe:
        """The dense recipe from its start, with `sparse.lr`, over `epochs` or the grid's."""
        if epochs is None:
            left = self.dense.epochs - rewind_epoch
            epochs = left if self.sparse.epochs is None else self.sparse.epochs
        return replace(self.dense.recipe, epochs=epochs, lr=self.sparse.lr)


#: Names that settings had before they were in parts.
MOVED = {
    "dataset": "data.source",
    "pool": "data.pool",
    "train_limit": "data.train_limit",
    "test_limit": "data.test_limit",
    "augment": "data.augment",
    "width": "model.width",
    "sparse_lr": "sparse.lr",
    "sparsities": "sparse.sparsities",
    "rewind_epochs": "sparse.rewind_epochs",
    "methods": "sparse.methods",
    "tickets_of_b": "imp.prune_b",
    "prune_shortcuts": "imp.prune_shortcuts",
    "match_on": "matching.objective",
    "match_samples": "matching.samples",
    "alphas": "paths.alphas",
    "path_samples": "paths.samples",
    "statistics_samples": "paths.statistics_samples",
    "paths_to_every_round": "paths.to_every_round",
    "cell": "closer_look.sparsity and closer_look.rewind_epoch",
    "match_epochs": "closer_look.match_epochs",
    "ensemble_size": "closer_look.ensemble_size",
    "plane_points": "closer_look.plane_points",
    "rewind_off_by_one": "as_released.rewind_off_by_one",
    "imp_tolerance": "as_released.imp_tolerance",
    "stream_tap": "as_released.stream_tap",
    "match_std": "as_released.match_std",
}


def assignments(texts: Iterable[str]) -> dict[str, Any]:
    """`name=value` texts as changes of settings; values are JSON where they can be, else strings.

    Raises:
        InputError: when a text is no `name=value`.
    """
    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"{text!r}: write it as name=value")
        values[name] = parsed(value)
    return values


def changes_in(text: str) -> dict[str, Any]:
    """`assignments` in one text, with spaces between; a value with spaces stands in quotes.

    Raises:
        InputError: when a quote is not closed, or a part is no `name=value`.
    """
    try:
        return assignments(shlex.split(text))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"changes = {text!r}: {error}") from None


def parsed(text: str) -> Any:
    """JSON where it can be, or Python's own True, False, None; else the text."""
    text = {"True": "true", "False": "false", "None": "null"}.get(text, text)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def dotted(settings: Settings) -> dict[str, Any]:
    """All settings by their dotted names."""
    return dict(_leaves(settings.model_dump()))


def _leaves(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{field}", each) for field, each in value.items())
        else:
            yield name, value


def _of_part(part: type[BaseModel], name: str, values: Any) -> BaseModel:
    try:
        return part.model_validate(values)
    except ValidationError as error:
        raise ValueError(_sentence(error, within=name, known=part.model_fields)) from None


def _fields_of(part: str) -> Iterable[str]:
    kind = Settings.model_fields[part].annotation
    return [f.name.rstrip("_") for f in fields(kind)] if is_dataclass(kind) else kind.model_fields


def _sentence(error: ValidationError, within: str = "", known: Iterable[str] | None = None) -> str:
    """The first problem as `field = value: what is allowed`."""
    first = error.errors()[0]
    path = (within, *first["loc"]) if within else first["loc"]
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    what = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if first["type"] == "missing":
        return f"{where}: this setting is required"
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        part = str(path[0])
        there = ", ".join(f"{part}.{f}" for f in known or _fields_of(part))
        what = f"no such setting; there are {there}"
    return f"{where} = {first['input']!r}: {what}" if where else what
