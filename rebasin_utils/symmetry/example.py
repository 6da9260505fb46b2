"""The inputs of one run of a model, however they are given: as a value.

A tensor, a tuple or list of the forward's positional arguments, or a mapping of its keyword
arguments, as `PermutationSpec.trace` takes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.fx.node import map_aggregate

from rebasin_utils.errors import InputError


@dataclass(frozen=True, eq=False)
class Example:
    """The forward's arguments in their order.

    values: tensors, and what is the same in every run (None, numbers, strings).
    names: the arguments' names where they are given by name, else ().
    only_batch: the one batch size (length of the first tensor's first dimension) for which what is
        known of the run holds; None where it holds for all.
    """

    values: tuple[Any, ...]
    names: tuple[str, ...] = ()
    only_batch: int | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arguments that are tensors, in their order."""
        return tuple(v for v in self.values if isinstance(v, Tensor))

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Their names, where the arguments are given by name."""
        named = zip(self.names, self.values, strict=False)
        return tuple(name for name, value in named if isinstance(value, Tensor))

    def call(self, forward: Callable[..., Any]) -> Any:
        """The forward's result on these very tensors."""
        if self.names:
            return forward(**dict(zip(self.names, self.values, strict=True)))
        return forward(*self.values)

    def run(self, forward: Callable[..., Any]) -> Any:
        """The forward's result on copies of the tensors, because it may overwrite its inputs."""
        return self.map(Tensor.clone).call(forward)

    def map(self, change: Callable[[Tensor], Tensor]) -> Example:
        """The same arguments with every tensor changed."""
        values = map_aggregate(self.values, lambda x: change(x) if isinstance(x, Tensor) else x)
        return replace(self, values=tuple(values))


def as_example(example: Any) -> Example:
    """Read what a user gives as an example.

    Raises:
        InputError: when it is neither tensor, sequence nor mapping by name, when it holds no
            tensor, or when it is a batch of no samples.
    """
    if isinstance(example, Tensor):
        found = Example((example,))
    elif isinstance(example, Mapping) and all(isinstance(name, str) for name in example):
        found = Example(tuple(example.values()), tuple(example))
    elif isinstance(example, tuple | list):
        found = Example(tuple(example))
    else:
        raise InputError(
            f"example is a {type(example).__name__}: give a tensor, a tuple of the forward's "
            "arguments, or a dict of them by name"
        )
    tensors: list[Tensor] = []
    found.map(lambda t: tensors.append(t) or t)
    if not tensors:
        raise InputError("example holds no tensor: give an input to run the model on")
    for t in tensors:
        if t.ndim and not len(t):
            raise InputError(f"example has shape {tuple(t.shape)}: give one sample or more")
    return found
