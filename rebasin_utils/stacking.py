"""Several networks of one architecture stepped as one.

Small networks are too small for a processor: what they cost is mostly the calls. `Stacked` computes
plain chains of linear layers, all runs at once with batched matrix products, its own backward pass
and every number that is trained in one piece of memory. `Single` is one network behind the same
face, for all other architectures:

* `trained`: the tensors an optimiser steps; `losses` leaves their gradients in `.grad`.
* `named`: tensors shaped like `trained` as views by parameter name, each [runs, *its shape].
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rebasin_utils.devices import channels_last
from rebasin_utils.masks import State


class _Layer(NamedTuple):
    """A linear layer of a chain, by its parameters' names, and whether a ReLU follows it."""

    weight: str
    bias: str
    relu: bool


def stackable(model: nn.Module) -> bool:
    """Whether the model is what `Stacked` computes: flatten, then linear layers and ReLUs in turn.

    Convolutions are not: on a CPU, grouped convolutions are slower than a loop.
    """
    return bool(_layers(model))


def _layers(model: nn.Module) -> list[_Layer]:
    """The chain's linear layers in order; none when the model is not such a chain."""
    known = (nn.Linear, nn.ReLU, nn.Flatten)
    if not all(isinstance(m, known) for m in model.modules() if not list(m.children())):
        return []
    try:
        nodes = list(fx.Tracer().trace(model).nodes)
    except Exception:  # whatever cannot be traced
        return []
    if not all(node.args == (before,) for before, node in pairwise(nodes)):
        return []
    calls = nodes[1:-1]
    if not calls or any(node.op != "call_module" or node.kwargs for node in calls):
        return []
    flatten, *modules = (model.get_submodule(node.target) for node in calls)
    if not isinstance(flatten, nn.Flatten) or (flatten.start_dim, flatten.end_dim) != (1, -1):
        return []
    layers: list[_Layer] = []
    for node, module in zip(calls[1:], modules, strict=True):
        if isinstance(module, nn.Linear) and module.bias is not None:
            layers.append(_Layer(f"{node.target}.weight", f"{node.target}.bias", relu=False))
        elif isinstance(module, nn.ReLU) and layers:
            layers[-1] = layers[-1]._replace(relu=True)
        else:
            return []
    once = len({layer.weight for layer in layers}) == len(layers)
    return layers if once and not layers[-1].relu else []


def lines_up(model: nn.Module, inputs: int, batch: int) -> bool:
    """Whether every run's part of a stack begins on a cache line, as it does alone.

    A matrix product rounds otherwise where it does not, and by the run's place in the stack.
    """
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    sizes = [m.weight.numel() for m in linears] + [batch * m.out_features for m in linears]
    return all(size % 16 == 0 for size in [batch * inputs, *sizes])


def bytes_of_a_run(model: nn.Module, inputs: int, batch: int) -> int:
    """A bound of what one run of a stack takes while it is trained.

    Its parameters are held with gradient, momentum and mask, and as often again where a stack is
    made or taken apart; of the activations, all outputs and, on the way back, three of the largest.
    A quarter more is for the gaps that an allocator leaves.

    Args:
        inputs: numbers of one image.
    """
    outputs = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    parameters = list(model.parameters())
    activations = batch * (2 * inputs + sum(outputs) + 3 * max(outputs))
    numbers = 8 * sum(p.numel() for p in parameters) + activations
    return numbers * parameters[0].element_size() * 5 // 4


class Stacked:
    """Several networks as one.

    Activations are [runs, units, batch], so that every product and every sum runs along memory.
    """

    def __init__(self, model: nn.Module, states: Sequence[State], device: torch.device):
        self.runs = len(states)
        self._layers = _layers(model)
        self._shapes = {name: tensor.shape for name, tensor in states[0].items()}
        some = next(iter(states[0].values()))
        # The fused optimiser rounds the last numbers, which fill no vector register, otherwise than
        # the rest. With every tensor filled up, none of them is a run's.
        self._sizes = [-(-self.runs * shape.numel() // 64) * 64 for shape in self._shapes.values()]
        whole = torch.zeros(sum(self._sizes), dtype=some.dtype, device=device)
        whole.grad = torch.zeros_like(whole)
        self.trained = [whole]
        self.parameters = self.named(self.trained)
        self._gradients = self.named([whole.grad])
        for name, parameter in self.parameters.items():
            parameter.copy_(torch.stack([state[name] for state in states]))

    def named(self, tensors: Sequence[Tensor]) -> State:
        pieces = zip(self._shapes.items(), tensors[0].split(self._sizes), strict=True)
        return {
            name: piece[: self.runs * shape.numel()].view(self.runs, *shape)
            for (name, shape), piece in pieces
        }

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        """[runs, batch, channels, height, width] -> [runs, batch, classes]."""
        return self._forward(x)[-1].mT

    @torch.no_grad()
    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of every run's batch; its gradient goes to `trained`.

        x: [runs, batch, channels, height, width], y: [runs, batch] -> [runs].
        """
        *inputs, logits = self._forward(x)
        labels = y[:, None]
        log_p = logits.log_softmax(1)
        losses = -log_p.gather(1, labels)[:, 0].mean(1)
        # Cross-entropy's gradient is (softmax - one-hot) / batch.
        minus_one = log_p.new_full((), -1.0).expand(labels.shape)
        g = log_p.exp_().scatter_add_(1, labels, minus_one).div_(y.shape[1])
        for i, layer in reversed(list(enumerate(self._layers))):
            _products(g, inputs[i].mT, out=self._gradients[layer.weight])
            torch.sum(g, 2, out=self._gradients[layer.bias])
            if i:
                g = _products(self.parameters[layer.weight].mT, g)
                if self._layers[i - 1].relu:
                    g = torch.ops.aten.threshold_backward(g, inputs[i], 0)
        return losses

    def _forward(self, x: Tensor) -> list[Tensor]:
        """The input of every layer, then the logits, each [runs, units, batch]."""
        outputs = [x.flatten(2).mT]
        for layer in self._layers:
            bias = self.parameters[layer.bias][:, :, None]
            outputs.append(_products(self.parameters[layer.weight], outputs[-1], plus=bias))
            if layer.relu:
                outputs[-1].relu_()
        return outputs

    def states(self) -> list[State]:
        return of_each_run(self.parameters)


class Single:
    """One network, behind the face of `Stacked`."""

    runs = 1

    def __init__(self, model: nn.Module, states: Sequence[State], device: torch.device):
        self.module = channels_last(copy.deepcopy(model)).to(device)
        self.module.load_state_dict(states[0])
        self.trained = list(self.module.parameters())
        self.parameters = self.named(self.trained)

    def named(self, tensors: Sequence[Tensor]) -> State:
        names = (name for name, _ in self.module.named_parameters())
        return {name: t.detach()[None] for name, t in zip(names, tensors, strict=True)}

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        return self.module.eval()(x[0])[None]

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.module.training:
            self.module.train()
        for parameter in self.trained:
            parameter.grad = None
        loss = F.cross_entropy(self.module(x[0]), y[0])
        loss.backward()
        return loss.detach()[None]

    def states(self) -> list[State]:
        return of_each_run({n: t[None] for n, t in self.module.state_dict().items()})


def of_each_run(tensors: State) -> list[State]:
    """Tensors that lead with the run taken apart: copies on the CPU, in memory of their own."""
    runs = len(next(iter(tensors.values())))
    layout = {"memory_format": torch.contiguous_format}
    return [
        {n: t[i].detach().cpu().clone(**layout) for n, t in tensors.items()} for i in range(runs)
    ]


def _products(
    a: Tensor, b: Tensor, plus: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """`a @ b + plus` of every run, with the same bits whether a run is alone or in company."""
    if len(a) == 1 and _alone_rounds_otherwise(
        a.shape, a.stride()[1:], b.shape, b.stride()[1:], b.dtype, b.device
    ):
        pair = [None if t is None else t.expand(2, -1, -1) for t in (a, b, plus)]
        product = _products(*pair)[:1]
        return product if out is None else out.copy_(product)
    return torch.bmm(a, b, out=out) if plus is None else torch.baddbmm(plus, a, b)


@cache
def _alone_rounds_otherwise(
    a_shape: torch.Size,
    a_strides: tuple[int, ...],
    b_shape: torch.Size,
    b_strides: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> bool:
    """Whether this machine's batched product of one takes another path than that of several."""
    generator = torch.Generator().manual_seed(0)
    pair = []
    for (_, *shape), strides in ((a_shape, a_strides), (b_shape, b_strides)):
        drawn = torch.randn(2, *shape, generator=generator, dtype=dtype).to(device)
        pair.append(drawn if strides[1] == 1 else drawn.mT.contiguous().mT)
    a, b = pair
    return not torch.equal(torch.bmm(a, b)[:1], torch.bmm(a[:1], b[:1]))
