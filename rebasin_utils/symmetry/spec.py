"""Which axes of a model's tensors move together: traced from its graph, proved by running it.

spec = PermutationSpec.trace(model, example)
spec.prove(model, example)
print(spec.report())
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import Tensor, nn

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.permutation import Spec
from rebasin_utils.symmetry.tracing.check import check
from rebasin_utils.symmetry.tracing.groups import UNUSED
from rebasin_utils.symmetry.tracing.trace import trace

#: A batch to run a model on: the forward's argument, its positional ones, or all by name.
Inputs = Tensor | Sequence[Any] | Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Report:
    """What a spec says, as two tables and one number.

    groups: name, units, slots (positions of one unit at the tap), tap, tensors (axes that move).
    pinned: tensor, axis, count (of positions), reason.
    free_share: share of all positions on channel axes (axes longer than 1, without the pixels of
        convolution kernels) that belong to a group.
    unused: tensors with channel axes that the forward in eval mode never touches.
    """

    groups: pd.DataFrame
    pinned: pd.DataFrame
    free_share: float
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        with pd.option_context("display.max_colwidth", 60):
            return (
                f"{len(self.groups)} groups, {self.free_share:.1%} of channel positions free\n"
                f"{self.groups.to_string(index=False)}\n\npinned to the identity:\n"
                f"{self.pinned.to_string(index=False) if len(self.pinned) else 'nothing'}"
                f"{self._caution()}"
            )

    def _repr_html_(self) -> str:
        return (
            f"<p>{len(self.groups)} groups, {self.free_share:.1%} of channel positions free</p>"
            f"{self.groups.to_html(index=False)}<p>Pinned to the identity:</p>"
            f"{self.pinned.to_html(index=False)}<p>{self._caution()}</p>"
        )

    def _caution(self) -> str:
        """What a permuted state is not good for, where there is such a thing."""
        if not self.unused:
            return ""
        return (
            f"\n\nnot used in eval mode, so never moved: {', '.join(self.unused)}; if training "
            "uses them, a permuted state trains as another network"
        )


@dataclass(frozen=True, eq=False)
class PermutationSpec(Spec):
    """The `Spec` of one architecture, with the ways to get it and to trust it."""

    @classmethod
    def trace(cls, model: nn.Module, example: Inputs, stream_tap: str = "last") -> PermutationSpec:
        """Derive the spec from the model's own graph, by `tracing.trace.trace`.

        Warns, in one sentence, of tensors that the forward in eval mode never touches (heads that
        only training uses): they are never moved.

        Args:
            model: any module whose forward torch.fx can follow, or that calls torch on tensors
                without deciding anything by the numbers in its activations. It is not run, only
                copies of it are.
            example: an input batch: a tensor, a tuple or list of the forward's positional
                arguments, or a mapping of its keyword arguments.
            stream_tap: "last" taps the last residual stream at its last block; "released_code" taps
                it one block earlier, as the code behind the paper's tables does.

        Raises:
            InputError: when the model does not run on the example or cannot be traced; the sentence
                names the place. Also for "released_code" when the last residual stream has one
                block only.
        """
        spec = cls(**vars(trace(model, example, stream_tap)))
        unused = spec.report().unused
        if unused and spec.groups:
            some = ", ".join(unused[:2]) + (f" and {len(unused) - 2} more" if unused[2:] else "")
            warnings.warn(
                f"{type(model).__name__} does not use {some} in eval mode, so these never move: "
                "if training uses them, a permuted state trains as another network",
                stacklevel=2,
            )
        return spec

    def check(self, model: nn.Module, example: Inputs, seed: int = 0) -> float:
        """Relative change of the model's outputs when every group is permuted at random.

        See `tracing.check`. A right spec gives rounding error (about 1e-14), a wrong one 1e-3 to 1.

        Raises:
            InputError: when there is nothing to move or nothing to compare.
        """
        return check(model, self, example, seed)

    def prove(
        self,
        model: nn.Module,
        example: Inputs,
        seed: int = 0,
        tolerance: float = 1e-5,
    ) -> float:
        """`check`, and an error instead of a number when the function is not kept.

        Raises:
            InputError: when the relative change exceeds `tolerance`, or `check` cannot tell.
        """
        error = self.check(model, example, seed)
        if not error <= tolerance:
            raise InputError(
                f"this spec does not keep the function of {type(model).__name__}: a random "
                f"permutation changes its output by {error:.1e} (relative), more than {tolerance:g}"
            )
        return error

    def report(self) -> Report:
        """Groups, sizes, taps; what is pinned and why; the share of channels that are free."""
        groups = [
            {
                "group": g.name,
                "units": g.size,
                "slots": g.tap.index.shape[1],
                "tap": g.tap.place,
                "tensors": len(g.members),
            }
            for g in self.groups.values()
        ]
        pinned = [vars(p) for p in self.pinned]
        free = sum(m.index.numel() for g in self.groups.values() for m in g.members)
        total = free + sum(p.count for p in self.pinned)
        return Report(
            pd.DataFrame(groups, columns=["group", "units", "slots", "tap", "tensors"]),
            pd.DataFrame(pinned, columns=["tensor", "axis", "count", "reason"]),
            free / total if total else 0.0,
            self._unused(),
        )

    def _unused(self) -> tuple[str, ...]:
        """Tensors of which no position takes part in the forward."""
        idle = Counter()
        for p in self.pinned:
            idle[p.tensor] += p.count if p.reason == UNUSED else 0
        return tuple(
            t for t, n in idle.items() if n and n == sum(k for k in self.shapes[t] if k > 1)
        )
