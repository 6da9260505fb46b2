"""Iterative magnitude pruning with fine-tuning: drawing the ticket.

From the trained net, prune a fifth of the remaining weights of smallest magnitude, globally,
fine-tune what is left, and repeat; weights are never rewound (the paper's IMP, Section 4). The
round that would pass a target is shortened to land on it exactly. All targets share the trunk of
full rounds and a shortened round is a branch, so that the paper's four targets cost 19 fine-tunings
and not 49.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from rebasin_utils import masks
from rebasin_utils.data import Images
from rebasin_utils.errors import InputError
from rebasin_utils.masks import Mask, State
from rebasin_utils.training import Job, Recipe, Trained, train_many

RATE = 0.2  # share of the remaining weights that one full round prunes


@dataclass(frozen=True)
class Round:
    """One pruning round. It starts from the full round `number - 1` and ends at `sparsity`.

    targets: the requested sparsities whose ticket this round draws.
    """

    number: int
    sparsity: float
    targets: tuple[float, ...] = ()

    @property
    def full(self) -> bool:
        """Whether the round prunes its whole fifth, so that others can start from it."""
        return abs(self.sparsity - _full(self.number)) < 1e-9

    @property
    def name(self) -> str:
        """`round3` on the trunk, `round8-S0.80` for a branch."""
        return f"round{self.number}" + ("" if self.full else f"-S{self.sparsity:.4g}")


def schedule(targets: Sequence[float], tolerance: float = 0.0) -> list[Round]:
    """The rounds that draw a ticket at every target, each after the one it starts from.

    Args:
        targets: sparsities in [0, 1); 0 is round 0, the dense net itself.
        tolerance: a target counts as reached by a full round that falls short of it by no more
            than this. 0 hits every target; the released code's 0.005 ends its "95 %" at 94.50 %.

    Raises:
        InputError: when a target is outside [0, 1).
    """
    for target in targets:
        if not 0 <= target < 1:
            raise InputError(f"sparsity = {target}: must be at least 0 and below 1")
    rounds: list[Round] = []
    left, number = sorted(set(targets)), 0
    while left:
        full = _full(number)
        passed = [t for t in left if t < full - 1e-9]
        rounds += [Round(number, t, (t,)) for t in passed]
        left = left[len(passed) :]
        reached = tuple(t for t in left if t <= full + tolerance + 1e-9)
        left = left[len(reached) :]
        if reached or (left and number):
            rounds.append(Round(number, full, reached))
        number += 1
    return rounds


def prune(state: State, mask: Mask, sparsity: float) -> Mask:
    """The mask that is left of `mask` when the smallest weights go until `sparsity` is reached."""
    total = sum(kept.numel() for kept in mask.values())
    return masks.global_magnitude(state, mask, keep=total - round(sparsity * total))


def prune_and_tune(
    model: nn.Module,
    states: Sequence[State],
    before: Sequence[Mask],
    seeds: Sequence[int],
    step: Round,
    recipe: Recipe,
    images: Images,
    **options,
) -> list[tuple[Mask, Trained]]:
    """One round for several nets of one architecture together.

    Args:
        states, before: every net and its mask as the previous full round left them.
        seeds: of every net's trajectory; a round's data order depends on (seed, round).
        recipe: the fine-tuning of one round, with a new optimiser; round 0 has none.
        options: `augment`, `progress` and so on, for `train_many`; `checkpoints`, one per net.

    Returns:
        The mask and the fine-tuned net of each.
    """
    checkpoints = options.pop("checkpoints", None) or [None] * len(states)
    pruned = [prune(s, m, step.sparsity) for s, m in zip(states, before, strict=True)]
    jobs = [
        Job(state, _seed(seed, step.number), mask, checkpoint=path)
        for state, seed, mask, path in zip(states, seeds, pruned, checkpoints, strict=True)
    ]
    recipe = recipe if step.number else replace(recipe, epochs=0)
    return list(zip(pruned, train_many(model, jobs, recipe, images, **options), strict=True))


def _full(number: int) -> float:
    return 1 - (1 - RATE) ** number


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
