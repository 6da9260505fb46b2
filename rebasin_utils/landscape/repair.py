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

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from rebasin_utils.errors import InputError, require_state
from rebasin_utils.nets.devices import channels_last, runs_channels_last
from rebasin_utils.nets.masks import State
from rebasin_utils.symmetry.batches import Batch, arguments, head, needed_arguments, tensors
from rebasin_utils.symmetry.tracing.capture import graph_of
from rebasin_utils.symmetry.tracing.copies import eval_copy

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)

#: The same as functions of weights that stand elsewhere.
_FUNCTIONS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
_FUNCTIONS += (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


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
        InputError: when the model's graph cannot be traced, uses such a layer twice, or has one
            that is a function of weights and not a module.
    """
    return list(Probe(model).layers.values())


def statistics(model: nn.Module, state: State, batches: Iterable[Batch]) -> Statistics:
    """The moments of every corrected layer of a net over all samples, in eval mode.

    Args:
        batches: what each may be, `symmetry.batches` says.

    Raises:
        InputError: as for `corrected_layers`; when there are no batches, or `state` is none.
    """
    return Probe(model).statistics(state, batches)


def lerp_statistics(first: Statistics, second: Statistics, alpha: float) -> Statistics:
    """What the statistics of a merged net should be.

    Raises:
        InputError: when the two are not of the same layers and widths.
    """
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise InputError(f"only one of the two statistics has the layer {odd[0]!r}")
    for name, moments in first.items():
        widths = [len(m.mean) for m in (moments, second[name])]
        if widths[0] != widths[1]:
            raise InputError(
                f"layer {name} has {widths[0]} channels in one, {widths[1]} in the other"
            )
    return {name: moments.lerp(second[name], alpha) for name, moments in first.items()}


def repair(model: nn.Module, state: State, wanted: Statistics, batches: Iterable[Batch]) -> State:
    """The merged net `state`, with its hidden layers' statistics brought to `wanted`.

    Each layer is measured on inputs that are corrected already, so one pass is enough; it is exact
    when all samples come in one batch. Over several, every batch is corrected by its own moments
    on the way down, as batch norm does in training.

    Args:
        wanted: of every corrected layer, `lerp_statistics` of the two ends' `statistics` on the
            same samples.

    Raises:
        InputError: as for `statistics`; when a layer has neither a bias nor a batch norm to hold
            the shift, or `wanted` lacks it.
    """

    return Probe(model).repair(state, wanted, batches)


class Probe:
    """A model taken apart once, to measure and to correct many states of it.

    Taking it apart takes longer than to measure a small one.

    layers: the nodes of its graph whose outputs are corrected, and their names in the model.

    Raises:
        InputError: as for `corrected_layers`.
    """

    def __init__(self, model: nn.Module):
        self._model, self._arguments = model, needed_arguments(model)
        self._net = eval_copy(model)
        self._graph = graph_of(self._net, len(self._arguments))
        self.layers = _corrected_nodes(self._graph, model)
        self._laid_out = False

    def statistics(self, state: State, batches: Iterable[Batch]) -> Statistics:
        """What the function `statistics` gives."""
        return self._run(state, batches, lambda name, out, moments: out)

    def repair(self, state: State, wanted: Statistics, batches: Iterable[Batch]) -> State:
        """What the function `repair` gives."""

        def corrected(name: str, out: Tensor, moments: Moments) -> Tensor:
            if name not in wanted:
                raise InputError(
                    f"wanted lacks the layer {name!r}: give `lerp_statistics` of the ends"
                )
            scale, shift = _correction(moments, wanted[name])
            return scale * out + shift

        measured = self._run(state, batches, corrected)
        repaired = {name: t.clone() for name, t in state.items()}
        for name, moments in measured.items():
            if f"{name}.bias" not in state:
                raise InputError(
                    f"layer {name} has no bias to hold a shift, so it cannot be repaired"
                )
            scale, shift = (t.cpu() for t in _correction(moments, wanted[name]))
            weight, bias = repaired[f"{name}.weight"], repaired[f"{name}.bias"]
            _scale_outputs(self._model.get_submodule(name), weight, scale)
            bias.mul_(scale).add_(shift)
        return repaired

    @torch.no_grad()
    def _run(
        self,
        state: State,
        batches: Iterable[Batch],
        then: Callable[[str, Tensor, Moments], Tensor],
    ) -> Statistics:
        """Run the net; `then` may change a corrected layer's output [..., channels] on the way."""
        require_state(state)
        graph, layers = self._graph, self.layers
        self._net.load_state_dict(state)
        each: dict[str, list[tuple[Tensor, Tensor, int]]] = {}

        class Measuring(fx.Interpreter):
            def run_node(self, node: fx.Node) -> Tensor:
                out = super().run_node(node)
                if node not in layers:
                    return out
                axis = -1 if isinstance(graph.get_submodule(node.target), nn.Linear) else 1
                out = out.movedim(axis, -1)
                values = out.flatten(0, -2)
                mean = values.mean(0)
                variance = (values - mean).square_().mean(0)  # torch.var_mean: 20 times as long
                each.setdefault(layers[node], []).append((mean, variance, len(out)))
                return then(layers[node], out, Moments(mean, variance.sqrt())).movedim(-1, axis)

        for batch in batches:
            inputs = arguments(batch, self._arguments)
            few = head(inputs, 2)
            graph.to(tensors(inputs)[0].device)
            if not self._laid_out and runs_channels_last(graph, lambda net, few=few: net(*few)):
                channels_last(graph)
            self._laid_out = True
            Measuring(graph).run(*inputs)
        if layers and not each:
            raise InputError("batches is empty: statistics need at least one batch of inputs")
        return {name: _pooled(parts) for name, parts in each.items()}


def variance_ratios(found: Statistics, wanted: Statistics) -> dict[str, float]:
    """Variance of every layer, mean over its channels, relative to the wanted one; 1 is intact.

    Jordan et al. 2023, Figure 3: below 1 the variance has collapsed.
    """
    return {
        name: (moments.std.square().mean() / wanted[name].std.square().mean()).item()
        for name, moments in found.items()
    }


def _scale_outputs(layer: nn.Module, weight: Tensor, scale: Tensor) -> None:
    """Multiply a layer's weights, in place, by `scale` [output channels]."""
    if isinstance(layer, _TRANSPOSED):  # [input channels, output channels of one group, *kernel]
        of_group = weight.unflatten(0, (layer.groups, -1))
        of_group.mul_(scale.view(layer.groups, 1, -1, *[1] * (weight.ndim - 2)))
    else:
        weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1)))


def _correction(found: Moments, wanted: Moments) -> tuple[Tensor, Tensor]:
    """Scale and shift that take a channel from one mean and std to another."""
    alive = found.std > 0  # a constant channel has no spread to restore: its mean is moved
    scale = torch.where(alive, wanted.std / found.std.where(alive, torch.ones_like(found.std)), 1.0)
    return scale, wanted.mean - scale * found.mean


def _pooled(parts: list[tuple[Tensor, Tensor, int]]) -> Moments:
    """Moments of all batches from those of each: variances within plus variance between."""
    sizes = torch.tensor([n for _, _, n in parts], dtype=torch.float64)
    weights = (sizes / sizes.sum()).to(parts[0][0])[:, None]
    means, variances = (torch.stack([p[i] for p in parts]) for i in (0, 1))
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean).square())).sum(0)
    return Moments(mean, variance.sqrt())


def _corrected_nodes(graph: fx.GraphModule, model: nn.Module) -> dict[fx.Node, str]:
    """Where the layers are computed that REPAIR corrects, and their names in the model."""
    modules = dict(graph.named_modules())
    kind = {n: modules[n.target] for n in graph.graph.nodes if n.op == "call_module"}
    hidden: set[fx.Node] = set()  # whose output another layer sees
    for node in reversed(graph.graph.nodes):
        is_layer = isinstance(kind.get(node), _LAYERS) or node.target in _FUNCTIONS
        if node.target in _FUNCTIONS and node in hidden:
            raise InputError(
                f"{node.name} is a layer made of a function, not of a module, so it cannot be "
                "repaired"
            )
        hidden |= set(node.all_input_nodes) if is_layer or node in hidden else set()
    chosen = [node for node in kind if node in hidden and _is_corrected(node, kind)]
    for name, times in Counter(node.target for node in chosen).items():
        if times > 1:
            raise InputError(f"layer {name} is used {times} times, so it cannot be repaired")
    own = dict(model.named_modules())  # the graph may have the model within a wrapper
    paths = {node: node.target for node in chosen}
    return {n: path if path in own else path.partition(".")[2] for n, path in paths.items()}


def _is_corrected(node: fx.Node, kind: dict[fx.Node, nn.Module]) -> bool:
    if isinstance(kind[node], _LAYERS):
        return not all(isinstance(kind.get(user), _BatchNorm) for user in node.users)
    return isinstance(kind[node], _BatchNorm)
