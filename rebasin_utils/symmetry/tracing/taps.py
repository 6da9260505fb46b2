"""Running a model up to the activations on which its groups are matched."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, fx, nn

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.permutation import Spec, Tap
from rebasin_utils.symmetry.tracing.capture import capture
from rebasin_utils.symmetry.tracing.places import attribute
from rebasin_utils.symmetry.tracing.table import rule_for


def tapped(model: nn.Module, spec: Spec) -> Callable[..., dict[str, Tensor]]:
    """A function that runs the model on a batch and returns what every group's tap sees.

    It takes the forward's arguments that are tensors, by their place, and gives a matrix per group,
    [samples, units] (or [samples, units, slots] for units with several slots), where pixels and
    tokens count as samples. With activations in channels_last memory the matrices are views, else
    copies. What runs is a copy of the model, in eval mode without gradients, only as far as the
    last tap: the model is not changed, and its later changes go unnoticed.

    Raises:
        InputError: when the model is not of the architecture that the spec was traced from. The
            function raises it for an input for which a recorded graph does not hold.
    """
    raw = tap_values(model, spec)
    taps = {name: group.tap for name, group in spec.groups.items()}

    def run(*inputs: Tensor) -> dict[str, Tensor]:
        return {name: as_matrix(x, taps[name]) for name, x in raw(*inputs).items()}

    return run


def tap_values(model: nn.Module, spec: Spec) -> Callable[..., dict[str, Tensor]]:
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
