"""Iterative magnitude pruning: drawing the ticket.

Prune a fifth of the remaining weights of smallest magnitude, globally, train what is left, and
repeat; weights are never rewound. What is trained, and how, makes three procedures of it:

| procedure | begins with | before round 1 | in every round |
|---|---|---|---|
| IMP (Adnan et al. 2025, Section 4) | the trained net | – | fine-tuned at a small rate |
| LRR (Renda et al. 2020) | an init | a dense warm-up | trained on at the warm-up's rate |
| AWS (Oh et al. 2025) | an init | LRR's | LRR's, norm layers interpolated (`norms`) |

LRR, learning-rate rewinding, runs the rate's schedule anew in every round in Renda et al., and
holds the rate constant in the code of Oh et al.: `Recipe.schedule`. The state that a round leaves
is the one trained under its mask.

The round that would pass a target is shortened to land on it exactly. All targets share the trunk
of full rounds and a shortened round is a branch, so that the paper's four targets cost 19
fine-tunings and not 49.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets import masks
from rebasin_utils.nets.data import Split
from rebasin_utils.nets.masks import Mask, State
from rebasin_utils.training.recipes import Recipe
from rebasin_utils.training.train import Job, Trained, train_many

RATE = 0.2  # share of the remaining weights that one full round prunes


@dataclass(frozen=True)
class Round:
    """One pruning round. It starts from the full round `number - 1` and ends at `sparsity`.

    targets: the requested sparsities whose ticket this round draws.
    rate: the share of the remaining weights that a full round prunes.
    """

    number: int
    sparsity: float
    targets: tuple[float, ...] = ()
    rate: float = RATE

    @property
    def full(self) -> bool:
        """Whether the round prunes its whole share, so that others can start from it."""
        return abs(self.sparsity - full_sparsity(self.number, self.rate)) < 1e-9

    @property
    def name(self) -> str:
        """`round3` on the trunk, `round8-S0.80` for a branch."""
        return f"round{self.number}" + ("" if self.full else f"-S{self.sparsity:.4g}")


def full_sparsity(rounds: int, rate: float = RATE) -> float:
    """The sparsity after so many full rounds."""
    return 1 - (1 - rate) ** rounds


def schedule(targets: Sequence[float], tolerance: float = 0.0, rate: float = RATE) -> list[Round]:
    """The rounds that draw a ticket at every target, each after the one it starts from.

    Args:
        targets: sparsities in [0, 1); 0 is round 0, the dense net itself.
        tolerance: a target counts as reached by a full round that falls short of it by no more
            than this. 0 hits every target; the released code's 0.005 ends its "95%" at 94.50%.
        rate: the share of the remaining weights that a full round prunes.

    Raises:
        InputError: when a target is outside [0, 1), or the rate outside (0, 1).
    """
    if not 0 < rate < 1:
        raise InputError(f"rate = {rate}: must be above 0 and below 1")
    for target in targets:
        if not 0 <= target < 1:
            raise InputError(f"sparsity = {target}: must be at least 0 and below 1")
    rounds: list[Round] = []
    left, number = sorted(set(targets)), 0
    while left:
        full = full_sparsity(number, rate)
        passed = [t for t in left if t < full - 1e-9]
        rounds += [Round(number, t, (t,), rate) for t in passed]
        left = left[len(passed) :]
        reached = tuple(t for t in left if t <= full + tolerance + 1e-9)
        left = left[len(reached) :]
        if reached or (left and number):
            rounds.append(Round(number, full, reached, rate))
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
    images: Split,
    *,
    warm_up: Recipe | None = None,
    aws_seeds: Sequence[int] | None = None,
    checkpoints: Sequence[Path] | None = None,
    **options,
) -> list[tuple[Mask, Trained]]:
    """One round for several nets of one architecture together.

    Args:
        states, before: every net and its mask as the previous full round left them.
        seeds: of every net's trajectory; a round's data order depends on (seed, round).
        recipe: the training of one round, with a new optimiser.
        warm_up: that of round 0; None for nets that come trained (IMP), with which it does nothing.
        aws_seeds: of every net's draws, where norm layers are interpolated (AWS); a round's draws
            depend on (seed, round).
        checkpoints: a file for every net, as a `Job` has it.
        options: `augment`, `progress` and so on, for `train_many`.

    Returns:
        The mask of each, and the net that was trained under it.
    """
    pruned = [prune(s, m, step.sparsity) for s, m in zip(states, before, strict=True)]
    jobs = [
        replace(job, checkpoint=path)
        for job, path in zip(
            tuning(states, pruned, seeds, step, aws_seeds),
            checkpoints or [None] * len(states),
            strict=True,
        )
    ]
    done = train_many(model, jobs, recipe_of(step, recipe, warm_up), images, **options)
    return list(zip(pruned, done, strict=True))


def tuning(
    states: Sequence[State],
    pruned: Sequence[Mask],
    seeds: Sequence[int],
    step: Round,
    aws_seeds: Sequence[int] | None = None,
) -> list[Job]:
    """The training of one round, a job a net; the arguments are those of `prune_and_tune`."""
    return [
        Job(
            state,
            _seed(seed, step.number),
            mask,
            aws_seed=None if aws_seed is None else _seed(aws_seed, step.number),
        )
        for state, mask, seed, aws_seed in zip(
            states, pruned, seeds, aws_seeds or [None] * len(states), strict=True
        )
    ]


def recipe_of(step: Round, recipe: Recipe, warm_up: Recipe | None = None) -> Recipe:
    """How a round is trained: round 0 by the warm-up, or not at all."""
    return recipe if step.number else warm_up or replace(recipe, epochs=0)


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
