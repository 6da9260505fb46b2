"""What a batch of a network's inputs may be, wherever batches are gone through.

* a tensor: the forward's one input, [batch, …];
* a tuple or list that begins with the forward's positional arguments; what follows them is passed
  over, so that a `DataLoader` of (images, labels) will do;
* a mapping from names to values, such as {"pixel_values": …}: the forward's keyword arguments. What
  it has no argument for is passed over. A forward with one argument of another name gets it whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx.node import map_aggregate

from rebasin_utils.errors import InputError

Batch = Tensor | Sequence[Any] | Mapping[str, Any]


def arguments(batch: Batch, names: Sequence[str]) -> tuple[Any, ...]:
    """The values of a forward's arguments `names`, in that order.

    Raises:
        InputError: when the batch is none of the above, or lacks an argument.
    """
    if isinstance(batch, Mapping):
        lacking = [name for name in names if name not in batch]
        if not lacking:
            return tuple(batch[name] for name in names)
        if len(names) == 1:
            return (batch,)
        raise InputError(f"a batch has no {lacking[0]!r}, the forward takes {_listed(names)}")
    if isinstance(batch, Tensor):
        batch = (batch,)
    if not isinstance(batch, tuple | list):
        raise InputError(
            f"a batch is of type {type(batch).__name__}: give a tensor, a tuple or list that "
            "begins with the forward's inputs, or a dict of them by name"
        )
    if len(batch) < len(names):
        raise InputError(f"a batch has {len(batch)} entries, the forward takes {_listed(names)}")
    return tuple(batch[: len(names)])


def run(net: nn.Module, batch: Batch) -> Any:
    """What a network computes from a batch, on the device that the batch is on.

    A tuple or list begins with the arguments that `needed_arguments` names.
    """
    inputs = arguments(batch, needed_arguments(net))
    net.to(tensors(inputs)[0].device)
    if isinstance(batch, Mapping) and (known := _named(net).keys() & batch.keys()):
        return net(**{name: batch[name] for name in known})
    return net(*inputs)


def needed_arguments(net: nn.Module) -> tuple[str, ...]:
    """The arguments of a forward that have no default; its first where all have one."""
    named = _named(net)
    return tuple(n for n, p in named.items() if p.default is p.empty) or tuple(named)[:1]


def own_names(net: nn.Module, inputs: Sequence[str]) -> tuple[str, ...]:
    """What a net calls its first arguments, which a graph of it calls `inputs`."""
    named = tuple(_named(net))
    known = set(inputs) <= set(named) or len(named) < len(inputs)
    return tuple(inputs) if known else named[: len(inputs)]


def tensors(inputs: Any) -> list[Tensor]:
    """The tensors in what a forward takes, however they are nested."""
    found: list[Tensor] = []
    map_aggregate(inputs, lambda x: found.append(x) if isinstance(x, Tensor) else None)
    return found


def head(inputs: Any, n: int) -> Any:
    """The first n samples of a forward's inputs; all of them where their lengths differ."""
    lengths = {len(x) if x.ndim else 0 for x in tensors(inputs)}
    if len(lengths) != 1:
        return inputs
    return map_aggregate(inputs, lambda x: x[:n] if isinstance(x, Tensor) else x)


def _named(net: nn.Module) -> dict[str, inspect.Parameter]:
    """The arguments of a forward that can be given by name."""
    parameters = inspect.signature(net.forward).parameters
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in parameters.items() if p.kind in kinds}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
