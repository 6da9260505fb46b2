"""How a run is trained: what a settings file says of it, without PyTorch."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as pydantic_dataclass


@pydantic_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Recipe:
    """SGD with momentum and weight decay on every parameter, its rate stepped per epoch.

    schedule: "cosine" to zero; "steps", a tenth from the middle on and a hundredth from three
    quarters on (Oh et al. 2025); or "constant". The defaults are the paper's (protocol of Adnan et
    al. 2025, Table 3).
    """

    epochs: Annotated[int, Field(ge=0)]
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    batch_size: Annotated[int, Field(ge=1)] = 128
    schedule: Literal["cosine", "steps", "constant"] = "cosine"

    def facts(self) -> dict[str, float | int | str]:
        """What a run depends on, by the fields' names: what keys hash.

        A schedule that is the cosine is left out, so that keys from before there was another one
        stay what they were.
        """
        facts = {f.name: getattr(self, f.name) for f in fields(Recipe)}
        if self.schedule == "cosine":
            del facts["schedule"]
        return facts

    @property
    def recipe(self) -> Recipe:
        """The training alone, without what the settings of a part add to it."""
        return Recipe(**self.facts())

    def lr_factor(self, epoch: int) -> float:
        """Learning rate of the 0-based `epoch`, relative to `lr`."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "steps":
            return 0.1 ** sum(epoch >= share * self.epochs for share in (0.5, 0.75))
        return 0.5 * (1 + math.cos(math.pi * epoch / max(self.epochs, 1)))
