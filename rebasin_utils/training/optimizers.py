"""How a step is taken: the optimiser that a recipe names, and what of it a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rebasin_utils.training.recipes import Recipe

#: What torch's optimisers remember of a parameter: name in a checkpoint -> name in torch.
_MEMORY = {
    "sgd": {"momentum": "momentum_buffer"},
    "adam": {"mean": "exp_avg", "square": "exp_avg_sq"},
}


class Optimizer:
    """Steps the tensors of one run or of several as one: both optimisers treat each number alone.

    schedule: to be stepped after every epoch.
    """

    def __init__(self, recipe: Recipe, trained: Sequence[Tensor], epoch: int):
        self._trained = list(trained)
        groups = [{"params": self._trained, "initial_lr": recipe.lr}]
        common = dict(lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
        if recipe.optimizer == "adam":
            self._own: torch.optim.Optimizer = torch.optim.Adam(groups, **common)
        else:
            self._own = torch.optim.SGD(groups, momentum=recipe.momentum, **common)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self._own, recipe.lr_factor, last_epoch=epoch - 1
        )
        remembers = recipe.optimizer != "sgd" or recipe.momentum > 0
        self._memory = _MEMORY[recipe.optimizer] if remembers else {}

    def step(self) -> None:
        self._own.step()

    def memory(self) -> dict[str, list[Tensor]]:
        """What is remembered of every trained tensor, in their order, by its name."""
        state = self._own.state
        return {
            name: [state[tensor][theirs] for tensor in self._trained]
            for name, theirs in self._memory.items()
        }

    def remember(self, memory: Mapping[str, Sequence[Tensor]], steps: int) -> None:
        """Go on from what `memory` gave after so many steps."""
        for name, theirs in self._memory.items():
            for tensor, kept in zip(self._trained, memory[name], strict=True):
                state: dict[str, Any] = self._own.state[tensor]
                state[theirs] = kept
                if isinstance(self._own, torch.optim.Adam):
                    state["step"] = torch.tensor(float(steps), device=tensor.device)
