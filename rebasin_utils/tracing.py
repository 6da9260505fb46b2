"""From a model to its `PermutationSpec`: capture the graph, walk it, read off the groups.

The graph comes from torch.fx. The walk replaces every tensor by a `Value` (`trace_values`) and
applies one rule per operation (`trace_rules`); what it cannot prove safe is pinned to the identity
with the reason. `check` then tests the result by running the model, and `tapped` runs it up to the
activations on which the groups are matched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.node import map_aggregate

from rebasin_utils.errors import InputError
from rebasin_utils.permutation import PermutationSpec, Tap, permute, random_permutation
from rebasin_utils.trace_capture import as_inputs, attribute, capture, eval_copy
from rebasin_utils.trace_groups import Walked, read_groups
from rebasin_utils.trace_rules import Shape, rule_for
from rebasin_utils.trace_values import solve
from rebasin_utils.trace_walk import State, Walk


def trace(
    model: nn.Module, example: Tensor | tuple[Any, ...], stream_tap: str = "last"
) -> PermutationSpec:
    """Derive the spec of a model; see `PermutationSpec.trace`."""
    inputs = as_inputs(example)
    graph = capture(model, len(inputs))
    results = _run(model, graph, inputs)
    state = State(model)
    walk = Walk(graph, results, state)
    walked = Walked(state.axes, walk.values, frozenset(walk.computing), solve(state.ledger))
    groups, pinned = read_groups(walked, stream_tap)
    return PermutationSpec(groups, pinned, state.shapes, len(inputs))


def _run(model: nn.Module, graph: fx.GraphModule, inputs: tuple[Any, ...]) -> dict[fx.Node, Any]:
    """Every node's concrete result, tensors replaced by their `Shape`.

    Raises:
        InputError: when the graph does not compute what the model computes.
    """
    results: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            results[n] = map_aggregate(
                result, lambda x: Shape(tuple(x.shape)) if isinstance(x, Tensor) else x
            )
            return result

    with torch.no_grad():
        expected = _tensors(eval_copy(model)(*_cloned(inputs)))
        found = _tensors(Recorder(graph).run(*_cloned(inputs)))
    scale = max((a.abs().max().item() for a in expected), default=0.0)
    alike = len(expected) == len(found) and all(
        a.shape == b.shape and not (a - b).abs().max() > 1e-3 * scale + 1e-6
        for a, b in zip(expected, found, strict=True)
    )
    if not alike:
        raise InputError(
            f"the traced graph of {type(model).__name__} does not compute what the model computes: "
            "its forward uses random numbers, or writes in place through a view"
        )
    return results


def check(
    model: nn.Module, spec: PermutationSpec, example: Tensor | tuple[Any, ...], seed: int = 0
) -> float:
    """Relative change of the outputs, max|a - b| / max|a|, when every group moves at random.

    The test is of the architecture, not of the numbers in it: every floating-point tensor of the
    state (weights, batch-norm affine and running statistics, layer scales) is replaced by random
    numbers, all-positive tensors by positive ones, and so are floating-point inputs. Defaults such
    as a running mean of 0 or a layer scale of 1e-6 would hide errors. Runs in eval mode and float64
    (float32 where the model insists on it) on copies, with two forward passes. With several outputs
    the worst counts.

    Raises:
        InputError: when an output is not finite or is zero up to rounding: nothing can be said.
    """
    net = eval_copy(model)
    try:
        return _check(net, spec, as_inputs(example), seed, torch.float64)
    except (RuntimeError, TypeError):  # its forward casts to another precision, or its device lacks
        return _check(net, spec, as_inputs(example), seed, torch.float32)


def _check(
    net: nn.Module, spec: PermutationSpec, inputs: tuple[Any, ...], seed: int, dtype: torch.dtype
) -> float:
    generator = torch.Generator().manual_seed(seed)
    state = _randomised(net, generator, dtype)
    inputs = tuple(_noise(x, generator, dtype) for x in inputs)
    moved = permute(spec, random_permutation(spec, generator), state)
    constants = {n: b.to(dtype) for n, b in net.named_buffers() if n not in state and _is_real(b)}
    with torch.no_grad():
        before, after = (
            _tensors(functional_call(net, s | constants, _cloned(inputs), tie_weights=False))
            for s in (state, moved)
        )
    worst = 0.0
    for a, b in zip(before, after, strict=True):
        scale = a.abs().max().item()
        if not 1e-10 < scale < float("inf"):
            raise InputError(f"check cannot judge an output whose largest entry is {scale:g}")
        worst = max(worst, (a - b).abs().max().item() / scale)
    return worst


def tapped(model: nn.Module, spec: PermutationSpec) -> Callable[..., dict[str, Tensor]]:
    """A function that runs the model on a batch and returns what every group's tap sees.

    It takes the forward's positional arguments and gives, per group, a matrix [samples, units]
    (or [samples, units, slots] for units with several slots), where pixels and tokens count as
    samples. With activations in channels_last memory the matrices are views, else copies. The model
    runs in eval mode without gradients, only as far as the last tap, and is not changed. The
    function shares the model's tensors: after moving the model to another device, make it anew.

    Raises:
        InputError: when the model is not of the architecture that the spec was traced from.
    """
    raw = tap_values(model, spec)
    taps = {name: group.tap for name, group in spec.groups.items()}

    def run(*inputs: Tensor) -> dict[str, Tensor]:
        return {name: as_matrix(x, taps[name]) for name, x in raw(*inputs).items()}

    return run


def tap_values(model: nn.Module, spec: PermutationSpec) -> Callable[..., dict[str, Tensor]]:
    """`tapped` without the rearranging: the activations as the model lays them out.

    The units of a group stand along the dimensions `group.tap.dims`, at `group.tap.index`.
    """
    graph = capture(model, spec.inputs)
    nodes = {node.name: node for node in graph.graph.nodes}
    wanted = {}
    for name, group in spec.groups.items():
        if group.tap.node not in nodes:
            raise InputError(
                f"{type(model).__name__} has no activation {group.tap.node!r} ({group.tap.place}): "
                "the spec was traced from another architecture"
            )
        wanted[name] = nodes[group.tap.node]
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node in dict.fromkeys([*inputs, *wanted.values()]):
        if _is_overwritten(graph, node):
            with graph.graph.inserting_after(node):
                kept = graph.graph.call_method("clone", (node,))
            if node in inputs:
                node.replace_all_uses_with(
                    kept, delete_user_cb=lambda user, kept=kept: user != kept
                )
            wanted = {name: kept if n is node else n for name, n in wanted.items()}
    last = next(node for node in graph.graph.nodes if node.op == "output")
    last.args = (wanted,)
    graph.graph.eliminate_dead_code()
    graph.recompile()

    def run(*inputs: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            return graph(*inputs)

    return run


def as_matrix(activation: Tensor, tap: Tap) -> Tensor:
    """An activation of `tap_values` as [samples, units], or [samples, units, slots]."""
    size = len(tap.dims)
    x = activation.movedim(tap.dims, tuple(range(-size, 0)))
    width = int(np.prod(x.shape[-size:]))
    x = x.reshape(-1, width)
    units, slots = tap.index.shape
    if not (tap.takes_all and width == units * slots):
        x = x[:, tap.index.flatten().to(x.device)]
    return x if slots == 1 else x.unflatten(1, (units, slots))


def _cloned(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies, because a forward may overwrite its inputs."""
    return map_aggregate(inputs, lambda x: x.clone() if isinstance(x, Tensor) else x)


def _is_overwritten(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a later operation may write into this node's memory, directly or through a view."""
    aliases, seen = [node], {node}
    while aliases:
        for user in aliases.pop().users:
            module = attribute(graph, user.target) if user.op == "call_module" else None
            if _is_in_place(user, module):
                return True
            rule = rule_for(user, module)
            if (rule is None or not rule.computes) and user not in seen:
                aliases.append(user)
                seen.add(user)
    return False


def _is_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    if node.op in ("call_module", "output"):
        return getattr(module, "inplace", False)
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    marked = name.endswith("_") and not name.endswith("__")
    return marked or name == "setitem" or node.kwargs.get("inplace", False)


def _randomised(
    net: nn.Module, generator: torch.Generator, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Random numbers in place of every floating-point tensor of the state."""
    drawn: dict[int, Tensor] = {}
    state = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if not _is_real(tensor):
            state[name] = tensor
            continue
        if id(tensor) not in drawn:
            if (tensor > 0).all():
                new = torch.rand(tensor.shape, generator=generator).add_(0.5)
            else:
                new = torch.randn(tensor.shape, generator=generator)
                if tensor.ndim > 1 and tensor.numel():
                    new.div_(tensor[0].numel() ** 0.5)  # keeps signals at scale 1
            drawn[id(tensor)] = new.to(tensor.device, dtype)
        state[name] = drawn[id(tensor)]
    return state


def _noise(x: Any, generator: torch.Generator, dtype: torch.dtype) -> Any:
    return torch.randn(x.shape, generator=generator).to(x.device, dtype) if _is_real(x) else x


def _is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors of an output, however it nests them."""
    found: list[Tensor] = []
    map_aggregate(output, lambda x: found.append(x) if _is_real(x) else None)
    return found
