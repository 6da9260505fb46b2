"""Sparse training from another init: permutations, masks, and the study of both.

The names that a library user needs are here; importing this package imports none of them, nor
PyTorch, before one is used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from rebasin_utils.moved import PLACES, Moved, told

#: Every public name and the module that it comes from.
_HOMES = {
    "Aligned": "symmetry.align",
    "Matching": "symmetry.matching",
    "Permutation": "symmetry.permutation",
    "PermutationSpec": "symmetry.spec",
    "align": "symmetry.align",
    "barrier": "landscape.interpolation",
    "compose": "symmetry.permutation",
    "identity": "symmetry.permutation",
    "invert": "symmetry.permutation",
    "lerp": "landscape.interpolation",
    "match_activations": "symmetry.matching",
    "match_weights": "symmetry.weight_matching",
    "permute": "symmetry.permutation",
    "random_permutation": "symmetry.permutation",
    "repair": "landscape.repair",
    "reset_batch_norm": "landscape.interpolation",
}

__all__ = list(_HOMES)

sys.meta_path.append(Moved())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        if name in PLACES:
            raise ImportError(told(name))
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
