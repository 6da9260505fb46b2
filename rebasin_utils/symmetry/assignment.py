"""The one-to-one assignment of largest total similarity, with ties settled by a rule.

The assignment problem is solved exactly (Jonker & Volgenant 1987, in scipy). Where units cannot be
told apart, because they are dead or copies of one another, several assignments are equally good,
and which of them a solver returns hangs on rounding noise. Here it does not: a further similarity
may tell apart what the first could not (`refined`), and what stays open goes by position.

Which pairs may be exchanged without loss follows from linear programming: an optimal assignment
uses only pairs that are tight in the dual problem, alike rows and columns have equal prices there,
and every assignment of tight pairs is optimal. So a row may take any column of a kind that some row
of its own kind has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import linear_sum_assignment


@dataclass(frozen=True, eq=False)
class Assignment:
    """An assignment, and what of it the similarities left open.

    columns: int64 [n], for each row its column.
    row_kinds, column_kinds: int64 [n], for each row (column) the first one that equals it.
    """

    columns: np.ndarray
    row_kinds: np.ndarray
    column_kinds: np.ndarray

    @cached_property
    def open_rows(self) -> np.ndarray:
        """The rows that could as well have another column, ascending."""
        rows, columns = (np.bincount(kinds) for kinds in (self.row_kinds, self.column_kinds))
        mine, theirs = rows[self.row_kinds], columns[self.column_kinds[self.columns]]
        return np.flatnonzero((mine > 1) | (theirs > 1))

    @cached_property
    def open_columns(self) -> np.ndarray:
        """The columns that they have, ascending."""
        return np.sort(self.columns[self.open_rows])


def best_assignment(similarity: np.ndarray, precision: float) -> np.ndarray:
    """The permutation p of largest sum of similarity[i, p[i]]: `assigned`'s columns."""
    return assigned(similarity, precision).columns


def assigned(similarity: np.ndarray, precision: float) -> Assignment:
    """The assignment of largest total similarity.

    Rows that agree up to `precision` are interchangeable, and so are columns. What the solver
    settles is how many columns of one kind go to rows of another; within that, kinds are in the
    order of their first members, and lower columns go to lower rows.

    Args:
        similarity: finite float64 [n, n].
        precision: relative to the largest entry: differences below it are rounding noise.

    Returns:
        An `Assignment`. Its total is the largest, up to n times the noise.
    """
    n = len(similarity)
    nothing_known = Assignment(np.arange(n), np.zeros(n, np.int64), np.zeros(n, np.int64))
    return refined(nothing_known, similarity, precision) if n else nothing_known


def refined(before: Assignment, similarity: np.ndarray, precision: float) -> Assignment:
    """Of the assignments that `before` leaves equally good, the one of largest total similarity.

    Args:
        similarity: finite float64 [open rows, open columns].
        precision: as for `assigned`.
    """
    rows, columns = before.open_rows, before.open_columns
    row_kinds, column_kinds = before.row_kinds[rows], before.column_kinds[columns]
    if not len(rows):
        return before
    tight = np.zeros(2 * [len(before.columns)], dtype=bool)  # [kinds of rows, kinds of columns]
    tight[row_kinds, before.column_kinds[before.columns[rows]]] = True
    allowed = tight[row_kinds][:, column_kinds]
    p = linear_sum_assignment(np.where(allowed, similarity, -np.inf), maximize=True)[1]
    compared = np.where(allowed, similarity, 0.0)
    noise = precision * np.abs(compared).max(initial=0.0)
    row_kinds = _both(row_kinds, _kinds(compared, noise))
    column_kinds = _both(column_kinds, _kinds(compared.T, noise))
    wanted = np.empty_like(p)  # the kind of column that each row gets
    wanted[_by(row_kinds)] = column_kinds[p][np.lexsort((column_kinds[p], row_kinds))]
    settled = np.empty_like(p)
    settled[_by(wanted)] = _by(column_kinds)
    after = [x.copy() for x in (before.columns, before.row_kinds, before.column_kinds)]
    after[0][rows] = columns[settled]
    after[1][rows] = rows[row_kinds]
    after[2][columns] = columns[column_kinds]
    return Assignment(*after)


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


def _both(kinds: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each member the first one that is of its kind in both ways."""
    pairs = np.stack([kinds, others])
    _, first, kind = np.unique(pairs, axis=1, return_index=True, return_inverse=True)
    return first[kind.reshape(-1)]


def _by(kinds: np.ndarray) -> np.ndarray:
    """Positions sorted by kind, then by position."""
    return np.argsort(kinds, kind="stable")
