"""REPAIR: a merged network's statistics, brought to those between its two ends.

Where two nets are averaged, units that are imperfectly matched partly cancel: the variance of the
activations shrinks, layer after layer ("variance collapse"). REPAIR (Jordan et al. 2023, Section 4)
rescales and shifts every hidden channel of the merged net until its mean and standard deviation are

    μ = (1 - α) μ_first + α μ_second,    σ = (1 - α) σ_first + α σ_second.

Corrected is the output of every batch norm, and of every convolution or linear layer that no batch
norm follows, except those that make the logits. The correction is a scale and a shift per channel,
so it goes into the plain weights: the repaired net is a state of the same architecture.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rebasin_utils.devices import channels_last
from rebasin_utils.errors import InputError
from rebasin_utils.masks import State
from rebasin_utils.trace_capture import capture

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Moments(NamedTuple):
    """Mean and standard deviation of every channel of a layer's output, each [channels]."""

    mean: Tensor
    std: Tensor

    def lerp(self, other: Moments, alpha: float) -> Moments:
        """(1 - alpha) self + alpha other."""
        return Moments(*(torch.lerp(a, b, alpha) for a, b in zip(self, other, strict=True)))


#: Layer -> its moments, in the order of computation.
Statistics = dict[str, Moments]


def corrected_layers(model: nn.Module) -> list[str]:
    """Names of the layers that REPAIR corrects, in the order of computation.

    Raises:
        InputError: when the model's graph cannot be traced, or uses such a layer twice.
    """
    return [node.target for node in _corrected_nodes(capture(model, 1))]


def statistics(model: nn.Module, state: State, batches: Iterable[Tensor]) -> Statistics:
    """The moments of every corrected layer of a net over all samples, in eval mode.

    Args:
        batches: images, float32 [batch, channels, height, width].
    """
    return _run(model, state, batches, lambda name, out, moments: out)


def lerp_statistics(first: Statistics, second: Statistics, alpha: float) -> Statistics:
    """What the statistics of a merged net should be."""
    return {name: moments.lerp(second[name], alpha) for name, moments in first.items()}


def repair(model: nn.Module, state: State, wanted: Statistics, batches: Iterable[Tensor]) -> State:
    """The merged net `state`, with its hidden layers' statistics brought to `wanted`.

    Each layer is measured on inputs that are corrected already, so one pass is enough; it is exact
    when all samples come in one batch. Over several, every batch is corrected by its own moments
    on the way down, as batch norm does in training.

    Args:
        wanted: of every corrected layer, `lerp_statistics` of the two ends' `statistics` on the
            same samples.

    Raises:
        InputError: when a layer has neither a bias nor a batch norm to hold the shift.
    """

    def corrected(name: str, out: Tensor, moments: Moments) -> Tensor:
        scale, shift = _correction(moments, wanted[name])
        return scale * out + shift

    measured = _run(model, state, batches, corrected)
    repaired = {name: t.clone() for name, t in state.items()}
    for name, moments in measured.items():
        if f"{name}.bias" not in state:
            raise InputError(f"layer {name} has no bias to hold a shift, so it cannot be repaired")
        scale, shift = (t.cpu() for t in _correction(moments, wanted[name]))
        weight, bias = repaired[f"{name}.weight"], repaired[f"{name}.bias"]
        weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1)))
        bias.mul_(scale).add_(shift)
    return repaired


def variance_ratios(found: Statistics, wanted: Statistics) -> dict[str, float]:
    """Variance of every layer, mean over its channels, relative to the wanted one; 1 is intact.

    Jordan et al. 2023, Figure 3: below 1 the variance has collapsed.
    """
    return {
        name: (moments.std.square().mean() / wanted[name].std.square().mean()).item()
        for name, moments in found.items()
    }


def _correction(found: Moments, wanted: Moments) -> tuple[Tensor, Tensor]:
    """Scale and shift that take a channel from one mean and std to another."""
    alive = found.std > 0  # a constant channel has no spread to restore: its mean is moved
    scale = torch.where(alive, wanted.std / found.std.where(alive, torch.ones_like(found.std)), 1.0)
    return scale, wanted.mean - scale * found.mean


@torch.no_grad()
def _run(
    model: nn.Module,
    state: State,
    batches: Iterable[Tensor],
    then: Callable[[str, Tensor, Moments], Tensor],
) -> Statistics:
    """Run the net; `then` may change each corrected layer's output [..., channels] on the way."""
    graph = channels_last(capture(copy.deepcopy(model), 1))
    graph.load_state_dict(state)
    nodes = set(_corrected_nodes(graph))
    each: dict[str, list[tuple[Tensor, Tensor, int]]] = {}

    class Measuring(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Tensor:
            out = super().run_node(node)
            if node not in nodes:
                return out
            axis = -1 if isinstance(graph.get_submodule(node.target), nn.Linear) else 1
            out = out.movedim(axis, -1)
            values = out.flatten(0, -2)
            mean = values.mean(0)
            variance = (values - mean).square_().mean(0)  # torch.var_mean takes 20 times as long
            each.setdefault(node.target, []).append((mean, variance, len(out)))
            return then(node.target, out, Moments(mean, variance.sqrt())).movedim(-1, axis)

    for x in batches:
        Measuring(graph.to(x.device)).run(x)
    return {name: _pooled(parts) for name, parts in each.items()}


def _pooled(parts: list[tuple[Tensor, Tensor, int]]) -> Moments:
    """Moments of all batches from those of each: variances within plus variance between."""
    sizes = torch.tensor([n for _, _, n in parts], dtype=torch.float64)
    weights = (sizes / sizes.sum()).to(parts[0][0])[:, None]
    means, variances = (torch.stack([p[i] for p in parts]) for i in (0, 1))
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean).square())).sum(0)
    return Moments(mean, variance.sqrt())


def _corrected_nodes(graph: fx.GraphModule) -> list[fx.Node]:
    modules = dict(graph.named_modules())
    kind = {n: modules[n.target] for n in graph.graph.nodes if n.op == "call_module"}
    hidden: set[fx.Node] = set()  # whose output another layer sees
    for node in reversed(graph.graph.nodes):
        is_layer = isinstance(kind.get(node), _LAYERS)
        hidden |= set(node.all_input_nodes) if is_layer or node in hidden else set()
    chosen = [node for node in kind if node in hidden and _is_corrected(node, kind)]
    for name, times in Counter(node.target for node in chosen).items():
        if times > 1:
            raise InputError(f"layer {name} is used {times} times, so it cannot be repaired")
    return chosen


def _is_corrected(node: fx.Node, kind: dict[fx.Node, nn.Module]) -> bool:
    if isinstance(kind[node], _LAYERS):
        return not all(isinstance(kind.get(user), _BatchNorm) for user in node.users)
    return isinstance(kind[node], _BatchNorm)
