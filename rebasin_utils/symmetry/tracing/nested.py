"""Tensors in what a forward gives, however they are nested."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Every tensor in an output, in order: of tuples, lists, mappings and dataclasses."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from tensors_in(value)
    elif is_dataclass(output) and not isinstance(output, type):
        for field in fields(output):
            yield from tensors_in(getattr(output, field.name))


def is_real(x: Any) -> bool:
    """Whether x is a tensor whose entries rounding can change: floating-point, or complex."""
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def real_tensors(output: Any) -> list[Tensor]:
    """The tensors of an output that hold real or complex numbers."""
    return [t for t in tensors_in(output) if is_real(t)]
