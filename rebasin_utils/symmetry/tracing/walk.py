"""The walk over a captured graph: every tensor a `Value`, one rule per operation."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from rebasin_utils.symmetry.tracing.groups import describe
from rebasin_utils.symmetry.tracing.places import attribute
from rebasin_utils.symmetry.tracing.rules import METADATA, Call, Rule, Shape, Unknown, values_in
from rebasin_utils.symmetry.tracing.table import rule_for
from rebasin_utils.symmetry.tracing.values import Ledger, Value, pin_all


class State:
    """The model's tensors, their atoms, and the ledger that everything is written into.

    Pruned tensors (`weight_orig` beside `weight_mask`) go by the name they have in a dense model.
    """

    def __init__(self, model: nn.Module):
        self.ledger = Ledger()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.axes: dict[tuple[str, int], np.ndarray] = {}
        self._known: dict[int, Value] = {}
        tensors: dict[str, Tensor] = {}
        state = model.state_dict(keep_vars=True)
        for key, tensor in state.items():
            name = key.removesuffix("_orig")
            if isinstance(tensor, Tensor) and not (
                key.endswith("_mask") and f"{key.removesuffix('_mask')}_orig" in state
            ):
                tensors[name if f"{name}_mask" in state else key] = tensor
        for name, tensor in tensors.items():
            self.shapes[name] = tuple(tensor.shape)
            for axis, length in enumerate(tensor.shape):
                if length > 1:
                    self.axes[name, axis] = self.ledger.axis(length)
        self._tie_shared(tensors)
        for name, tensor in reversed(tensors.items()):
            self._known[id(tensor)] = Value(self.shapes[name], self._factors(name))

    def value(self, tensor: Tensor) -> Value:
        """A tensor that the forward uses; one outside the state cannot be permuted."""
        outside = Value(tuple(tensor.shape), why="meets a constant that is not in the state")
        return self._known.get(id(tensor), outside)

    def parameter(self, module: nn.Module, name: str) -> Value | None:
        """A module's tensor, or None where it has none; understands `torch.nn.utils.prune`."""
        tensor = getattr(module, name, None)
        if f"{name}_mask" in module._buffers:
            tensor = module._parameters[f"{name}_orig"]
        return None if tensor is None else self.value(tensor)

    def _factors(self, name: str) -> tuple[np.ndarray, ...]:
        shape = self.shapes[name]
        return tuple(
            self.axes[name, axis].reshape([-1 if d == axis else 1 for d in range(len(shape))])
            for axis, length in enumerate(shape)
            if length > 1
        )

    def _tie_shared(self, tensors: dict[str, Tensor]) -> None:
        """One memory under two names moves as one, or not at all where the two views differ."""
        seen: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            other = next((n for n, t in seen.items() if _overlap(t, tensor)), None)
            seen[name] = tensor
            if other is None:
                continue
            mine, theirs = self._factors(name), self._factors(other)
            same = tensor.data_ptr() == seen[other].data_ptr()
            same = same and tensor.shape == seen[other].shape
            if same and tensor.stride() == seen[other].stride():
                for a, b in zip(mine, theirs, strict=True):
                    self.ledger.tie([a, b])
            else:
                for f in (*mine, *theirs):
                    self.ledger.pin(f, f"{name} and {other} share memory in part")


class Walk:
    """One pass over the graph, node by node; fills the ledger and `values`."""

    def __init__(self, graph: fx.GraphModule, results: dict[fx.Node, Any], state: State):
        self.graph, self.results, self.state = graph, results, state
        self.values: dict[fx.Node, Any] = {}
        self.computing: set[fx.Node] = set()
        for node in graph.graph.nodes:
            self.values[node] = self._value_of(node)

    def _value_of(self, node: fx.Node) -> Any:
        out = self.results[node]
        if node.op == "placeholder":
            return _blank(out, "model input")
        if node.op == "get_attr":
            found = attribute(self.graph, node.target)
            return self.state.value(found) if isinstance(found, Tensor) else found
        args = map_aggregate(node.args, self._known)
        kwargs = map_aggregate(node.kwargs, self._known)
        operands = values_in(args, kwargs)
        if node.op == "output":
            for value in operands:
                pin_all(self.state.ledger, value, "model output")
            return None
        if not _holds_tensors(out):
            if not _only_reads(node):
                for value in operands:
                    pin_all(self.state.ledger, value, f"{describe(node)} reads numbers off it")
            return out
        return self._apply(node, out, args, kwargs, operands)

    def _known(self, leaf: Any) -> Any:
        return self.values[leaf] if isinstance(leaf, fx.Node) else leaf

    def _apply(self, node: fx.Node, out: Any, args: Any, kwargs: Any, operands: list[Value]) -> Any:
        ledger, place = self.state.ledger, describe(node)
        module = attribute(self.graph, node.target) if node.op == "call_module" else None
        rule = rule_for(node, module)
        if module is not None:
            args = (module, *args)
        elif not operands and rule is None:
            return _blank(out, "meets a constant made in the forward")
        try:
            call = Call(ledger, place, out, self.state.parameter)
            result = _follow(rule, call, args, kwargs)
        except Unknown as unknown:
            for value in operands:
                pin_all(ledger, value, str(unknown))
            for tensor in [] if module is None else module.parameters():
                pin_all(ledger, self.state.value(tensor), str(unknown))
            sampled = any(v.sampled for v in operands)
            return _blank(out, str(unknown), sampled)
        if rule.computes:
            self.computing.add(node)
        return result


def _follow(rule: Rule | None, call: Call, args: Any, kwargs: Any) -> Any:
    """Apply a rule, and make sure that its result has the shapes of the real one."""
    if rule is None:
        raise Unknown(f"{call.place} is not understood")
    if kwargs.get("out") is not None:
        raise Unknown(f"{call.place} writes into its argument `out`")
    try:
        result = rule.apply(call, *args, **kwargs)
    except (TypeError, ValueError, IndexError, AttributeError):  # arguments that no rule foresees
        raise Unknown(f"{call.place} is called in a way that is not understood") from None
    shapes: list[tuple[int, ...]] = []
    map_aggregate(call.out, lambda x: shapes.append(x.sizes) if isinstance(x, Shape) else None)
    found = values_in(result)
    if [v.shape for v in found] != shapes or not all(_fits(v) for v in found):
        raise Unknown(f"{call.place} gives another shape than its rule expects")
    return result


def _fits(value: Value) -> bool:
    return all(
        f.ndim == len(value.shape) and np.broadcast_shapes(f.shape, value.shape) == value.shape
        for f in value.factors
    )


def _blank(out: Any, why: str, sampled: bool = True) -> Any:
    """A result in which every position is fixed."""
    return map_aggregate(
        out, lambda x: Value(x.sizes, sampled=sampled, why=why) if isinstance(x, Shape) else x
    )


def _holds_tensors(out: Any) -> bool:
    found: list[Shape] = []
    map_aggregate(out, lambda x: found.append(x) if isinstance(x, Shape) else None)
    return bool(found)


def _only_reads(node: fx.Node) -> bool:
    """Whether a node asks for a tensor's shape or type, which no permutation changes."""
    if node.op == "call_method":
        return node.target in METADATA
    if node.target is getattr:
        return node.args[1] in METADATA
    return False


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two strided tensors may share memory."""
    (start, end), (other, other_end) = _extent(a), _extent(b)
    return a.device == b.device and start < other_end and other < end


def _extent(x: Tensor) -> tuple[int, int]:
    span = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
    return x.data_ptr(), x.data_ptr() + (span * x.element_size() if x.numel() else 0)
