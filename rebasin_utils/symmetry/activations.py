"""The activations on which groups are matched, each handed over at the moment it is computed.

Two nets can so be run in step, and no more is kept of either than a forward keeps. What runs is a
copy made for speed: in channels-last memory, where convolutions are fast and the matrices below are
views, with eval-mode batch norms folded into the convolutions before them (Jacob et al. 2018,
Section 3.2), with additions and ReLUs that overwrite what only they look at, and on a CPU with
kernels that oneDNN lays out once. All this changes an activation by rounding error only. A net that
cannot compute in channels-last memory (it flattens images by `view`) runs in contiguous memory.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.batches import head, own_names
from rebasin_utils.symmetry.passes import Look, arranged
from rebasin_utils.symmetry.permutation import Permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.tracing.capture import capture


def streamed(
    net: nn.Module,
    spec: PermutationSpec,
    looks: Mapping[Hashable, Look] | None = None,
    settled: Permutation | None = None,
) -> Stream:
    """The net, ready to be run; it yields the name of every look and what it sees.

    Args:
        looks: by name; by default at every group's tap.
        settled: the order to bring other groups' units into, where a look has them among its
            samples.

    Raises:
        InputError: when the net is not of the architecture that the spec was traced from.
    """
    if looks is None:
        looks = {name: Look(group.tap) for name, group in spec.groups.items()}
    return Stream(net, spec, looks, settled or {})


class Stream:
    """A function that runs a net, in eval mode without gradients, only as far as the last look.

    It takes the forward's arguments `names`, in this order, which are brought to the net's device
    and precision. It yields, in the order of computation, matrices [samples, units] or [samples,
    units, slots] as `passes.arranged` makes them; each is to be used before the next is asked for,
    for the net may then overwrite it. The net is not changed, and its later changes go unnoticed.
    """

    def __init__(
        self,
        net: nn.Module,
        spec: PermutationSpec,
        looks: Mapping[Hashable, Look],
        settled: Permutation,
    ):
        self._made_of = net, spec, looks
        self._looks, self._settled = looks, settled
        self._run = _Run(*self._made_of, torch.channels_last)
        self._tried = False
        nodes = self._run.graph.nodes
        inputs = [node.target for node in nodes if node.op == "placeholder"]
        self.names = own_names(net, inputs)

    def __call__(self, *inputs: Any) -> Iterator[tuple[Hashable, Tensor]]:
        if not self._tried:
            try:  # on two samples, whether this net can compute in channels-last memory
                for _ in self._run(head(inputs, 2)):
                    pass
            except Exception:  # whatever else may be wrong shows again in contiguous memory
                self._run = _Run(*self._made_of, torch.contiguous_format)
            self._tried = True
        for name, activation in self._run(inputs):
            yield name, arranged(activation, self._looks[name], self._settled)


class _Run:
    """A copy of the net in one memory format, run as far as the last look."""

    def __init__(
        self,
        net: nn.Module,
        spec: PermutationSpec,
        looks: Mapping[Hashable, Look],
        memory_format: torch.memory_format,
    ):
        graph = capture(net, spec.inputs)
        tensors = chain(net.parameters(), net.buffers())
        self.like = next((t for t in tensors if t.is_floating_point()), None)
        self.memory_format = memory_format
        self.taps = _tapped_nodes(graph, looks, memory_format)
        self.run, self.graph = fx.Interpreter(graph), graph.graph

    def __call__(self, inputs: Sequence[Any]) -> Iterator[tuple[Hashable, Tensor]]:
        """The name of every look and the activation there, in the order of computation."""
        run = self.run
        run.env, run.args_iter = {}, iter(map_aggregate(tuple(inputs), self._placed))
        for node in self.graph.nodes:
            if node.op == "output":
                break
            with torch.no_grad():
                run.env[node] = run.run_node(node)
            for name in self.taps.get(node, ()):
                yield name, run.env[node]
            for done in run.user_to_last_uses.get(node, ()):
                del run.env[done]
        run.env = {}

    def _placed(self, x: Any) -> Any:
        """A copy of an input on the net's device, in its precision; the net may overwrite it."""
        if not isinstance(x, Tensor):
            return x
        if self.like is not None:
            x = x.to(self.like.device, self.like.dtype if x.is_floating_point() else x.dtype)
        return _in_memory(x, self.memory_format)


def _tapped_nodes(
    graph: fx.GraphModule, looks: Mapping[Hashable, Look], memory_format: torch.memory_format
) -> dict[fx.Node, list[Hashable]]:
    """Make the graph fast, cut it after the last look; the looks at each node, by name."""
    nodes = {node.name: node for node in graph.graph.nodes}
    for look in looks.values():
        if look.tap.node not in nodes:
            raise InputError(
                f"{graph.__class__.__name__} has no activation {look.tap.node!r} "
                f"({look.tap.place}): the spec was traced from another architecture"
            )
    tapped = {nodes[look.tap.node] for look in looks.values()}
    for module in graph.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim == 4:
                own = _in_memory(weight.detach(), memory_format)
                setattr(module, name, nn.Parameter(own, False))
    nodes |= _fold_batch_norms(graph, tapped)
    _overwrite(graph)
    if memory_format == torch.channels_last:
        _pack(graph)
    taps = defaultdict(list)
    for name, look in looks.items():
        taps[nodes[look.tap.node]].append(name)
    output = next(node for node in nodes.values() if node.op == "output")
    output.args = (tuple(taps),)
    graph.graph.eliminate_dead_code()
    output.args = ((),)  # or else every tap would be kept to the end
    return taps


def _fold_batch_norms(graph: fx.GraphModule, tapped: set[fx.Node]) -> dict[str, fx.Node]:
    """Fold what can be folded; name of each batch norm's node -> the node that now stands for it.

    A convolution that something else looks at keeps its batch norm, and so does one whose weight is
    made by a hook (pruning): the hook would undo it.
    """
    modules = dict(graph.named_modules())
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    stands_for = {}
    for norm in [n for n in graph.graph.nodes if n.op == "call_module"]:
        conv = norm.all_input_nodes[0]
        pair = [modules.get(n.target) if n.op == "call_module" else None for n in (conv, norm)]
        if (
            [type(m) for m in pair] == [nn.Conv2d, nn.BatchNorm2d]
            and pair[1].running_mean is not None
            and not any(_hooked(m) for m in pair)
            and calls[conv.target] == calls[norm.target] == 1
            and len(conv.users) == 1
            and conv not in tapped
        ):
            kernels, n = pair
            kernels.weight, kernels.bias = fuse_conv_bn_weights(
                kernels.weight, kernels.bias, n.running_mean, n.running_var, n.eps, n.weight, n.bias
            )
            norm.replace_all_uses_with(conv)
            graph.graph.erase_node(norm)
            stands_for[norm.name] = conv
    return stands_for


def _overwrite(graph: fx.GraphModule) -> None:
    """Let additions and ReLUs write into an input that is made anew and that nothing else uses.

    Memory that is fresh from the system costs more than the sum of two activations.
    """
    own: set[fx.Node] = set()  # nodes whose results share no memory with anything
    for node in graph.graph.nodes:
        if _convolution(graph, node) is not None:
            own.add(node)
            continue
        free = next((x for x in node.all_input_nodes if x in own and len(x.users) == 1), None)
        if free is None:
            continue
        if node.target in (operator.add, torch.add) and len(node.args) == 2 and not node.kwargs:
            other = node.args[int(node.args[0] is free)]
            node.target, node.args = _added, (free, other)
        elif _is_relu(graph, node):
            node.op, node.target, node.args, node.kwargs = "call_function", F.relu_, (free,), {}
        else:
            continue
        own.add(node)


def _added(x: Tensor, y: Tensor | float) -> Tensor:
    """The sum, in the memory of x where it fits."""
    fits = isinstance(y, Tensor) and (y.shape, y.dtype) == (x.shape, x.dtype)
    return x.add_(y) if fits else x + y


def _pack(graph: fx.GraphModule) -> None:
    """Put `_Packed` in the place of every convolution that it can compute."""
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    for node in graph.graph.nodes:
        conv = _convolution(graph, node)
        if conv is not None and _packable(conv) and calls[node.target] == 1:
            graph.set_submodule(node.target, _Packed(conv))


def _convolution(graph: fx.GraphModule, node: fx.Node) -> nn.Conv2d | None:
    """The plain 2D convolution that a node calls, if it does."""
    module = graph.get_submodule(node.target) if node.op == "call_module" else None
    return module if type(module) is nn.Conv2d and not _hooked(module) else None


def _packable(conv: nn.Conv2d) -> bool:
    return (
        (conv.weight.device.type, conv.weight.dtype) == ("cpu", torch.float32)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )


def _is_relu(graph: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = graph.get_submodule(node.target)
        return type(module) is nn.ReLU and not _hooked(module)
    return node.op == "call_function" and node.target in (torch.relu, F.relu, F.relu_)


class _Packed(nn.Module):
    """A convolution on a CPU, its kernels in the layout that oneDNN computes with.

    PyTorch brings them there at every call, unless its compiler has frozen the net; the operators
    are that compiler's. They could do the ReLU that follows, too, but theirs makes NaN a 0.
    """

    def __init__(self, conv: nn.Conv2d):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.how = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.packed_for: torch.Size | None = None

    def forward(self, x: Tensor) -> Tensor:
        onednn = torch.ops.mkldnn
        if x.shape != self.packed_for:
            self.packed = onednn._reorder_convolution_weight(self.weight, *self.how, x.shape)
            self.packed_for = x.shape
        return onednn._convolution_pointwise(x, self.packed, self.bias, *self.how, "none", [], "")


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _in_memory(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """A copy of x; in this memory format if it is shaped like images or convolution kernels.

    `Tensor.to` would leave a tensor with one channel as it is.
    """
    kept = memory_format if x.ndim == 4 else torch.preserve_format
    return torch.empty_like(x, memory_format=kept).copy_(x)
