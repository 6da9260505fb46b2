"""Results of a study that never ran, with effects of known size."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

#: What every method is worth, in points.
SPREAD = {
    "lth": 4.0,
    "permuted": 2.0,
    "naive": 0.0,
    "random_permutation": -1.0,
    "random_mask": -2.0,
}


def made_up(effects: dict[str, float], seeds: int = 4, noise: float = 0.2, **columns):
    """Results in which a method is worth `effects` points more, on top of what a pair is worth.

    The pairs differ by several points; the noise of the runs is small, and its mean over the pairs
    is zero in every cell.
    """
    rng = np.random.default_rng(0)
    rows = []
    for k, sparsity, method in itertools.product((0, 1, 5), (0.8, 0.9), effects):
        noises = noise * rng.standard_normal(seeds)
        for seed, own in enumerate(noises - noises.mean()):
            pair = 80 + 3 * seed + k - 10 * sparsity
            rows.append((method, sparsity, k, seed, (pair + effects[method] + own) / 100))
    names = ["method", "sparsity", "rewind_epoch", "seed", "test_accuracy"]
    table = pd.DataFrame(rows, columns=names).astype({"rewind_epoch": "Int64"})
    return table.assign(
        **{"diverged": False, "epochs": 10, "dataset": "d", "model": "m", "width": 1} | columns
    )
