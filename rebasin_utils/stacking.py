"""Several networks of one architecture stepped as one.

Small networks are too small for a processor: what they cost is mostly the calls. `Stacked` holds
the parameters of several as one tensor each and computes all of them with batched matrix products.
`Single` is one network behind the same face, for architectures that do not stack.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from rebasin_utils.masks import State


def stackable(model: nn.Module) -> bool:
    """Whether the model is made of layers that `Stacked` knows, so of batched matrix products.

    Convolutions are not: on a CPU, grouped convolutions are slower than a loop.
    """
    known = (nn.Linear, nn.ReLU, nn.Flatten)
    return all(isinstance(m, known) for m in model.modules() if not list(m.children()))


class _StackedLinear(nn.Module):
    """`nn.Linear` of several runs at once: weight [runs, out, in], bias [runs, out]."""

    def __init__(self, runs: int, linear: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.new_empty(runs, *linear.weight.shape))
        self.bias = nn.Parameter(linear.bias.new_empty(runs, *linear.bias.shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias[:, None], x, self.weight.mT)


class Stacked:
    """Several networks as one: every parameter and every activation leads with the run.

    A run is never alone: it gets a copy of itself for company, because a batched product of one
    matrix takes another path and rounds differently. So a run's bits do not depend on its company.
    """

    def __init__(self, model: nn.Module, states: Sequence[State], device: torch.device):
        self.runs = len(states)
        states = states if self.runs > 1 else [*states, *states]
        self.module = copy.deepcopy(model)
        for name, layer in list(self.module.named_modules()):
            if isinstance(layer, nn.Linear):
                self.module.set_submodule(name, _StackedLinear(len(states), layer))
            elif isinstance(layer, nn.ReLU):
                self.module.set_submodule(name, nn.ReLU(inplace=True))
            elif isinstance(layer, nn.Flatten):
                self.module.set_submodule(name, nn.Flatten(start_dim=2))
        self.module.load_state_dict({n: torch.stack([s[n] for s in states]) for n in states[0]})
        self.module.to(device)
        self.parameters = dict(self.module.named_parameters())

    def logits(self, x: Tensor) -> Tensor:
        """[runs, batch, channels, height, width] -> [runs, batch, classes]."""
        if self.runs == 1:
            return self.module(x.expand(2, *x.shape[1:]))[:1]
        return self.module(x)

    def states(self) -> list[State]:
        return [
            {name: p[i].detach().cpu().clone() for name, p in self.parameters.items()}
            for i in range(self.runs)
        ]


class Single:
    """One network, behind the face of `Stacked`."""

    runs = 1

    def __init__(self, model: nn.Module, states: Sequence[State], device: torch.device):
        self.module = copy.deepcopy(model)
        self.module.load_state_dict(states[0])
        self.module.to(device=device, memory_format=torch.channels_last)
        self.parameters = dict(self.module.named_parameters())

    def logits(self, x: Tensor) -> Tensor:
        return self.module(x[0])[None]

    def states(self) -> list[State]:
        state = self.module.state_dict()
        return [
            {
                n: t.detach().cpu().clone(memory_format=torch.contiguous_format)
                for n, t in state.items()
            }
        ]


def together_as_one(
    model: nn.Module, states: Sequence[State], device: torch.device
) -> Stacked | Single:
    return (Stacked if stackable(model) else Single)(model, states, device)
