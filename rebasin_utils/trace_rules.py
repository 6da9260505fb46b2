"""The table of rules: what each operation does to the atoms of its operands.

A rule gets a `Call` and the operation's own arguments, tensors replaced by `Value`s, and returns
the `Value` of the result. Rules are found by the very object that is called (a torch function, a
tensor method, a module class), never by a look-alike name. What has no rule, or is called in a way
that its rule does not foresee, raises `Unknown`; the walk then pins whatever went in.

The rules themselves: `trace_layers` (what computes) and `trace_moves` (what copies, pools, sums).
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import map_aggregate
from torch.nn.utils.prune import BasePruningMethod

from rebasin_utils.trace_values import Ledger, Value


class Unknown(Exception):
    """There is no rule for this call; the message is the reason that users read."""


@dataclass(frozen=True)
class Shape:
    """Stands for a tensor among the concrete results of a run."""

    sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Call:
    """The surroundings of one operation.

    place: where it stands, for people. out: its concrete result, tensors replaced by `Shape`.
    parameter: the Value of a module's tensor attribute, or None where it has none.
    """

    ledger: Ledger
    place: str
    out: Any
    parameter: Callable[[nn.Module, str], Value | None]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a result that is one tensor."""
        if not isinstance(self.out, Shape):
            raise Unknown(f"{self.place} gives more than one tensor")
        return self.out.sizes


@dataclass(frozen=True)
class Rule:
    """apply(call, *args, **kwargs); `computes` tells new activations from copies and pools."""

    apply: Callable[..., Any]
    computes: bool


FUNCTIONS: dict[Callable, Rule] = {}
METHODS: dict[str, Rule] = {}
MODULES: dict[type[nn.Module], Rule] = {}
FOREIGN: dict[tuple[str, str], Rule] = {}  # by module and name, of packages not imported here


def functions(names: str, computes: bool = False) -> Callable:
    """Register a rule for the functions of torch and tensor methods with these names."""

    def register(rule: Callable) -> Callable:
        for name in names.split():
            METHODS[name] = Rule(rule, computes)
            for home in (torch, F, torch.special, operator):
                if callable(getattr(home, name, None)):
                    FUNCTIONS[getattr(home, name)] = Rule(rule, computes)
        return rule

    return register


def modules(names: str, computes: bool = False) -> Callable:
    """Register a rule for classes of torch.nn; it gets the module before the other arguments."""

    def register(rule: Callable) -> Callable:
        MODULES.update({getattr(nn, n): Rule(rule, computes) for n in names.split()})
        return rule

    return register


def values_in(*things: Any) -> list[Value]:
    """Every Value among arguments, however they are nested."""
    found: list[Value] = []
    map_aggregate(things, lambda x: found.append(x) if isinstance(x, Value) else None)
    return found


def along(value: Value, dim: int, ndim: int, source: int = 0) -> Value:
    """The axis `source` of `value` laid along dimension `dim` of `ndim`, all others of size 1."""
    shape = [1] * ndim
    shape[dim] = value.shape[source]
    factor = value.factor_along(source)
    factors = () if factor is None else (factor.reshape(shape),)
    return Value(tuple(shape), factors, value.sampled, value.why)


def rule_for(node: fx.Node, module: nn.Module | None) -> Rule | None:
    """The rule for a node of the graph; None where there is none."""
    if module is not None:
        return MODULES.get(type(module)) if is_pristine(module) else None
    if node.op == "call_method":
        return METHODS.get(node.target)
    home, name = (getattr(node.target, a, "") for a in ("__module__", "__name__"))
    return FUNCTIONS.get(node.target) or FOREIGN.get((home, name))


def is_pristine(module: nn.Module) -> bool:
    """Whether a module does what its class says: no hooks but pruning's, its class's forward."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    known = all(isinstance(hook, BasePruningMethod) for hook in hooks)
    return known and "forward" not in vars(module)
