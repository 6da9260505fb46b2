"""The activations on which groups are matched, each handed over at the moment it is computed.

Two nets can so be run in step, and no more is kept of either than a forward keeps. What runs is a
copy made for speed: in channels-last memory, where convolutions are fast and the matrices below are
views, with eval-mode batch norms folded into the convolutions before them (Jacob et al. 2018,
Section 3.2), with additions and ReLUs that overwrite what only they look at, and on a CPU with
kernels that oneDNN lays out once. All this changes an activation by rounding error only.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from rebasin_utils.errors import InputError
from rebasin_utils.permutation import PermutationSpec
from rebasin_utils.trace_capture import capture
from rebasin_utils.tracing import as_matrix


def streamed(net: nn.Module, spec: PermutationSpec) -> Callable[..., Iterator[tuple[str, Tensor]]]:
    """A function that runs the net and yields every group's name and what its tap sees.

    The function takes the forward's positional arguments, which are brought to the net's device and
    precision. It yields, in the order of computation, matrices [samples, units] or [samples, units,
    slots] as `tracing.as_matrix` makes them; each is to be used before the next is asked for, for
    the net may then overwrite it. The net runs in eval mode without gradients, only as far as the
    last tap. It is not changed, and its later changes go unnoticed.

    Raises:
        InputError: when the net is not of the architecture that the spec was traced from.
    """
    graph = capture(net, spec.inputs)
    taps = _tapped_nodes(graph, spec)
    first = next((t for t in chain(net.parameters(), net.buffers()) if t.is_floating_point()), None)
    run = fx.Interpreter(graph)

    def stream(*inputs: Tensor) -> Iterator[tuple[str, Tensor]]:
        run.env, run.args_iter = {}, iter([_placed(x, first) for x in inputs])
        for node in graph.graph.nodes:
            if node.op == "output":
                break
            with torch.no_grad():
                run.env[node] = run.run_node(node)
            for name in taps.get(node, ()):
                yield name, as_matrix(run.env[node], spec.groups[name].tap)
            for done in run.user_to_last_uses.get(node, ()):
                del run.env[done]
        run.env = {}

    return stream


def _tapped_nodes(graph: fx.GraphModule, spec: PermutationSpec) -> dict[fx.Node, list[str]]:
    """Make the graph fast, cut it after the last tap; the groups that look at each node."""
    nodes = {node.name: node for node in graph.graph.nodes}
    for name, group in spec.groups.items():
        if group.tap.node not in nodes:
            raise InputError(
                f"{graph.__class__.__name__} has no activation {group.tap.node!r} (group {name!r}, "
                f"{group.tap.place}): the spec was traced from another architecture"
            )
    tapped = {nodes[group.tap.node] for group in spec.groups.values()}
    for module in graph.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.ndim == 4:
                setattr(module, name, nn.Parameter(_channels_last(weight.detach()), False))
    folded = _fold_batch_norms(graph, tapped)
    _overwrite(graph, folded.values())
    nodes |= folded
    nodes |= _pack(graph, {nodes[group.tap.node] for group in spec.groups.values()})
    taps = defaultdict(list)
    for name, group in spec.groups.items():
        taps[nodes[group.tap.node]].append(name)
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


def _overwrite(graph: fx.GraphModule, folded: Iterable[fx.Node]) -> None:
    """Let additions and ReLUs write into an input that is made anew and that nothing else uses.

    Memory that is fresh from the system costs more than the sum of two activations.
    """
    own = set(folded)  # nodes whose results share no memory with anything
    for node in graph.graph.nodes:
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


def _pack(graph: fx.GraphModule, tapped: set[fx.Node]) -> dict[str, fx.Node]:
    """Put `_Packed` for what it can compute; name of each ReLU's node -> what stands for it."""
    calls = Counter(node.target for node in graph.graph.nodes if node.op == "call_module")
    stands_for = {}
    for node in list(graph.graph.nodes):
        conv = graph.get_submodule(node.target) if node.op == "call_module" else None
        if type(conv) is not nn.Conv2d or not _packable(conv) or calls[node.target] > 1:
            continue
        user = next(iter(node.users)) if len(node.users) == 1 and node not in tapped else None
        then_relu = user is not None and _is_relu(graph, user)
        graph.set_submodule(node.target, _Packed(conv, then_relu))
        if then_relu:
            user.replace_all_uses_with(node)
            graph.graph.erase_node(user)
            stands_for[user.name] = node
    return stands_for


def _packable(conv: nn.Conv2d) -> bool:
    return (
        not _hooked(conv)
        and (conv.weight.device.type, conv.weight.dtype) == ("cpu", torch.float32)
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
    are that compiler's. relu: whether a ReLU follows, done while the result is in the cache.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool):
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.how = (conv.padding, conv.stride, conv.dilation, conv.groups)
        self.then = "relu" if relu else "none"
        self.packed_for: torch.Size | None = None

    def forward(self, x: Tensor) -> Tensor:
        onednn = torch.ops.mkldnn
        if x.shape != self.packed_for:
            self.packed = onednn._reorder_convolution_weight(self.weight, *self.how, x.shape)
            self.packed_for = x.shape
        return onednn._convolution_pointwise(
            x, self.packed, self.bias, *self.how, self.then, [], ""
        )


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _placed(x: Tensor, like: Tensor | None) -> Tensor:
    """A copy of an input on the net's device and in its precision; the net may overwrite it."""
    if like is not None:
        x = x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)
    return _channels_last(x)


def _channels_last(x: Tensor) -> Tensor:
    """A copy of x, in channels-last memory if it is shaped like images or convolution kernels.

    `Tensor.to` would leave a tensor with one channel as it is.
    """
    memory_format = torch.channels_last if x.ndim == 4 else torch.preserve_format
    return torch.empty_like(x, memory_format=memory_format).copy_(x)
