"""How a step is taken: the optimiser that a recipe names, and what of it a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from rebasin_utils.training.recipes import Recipe

#: What torch's Adam has by default.
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8


class Optimizer:
    """Steps the tensors of one run or of several as one: both optimisers treat each number alone.

    These are torch's own steps as functions. Its optimisers as classes import the compiler, which
    takes seconds in every process, and is not used.

    A tensor without a gradient is left alone.
    """

    def __init__(self, recipe: Recipe, trained: Sequence[Tensor]):
        self._recipe, self._trained = recipe, list(trained)
        parts, counted = ["momentum"] if recipe.momentum else [], []
        if recipe.optimizer == "adam":
            parts, counted = ["mean", "square"], self._trained
        self._memory = {part: [torch.zeros_like(t) for t in self._trained] for part in parts}
        self._steps = [torch.zeros((), device=tensor.device) for tensor in counted]

    @torch.no_grad()
    def step(self, epoch: int) -> None:
        """One step by the gradients that are there, at the rate of the 0-based `epoch`."""
        recipe = self._recipe
        moved = [i for i, tensor in enumerate(self._trained) if tensor.grad is not None]
        tensors = [self._trained[i] for i in moved]
        gradients = [tensor.grad for tensor in tensors]
        memory = [[kept[i] for i in moved] for kept in self._memory.values()]
        how = dict(
            lr=recipe.lr * recipe.lr_factor(epoch),
            weight_decay=recipe.weight_decay,
            maximize=False,
            fused=True,
        )
        if recipe.optimizer == "adam":
            steps = [self._steps[i] for i in moved]
            betas = dict(beta1=_BETA1, beta2=_BETA2, eps=_EPS)
            adam(tensors, gradients, *memory, [], steps, amsgrad=False, **betas, **how)
        else:
            momenta = memory[0] if memory else [None] * len(tensors)
            way = dict(momentum=recipe.momentum, dampening=0.0, nesterov=False)
            sgd(tensors, gradients, momenta, **way, **how)

    def memory(self) -> dict[str, list[Tensor]]:
        """What is remembered of every trained tensor, in their order, by its name."""
        return self._memory

    def remember(self, memory: Mapping[str, Sequence[Tensor]], steps: int) -> None:
        """Go on from what `memory` gave after so many steps."""
        self._memory = {part: list(memory[part]) for part in self._memory}
        for counted in self._steps:
            counted.fill_(steps)
