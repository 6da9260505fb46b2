"""How a run is trained: what a settings file says of it, without PyTorch."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass


@pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Recipe:
    """SGD with momentum and weight decay on every parameter, its rate stepped per epoch.

    optimizer: "adam" is torch's instead, which has no use for the momentum. schedule: "cosine" to
    zero; "cosine to a thousandth" of the rate (Oh et al. 2025, ImageNet); "steps", a tenth from the
    middle on and a hundredth from three quarters on (the same, small images); "imagenet", a rise
    over five epochs, then a tenth from the 31st on and a hundredth from the 62nd on, however long
    the training is (as the released code has it); or "constant". The defaults are the paper's
    (protocol of Adnan et al. 2025, Table 3). precision: "bf16" computes the forward pass by
    autocast; weights, gradients and statistics are float32. batch_norm_groups: into how many parts
    every batch is split for batch norm, each with statistics of its own and the first one's kept,
    as where so many GPUs normalise their parts of a batch; 1 is the whole batch, whoever trains it.
    """

    epochs: Annotated[int, Field(ge=0)]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    batch_size: Annotated[int, Field(ge=1)] = 128
    schedule: Literal["cosine", "cosine to a thousandth", "steps", "imagenet", "constant"] = (
        "cosine"
    )
    precision: Literal["float32", "bf16"] = "float32"
    batch_norm_groups: Annotated[int, Field(ge=1)] = 1
    optimizer: Literal["sgd", "adam"] = "sgd"

    @field_validator("batch_norm_groups")
    @classmethod
    def _groups_are_equal(cls, groups: int, info: ValidationInfo) -> int:
        size = info.data.get("batch_size", groups)
        if size % groups:
            raise ValueError(f"must divide the batch of {size} into equal parts")
        return groups

    def facts(self) -> dict[str, float | int | str]:
        """What a run depends on, by the fields' names: what keys hash.

        What came later is left out where it is as it was before, so that keys stay what they were.
        """
        later = ("schedule", "precision", "batch_norm_groups", "optimizer")
        facts = {f.name: (getattr(self, f.name), f.default) for f in fields(Recipe)}
        return {n: v for n, (v, default) in facts.items() if n not in later or v != default}

    @property
    def recipe(self) -> Recipe:
        """The training alone, without what the settings of a part add to it."""
        return Recipe(**self.facts())

    def lr_factor(self, epoch: int) -> float:
        """Learning rate of the 0-based `epoch`, relative to `lr`."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "imagenet":
            number = epoch + 1
            return 0.975 * number / 5 if number <= 5 else 0.1 ** (number // 31)
        if self.schedule == "steps":
            return 0.1 ** sum(epoch >= share * self.epochs for share in (0.5, 0.75))
        least = 1e-3 if self.schedule == "cosine to a thousandth" else 0.0
        return least + (1 - least) * 0.5 * (1 + math.cos(math.pi * epoch / max(self.epochs, 1)))
