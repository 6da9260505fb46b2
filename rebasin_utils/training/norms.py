"""Norm layers interpolated at random towards their init: AWS.

A signed mask carries no γ and no β. So that a net does not come to rely on them, AWS (Oh et al.
2025, arXiv 2504.05357) prunes with norm layers that are, at every step, somewhere between as they
are trained and as they began:

    γ' = a + (1 − a) γ,    β' = (1 − a) β,    a ~ U[0, 1),

one a for all norm layers of a net. γ and β get the gradients of γ' and β', times 1 − a. A net is
evaluated as it is trained, with a = 0; but batch norm has gathered its running statistics under
γ' and β', so they are to be recomputed first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rebasin_utils.training.graphs import Graphed
from rebasin_utils.training.stacking import Single, Stacked


def inits(model: nn.Module) -> dict[str, float]:
    """What every γ and β of the model's batch and layer norms begins as, by parameter name."""
    return {
        f"{name}.{kind}".removeprefix("."): init
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm | nn.LayerNorm)
        for kind, init in (("weight", 1.0), ("bias", 0.0))
        if getattr(module, kind) is not None
    }


def draws(seed: int, epoch: int, steps: int) -> Tensor:
    """a of every step of the 0-based `epoch`: float32 [steps], from (seed, epoch) alone."""
    # Apart from the data order's, should a run's two seeds be the same.
    sequence = np.random.SeedSequence([seed, epoch], spawn_key=(0,))
    generator = torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
    return torch.rand(steps, generator=generator)


class Interpolated:
    """Nets whose norm layers are interpolated for the length of a step."""

    def __init__(self, model: nn.Module, net: Stacked | Single | Graphed):
        named = net.named(net.trained)
        self._net = net
        self._norms = {name: (named[name], init) for name, init in inits(model).items()}

    def plan(self, seeds: Sequence[int | None], epoch: int, steps: int) -> Tensor:
        """a of every step of an epoch: [steps, runs, 1], on the nets' device.

        seeds: of every run's draws; one without a seed is not interpolated.
        """
        of_each = [torch.zeros(steps) if s is None else draws(s, epoch, steps) for s in seeds]
        (some, _), *_ = self._norms.values()
        return torch.stack(of_each, 1)[:, :, None].to(some)

    def losses(self, x: Tensor, y: Tensor, a: Tensor) -> Tensor:
        """The nets' losses and gradients with norm layers so interpolated; a: [runs, 1]."""
        with torch.no_grad():
            trained = [norm.clone() for norm, _ in self._norms.values()]
            for norm, init in self._norms.values():
                norm.add_(a * (init - norm))
        losses = self._net.losses(x, y)
        gradients = self._net.gradients()
        with torch.no_grad():
            for (name, (norm, _)), kept in zip(self._norms.items(), trained, strict=True):
                norm.copy_(kept)
                if name in gradients:  # it is not frozen
                    gradients[name].mul_(1 - a)
        return losses
