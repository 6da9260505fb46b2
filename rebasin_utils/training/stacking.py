"""Several networks of one architecture stepped as one.

Small networks are too small for a processor: what they cost is mostly the calls. `Stacked` computes
plain chains of linear layers, with or without norm layers, all runs at once with batched matrix
products, its own backward pass and every number that is trained in one piece of memory. `Single` is
one network behind the same face, for all other architectures:

* `trained`: the tensors an optimiser steps; `losses` leaves their gradients in `.grad`.
* `named`: tensors shaped like `trained` as views by parameter name, each [runs, *its shape].
* `gradients`: those that `losses` left, by parameter name, each [runs, *its shape].

Batch norm and layer norm are one computation, of an input h and along different axes: over the
samples of a batch, or over the units of a layer,

    ĥ = (h − mean h) / √(var h + ε),    output = γ ĥ + β,

with the gradient of h, for d = γ · (gradient of the output),

    (d − mean d − ĥ · mean(d ĥ)) / √(var h + ε)

(Ioffe & Szegedy 2015, Section 3; Ba et al. 2016, Section 3). Evaluated, batch norm takes mean and
variance from its running statistics.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_utils.nets.data import Split, in_order
from rebasin_utils.nets.devices import channels_last, memory_available, runs_channels_last
from rebasin_utils.nets.masks import State
from rebasin_utils.training.chains import Norm, chain

#: Runs stepped as one. More overflow the processor's cache (`benchmarks/training_candidates.md`).
STACKED = 6


class _Normed(NamedTuple):
    """What a norm layer's way back needs: ĥ [runs, units, batch], and 1 / √(var h + ε)."""

    values: Tensor
    scale: Tensor


def stackable(model: nn.Module) -> bool:
    """Whether the model is what `Stacked` computes: a `chain`.

    Convolutions are not: on a CPU, grouped convolutions are slower than a loop.
    """
    return bool(chain(model))


def lines_up(model: nn.Module, inputs: int, batch: int) -> bool:
    """Whether every run's part of a stack begins on a cache line, as it does alone.

    A matrix product rounds otherwise where it does not, and by the run's place in the stack.
    """
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    sizes = [m.weight.numel() for m in linears] + [batch * m.out_features for m in linears]
    return all(size % 16 == 0 for size in [batch * inputs, *sizes])


def bytes_of_a_run(model: nn.Module, inputs: int, batch: int) -> int:
    """A bound of what one run of a stack takes while it is trained.

    Its parameters are held with gradient, momentum and mask (Adam's second memory is not counted),
    and as often again where a stack is made or taken apart; of the activations, all outputs, those
    of norm layers twice, and, on the way back, three of the largest, or four where it leads through
    a norm layer. Three quarters more are for the gaps that an allocator leaves.

    Args:
        inputs: numbers of one image.
    """
    layers = chain(model)
    outputs = [len(model.get_parameter(layer.weight)) for layer in layers]
    normed = [units for units, layer in zip(outputs, layers, strict=True) if layer.norm]
    on_the_way_back = max(3 * max(outputs), 4 * max(normed, default=0))
    parameters = list(model.parameters())
    activations = batch * (2 * inputs + sum(outputs) + sum(normed) + on_the_way_back)
    numbers = 8 * sum(p.numel() for p in parameters) + activations
    return numbers * parameters[0].element_size() * 7 // 4


def stack_for(
    model: nn.Module, images: Split, *batches: int
) -> tuple[type[Stacked] | type[Single], int]:
    """What computes the model, and how many runs as one: few enough for half of the memory.

    batches: the batch sizes that there are.
    """
    inputs = math.prod(images.shape)
    if not stackable(model):
        return single_for(model, images), 1
    if not all(lines_up(model, inputs, batch) for batch in batches):
        return Stacked, 1
    of_a_run = bytes_of_a_run(model, inputs, max(batches))
    fit = memory_available(images.device) // 2 // of_a_run
    return Stacked, max(1, min(STACKED, fit))


def single_for(model: nn.Module, images: Split) -> type[Single]:
    """`Single`, for a network that cannot compute in channels-last memory `Contiguous`."""
    few, _ = next(in_order(images.head(2), 2))
    fast = runs_channels_last(model, lambda net: net.to(few.device)(few))
    return Single if fast else Contiguous


class Stacked:
    """Several networks as one.

    Activations are [runs, units, batch], so that every product and every sum runs along memory.
    Gradients are written out, so that nothing here requires one.

    parameters, buffers: by name, each [runs, *its shape].
    """

    def __init__(self, model: nn.Module, states: Sequence[State], device: torch.device):
        self.runs = len(states)
        self._layers = chain(model)
        self._names = list(states[0])
        buffers = dict(model.named_buffers())
        self.buffers = {
            name: torch.stack([state[name] for state in states]).to(device) for name in buffers
        }
        self._shapes = {n: tensor.shape for n, tensor in states[0].items() if n not in buffers}
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

    def gradients(self) -> State:
        return self._gradients

    def named(self, tensors: Sequence[Tensor]) -> State:
        pieces = zip(self._shapes.items(), tensors[0].split(self._sizes), strict=True)
        return {
            name: piece[: self.runs * shape.numel()].view(self.runs, *shape)
            for (name, shape), piece in pieces
        }

    def logits(self, x: Tensor) -> Tensor:
        """[runs, batch, channels, height, width] -> [runs, batch, classes]."""
        return self._forward(x, self._normed_by_running_statistics)[0][-1].mT

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of every run's batch; its gradient goes to `trained`.

        x: [runs, batch, channels, height, width], y: [runs, batch] -> [runs].
        """
        (*inputs, logits), normed = self._forward(x, self._normed)
        labels = y[:, None]
        log_p = logits.log_softmax(1)
        losses = -log_p.gather(1, labels)[:, 0].mean(1)
        # Cross-entropy's gradient is (softmax - one-hot) / batch.
        minus_one = log_p.new_full((), -1.0).expand(labels.shape)
        g = log_p.exp_().scatter_add_(1, labels, minus_one).div_(y.shape[1])
        for i, layer in reversed(list(enumerate(self._layers))):
            if layer.norm:
                g = self._through(layer.norm, normed.pop(), g)
            _products(g, inputs[i].mT, out=self._gradients[layer.weight])
            if layer.bias:
                torch.sum(g, 2, out=self._gradients[layer.bias])
            if i:
                g = _products(self.parameters[layer.weight].mT, g)
                if self._layers[i - 1].relu:
                    g = torch.ops.aten.threshold_backward(g, inputs[i], 0)
        return losses

    def _forward(
        self, x: Tensor, norm: Callable[[Norm, Tensor], _Normed]
    ) -> tuple[list[Tensor], list[_Normed]]:
        """The input of every layer, then the logits, each [runs, units, batch]; what norms keep."""
        outputs, normed = [x.flatten(2).mT], []
        for layer in self._layers:
            bias = self.parameters[layer.bias][:, :, None] if layer.bias else None
            h = _products(self.parameters[layer.weight], outputs[-1], plus=bias)
            if layer.norm:
                normed.append(norm(layer.norm, h))
                gamma, beta = self._affine(layer.norm)
                h = (gamma * normed[-1].values).add_(beta)
            outputs.append(h.relu_() if layer.relu else h)
        return outputs, normed

    def _affine(self, norm: Norm) -> list[Tensor]:
        """γ and β, each [runs, units, 1]."""
        return [self.parameters[f"{norm.name}.{kind}"][:, :, None] for kind in ("weight", "bias")]

    def _normed(self, norm: Norm, h: Tensor) -> _Normed:
        """A norm layer in training; batch norm's running statistics move. `h` is overwritten."""
        mean = h.mean(norm.over, keepdim=True)
        values = h.sub_(mean)
        variance = values.square().mean(norm.over, keepdim=True)
        if norm.momentum is not None:
            size = h.shape[norm.over]
            moments = {"mean": mean, "var": variance * (size / (size - 1))}
            for name, moment in moments.items():
                running = self.buffers[f"{norm.name}.running_{name}"]
                running.mul_(1 - norm.momentum).add_(moment[:, :, 0] * norm.momentum)
            self.buffers[f"{norm.name}.num_batches_tracked"] += 1
        scale = variance.add_(norm.eps).rsqrt_()
        return _Normed(values.mul_(scale), scale)

    def _normed_by_running_statistics(self, norm: Norm, h: Tensor) -> _Normed:
        """A norm layer in evaluation. `h` is overwritten."""
        if norm.momentum is None:
            return self._normed(norm, h)
        mean, variance = (self.buffers[f"{norm.name}.running_{name}"] for name in ("mean", "var"))
        scale = (variance + norm.eps).rsqrt_()[:, :, None]
        return _Normed(h.sub_(mean[:, :, None]).mul_(scale), scale)

    def _through(self, norm: Norm, normed: _Normed, g: Tensor) -> Tensor:
        """The gradient of a norm layer's input, from that of its output; γ's and β's are kept."""
        values, scale = normed
        gamma, _ = self._affine(norm)
        of_gamma, of_beta = (self._gradients[f"{norm.name}.{kind}"] for kind in ("weight", "bias"))
        if norm.over == 2:
            # A unit's numbers lie side by side, as torch's own batch norm likes them.
            units = gamma.numel()
            rows = (1, units, -1)
            zero, one = g.new_zeros(units), g.new_ones(units)  # the mean of ĥ, and its deviation
            d, *sums = torch.ops.aten.native_batch_norm_backward(
                *(g.reshape(rows), values.reshape(rows), (gamma * scale).flatten()),
                *(None, None, zero, one, True, norm.eps, (True, True, True)),
            )
            for kept, found in zip((of_gamma, of_beta), sums, strict=True):
                kept.copy_(found.view_as(kept))
            return d.view_as(g)
        product = g * values
        torch.sum(product, 2, out=of_gamma)
        torch.sum(g, 2, out=of_beta)
        mean_product = product.mul_(gamma).mean(norm.over, keepdim=True)
        d = g * gamma
        d.sub_(d.mean(norm.over, keepdim=True))
        return d.sub_(torch.mul(values, mean_product, out=product)).mul_(scale)

    def states(self) -> list[State]:
        tensors = self.parameters | self.buffers
        return of_each_run({name: tensors[name] for name in self._names})


class Single:
    """One network, behind the face of `Stacked`.

    groups: parts of a batch that batch norm sees apart; its running statistics are the first's.
    precision: of the forward pass, "bf16" by autocast.
    """

    runs = 1
    fast = True  # in channels-last memory

    def __init__(
        self,
        model: nn.Module,
        states: Sequence[State],
        device: torch.device,
        groups: int = 1,
        precision: str = "float32",
    ):
        self.groups, self.precision = groups, precision
        module = copy.deepcopy(model)
        self.module = (channels_last(module) if self.fast else module).to(device)
        self.load(states[0])
        self.trained = list(self.module.parameters())
        self.parameters = self.named(self.trained)

    def load(self, state: State) -> None:
        """Another state in place of the one that is here."""
        self.module.load_state_dict(state)

    def named(self, tensors: Sequence[Tensor]) -> State:
        names = (name for name, _ in self.module.named_parameters())
        return {name: t.detach()[None] for name, t in zip(names, tensors, strict=True)}

    def gradients(self) -> State:
        named = self.module.named_parameters()
        return {name: p.grad[None] for name, p in named if p.grad is not None}

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        return self.module.eval()(x[0])[None]

    def losses(self, x: Tensor, y: Tensor) -> Tensor:
        if not self.module.training:
            self.module.train()
        for parameter in self.trained:
            parameter.grad = None
        if self.groups == 1:
            return self._backward(x[0], y[0])[None]
        parts = list(zip(x[0].chunk(self.groups), y[0].chunk(self.groups), strict=True))
        losses = [self._backward(*parts[0], last=False)]
        kept = [buffer.clone() for buffer in self.module.buffers()]
        losses += [self._backward(*part, last=part is parts[-1]) for part in parts[1:]]
        for buffer, first in zip(self.module.buffers(), kept, strict=True):
            buffer.copy_(first)
        return torch.stack(losses).mean(0, keepdim=True)

    def _backward(self, x: Tensor, y: Tensor, last: bool = True) -> Tensor:
        """The loss of one group; its share of the gradient is added to what is there."""
        bf16 = self.precision == "bf16"
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            logits = self._forward(x)
        loss = F.cross_entropy(logits.float() if bf16 else logits, y)
        (loss if self.groups == 1 else loss / self.groups).backward()
        return loss.detach()

    def _forward(self, x: Tensor) -> Tensor:
        return self.module(x)

    def states(self) -> list[State]:
        return of_each_run({n: t[None] for n, t in self.module.state_dict().items()})


class Contiguous(Single):
    """`Single`, for a network that cannot compute in channels-last memory."""

    fast = False


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
