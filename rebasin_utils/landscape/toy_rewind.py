"""Many pairs of two-weight nets: how often a mask works, against the step that training starts at.

The pairs are drawn at random over the plane, A and B on different sides of the diagonal, so in
different basins. As in the paper's rewinding (Section 3.3), the sparse runs start from the net as
it was after k steps of its dense training; k = 0 is the init.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from rebasin_utils.errors import InputError
from rebasin_utils.landscape.toy import HIGH, LOW, descend, loss

REWINDS = (0, 5, 10, 20, 30, 50, 75, 100)
#: Runs end at a loss of 0.1 or of 4; below this they have found the solution that the mask leaves.
SOLVED = 0.2
METHODS = ("lth", "permuted", "naive")


def inits(pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inits of A and of B, float64 [pairs, 2] each: uniform over the plane, on different sides."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(2, pairs, 2, generator=generator, dtype=torch.float64)
    a, b = LOW + (HIGH - LOW) * points
    same = (a[:, 0] > a[:, 1]) == (b[:, 0] > b[:, 1])
    return a, torch.where(same[:, None], b.flip(1), b)


def survey(
    pairs: int = 400,
    rewinds: Sequence[int] = REWINDS,
    seed: int = 0,
    lr: float = 0.05,
    steps: int = 200,
) -> pd.DataFrame:
    """One row per pair, rewind step and method: pair, rewind_step, method, loss at the end.

    Raises:
        InputError: when there is no pair, or a rewind step that the dense training does not have.
    """
    if not isinstance(pairs, int) or pairs < 1:
        raise InputError(f"pairs = {pairs!r}: must be a whole number above 0")
    for k in rewinds:
        if not 0 <= k <= steps:
            raise InputError(f"rewinds = {k!r}: must be from 0 to the {steps} steps of training")
    a, b = inits(pairs, seed)
    everything = torch.ones(pairs, 2, dtype=torch.bool)
    a_path, b_path = (descend(init, everything, lr, steps) for init in (a, b))
    mask = _keep_larger(a_path[:, -1])
    moved = torch.where(_swapped(a_path[:, -1], b_path[:, -1])[:, None], mask.flip(1), mask)
    starts = torch.cat([path[:, k] for path in (a_path, b_path, b_path) for k in rewinds])
    masks = torch.cat([kept.repeat(len(rewinds), 1) for kept in (mask, moved, mask)])
    ends = descend(starts, masks, lr, steps)[:, -1]
    index = pd.MultiIndex.from_product(
        [METHODS, rewinds, range(pairs)], names=["method", "rewind_step", "pair"]
    )
    return pd.DataFrame({"loss": loss(ends).numpy()}, index=index).reset_index()


def shares(runs: pd.DataFrame) -> pd.DataFrame:
    """Of a survey: method, rewind_step, pairs, found (share ending below `SOLVED`), loss (mean)."""
    cells = runs.assign(found=runs["loss"] < SOLVED).groupby(["method", "rewind_step"])
    columns = dict(pairs=("pair", "nunique"), found=("found", "mean"), loss=("loss", "mean"))
    return cells.agg(**columns).reset_index()


def as_results(runs: pd.DataFrame) -> pd.DataFrame:
    """A survey as a study's results, for `verdicts`: accuracy is 1 for a solution, else 0."""
    return pd.DataFrame(
        {
            "dataset": "toy",
            "model": "two weights",
            "width": 2,
            "sparsity": 0.5,
            "method": runs["method"],
            "rewind_epoch": runs["rewind_step"],
            "seed": runs["pair"],
            "test_accuracy": (runs["loss"] < SOLVED).astype(float),
            "diverged": False,
        }
    )


def _keep_larger(weights: Tensor) -> Tensor:
    """Magnitude pruning of one of two weights: [pairs, 2] -> bool [pairs, 2]."""
    return weights.abs() >= weights.abs().flip(1)


def _swapped(moving: Tensor, reference: Tensor) -> Tensor:
    """Whether weight matching swaps the two units: [pairs, 2] each -> bool [pairs]."""
    return (moving.flip(1) * reference).sum(1) > (moving * reference).sum(1)
