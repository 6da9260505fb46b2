"""The one-to-one assignment of largest total similarity, with ties settled by a rule.

The assignment problem is solved exactly (Jonker & Volgenant 1987, in scipy). Where units cannot be
told apart, because they are dead or copies of one another, several assignments are equally good,
and which of them a solver returns hangs on rounding noise. Here it does not: see `best_assignment`.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def best_assignment(similarity: np.ndarray, precision: float) -> np.ndarray:
    """The permutation p of largest sum of similarity[i, p[i]].

    Rows that agree up to `precision` are interchangeable, and so are columns. What the solver
    settles is how many columns of one kind go to rows of another; within that, kinds are in the
    order of their first members, and lower columns go to lower rows.

    Args:
        similarity: finite float64 [n, n].
        precision: relative to the largest entry: differences below it are rounding noise.

    Returns:
        int64 [n], for each row its column. Its total is the largest, up to n times the noise.
    """
    p = linear_sum_assignment(similarity, maximize=True)[1]
    noise = precision * np.abs(similarity).max(initial=0.0)
    rows, columns = _kinds(similarity, noise), _kinds(similarity.T, noise)
    wanted = np.empty_like(p)  # the kind of column that each row gets
    wanted[_by(rows)] = columns[p][np.lexsort((columns[p], rows))]
    settled = np.empty_like(p)
    settled[_by(wanted)] = _by(columns)
    return settled


def _kinds(rows: np.ndarray, noise: float) -> np.ndarray:
    """[n, m] -> int64 [n]: for each row the first row that equals it up to `noise`.

    Equal rows are neighbours once the rows are sorted by one random combination of their entries.
    """
    n, m = rows.shape
    combined = rows @ np.random.default_rng(0).standard_normal(m)
    order = np.argsort(combined, kind="stable")
    new = np.ones(n, dtype=bool)
    new[1:] = [
        np.abs(rows[i] - rows[j]).max() > noise for i, j in zip(order[1:], order[:-1], strict=True)
    ]
    run = np.cumsum(new) - 1
    first = np.minimum.reduceat(order, np.flatnonzero(new))
    kinds = np.empty(n, dtype=np.int64)
    kinds[order] = first[run]
    return kinds


def _by(kinds: np.ndarray) -> np.ndarray:
    """Positions sorted by kind, then by position."""
    return np.argsort(kinds, kind="stable")
