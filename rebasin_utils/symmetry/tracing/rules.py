"""What a rule is: what one operation does to the atoms of its operands.

A rule gets a `Call` and the operation's own arguments, tensors replaced by `Value`s, and returns
the `Value` of the result. Rules are found by the very object that is called (a torch function, a
tensor method, a module class), never by a look-alike name. What has no rule, or is called in a way
that its rule does not foresee, raises `Unknown`; the walk then pins whatever went in.

The rules themselves: `layers` (what computes) and `moves` (what copies, pools, sums); `table` joins
them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.node import map_aggregate
from torch.nn.utils.prune import BasePruningMethod

from rebasin_utils.symmetry.tracing.values import Ledger, Value

_METADATA = """
size shape dim ndim ndimension numel nelement stride storage_offset is_contiguous dtype device
layout itemsize element_size nbytes type get_device requires_grad is_leaf grad grad_fn names
result_type is_floating_point is_complex is_signed is_inference is_conj is_neg is_cuda is_cpu
is_meta is_mps is_xla is_sparse is_quantized is_nested is_mkldnn is_same_size is_set_to is_pinned
is_shared _version __len__ __hash__ __repr__ __str__ __format__
"""

#: What can be asked of a tensor that no permutation of units changes.
METADATA = frozenset(_METADATA.split())


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


@dataclass(frozen=True, eq=False)
class Rules:
    """The rules that one module states, by the very object that is called.

    foreign: by module and name, for packages that are not imported here.
    """

    by_function: dict[Callable, Rule] = field(default_factory=dict)
    by_method: dict[str, Rule] = field(default_factory=dict)
    by_module: dict[type[nn.Module], Rule] = field(default_factory=dict)
    foreign: dict[tuple[str, str], Rule] = field(default_factory=dict)

    def functions(self, names: str, computes: bool = False) -> Callable:
        """Decorator: the rule of the torch functions and tensor methods with these names."""

        def state(apply: Callable) -> Callable:
            for name in names.split():
                self.by_method[name] = Rule(apply, computes)
                for home in (torch, F, torch.special, operator):
                    if callable(getattr(home, name, None)):
                        self.by_function[getattr(home, name)] = Rule(apply, computes)
            return apply

        return state

    def modules(self, names: str, computes: bool = False) -> Callable:
        """Decorator: the rule of classes of torch.nn; it gets the module before its arguments."""

        def state(apply: Callable) -> Callable:
            self.by_module.update({getattr(nn, n): Rule(apply, computes) for n in names.split()})
            return apply

        return state

    def __or__(self, other: Rules) -> Rules:
        """Both, and the other's where both have a rule for one object."""
        return Rules(
            self.by_function | other.by_function,
            self.by_method | other.by_method,
            self.by_module | other.by_module,
            self.foreign | other.foreign,
        )


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


def is_pristine(module: nn.Module) -> bool:
    """Whether a module does what its class says: no hooks but pruning's, its class's forward."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    known = all(isinstance(hook, BasePruningMethod) for hook in hooks)
    return known and "forward" not in vars(module)
