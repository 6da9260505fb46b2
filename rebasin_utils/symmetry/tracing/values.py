"""The algebra of the tracer: values whose positions are labelled with atoms.

Every position on every axis of every parameter, and of every activation, is an *atom*. An operation
*ties* atoms that speak of the same unit, row by row: a linear layer ties position j of its input
with column j of its weight. After the walk

* a unit is a connected component of ties,
* the *slots* of a unit on an axis are its positions there in ascending order,
* two units may trade places if and only if they have the same rows in every tie: the same axes, the
  same slots, the same colours, in the same order.

Why this is a proof: let σ trade such units, and let it act on every axis, of weights and of
activations, by (unit, slot) -> (σ(unit), slot). In each tie the rows of a unit go to the rows of
σ(unit) in order, and since the rows agree, every atom in them goes where σ sends it. So each
operation sees all its operands permuted alike and gives its result permuted alike, and by induction
so does the network; outputs are pinned, hence unchanged.

A dimension along which no factor of a value varies holds *fixed* positions (samples, pixels,
tokens, input features): nothing may move there, and what meets it is pinned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ids = np.ndarray  # int64 atom ids, broadcastable to the shape of the value that they label


@dataclass(frozen=True, eq=False)
class Value:
    """What the tracer knows of one tensor in the graph.

    factors: each an array of atoms with as many dimensions as the value and size 1 along every
        dimension along which it does not vary; no two factors vary along the same dimension.
    sampled: whether it depends on the model's input (an activation) or on weights alone.
    why: for a value without factors, why its positions are fixed, where that is known.
    """

    shape: tuple[int, ...]
    factors: tuple[Ids, ...] = ()
    sampled: bool = False
    why: str = ""

    def factor_along(self, dim: int) -> Ids | None:
        """The factor that varies along `dim`, if there is one."""
        return next((f for f in self.factors if f.shape[dim] > 1), None)

    def is_fixed(self, dim: int) -> bool:
        """Whether `dim` has several positions and none of them may move."""
        return self.shape[dim] > 1 and self.factor_along(dim) is None


@dataclass
class Ledger:
    """All atoms, ties and pins of one walk."""

    lengths: list[int] = field(default_factory=list)  # of every axis, in order of creation
    size: int = 0
    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    pins: list[tuple[np.ndarray, str]] = field(default_factory=list)

    def axis(self, length: int) -> Ids:
        """The atoms of a new axis."""
        start = self.size
        self.lengths.append(length)
        self.size += length
        return np.arange(start, self.size)

    def tie(self, columns: Sequence[Ids], colour: np.ndarray | int = 0) -> None:
        """Every row speaks of one unit; only rows of the same `colour` may stand for each other."""
        rows = np.stack([c.reshape(-1) for c in columns], axis=1)
        self.ties.append((rows, np.broadcast_to(np.asarray(colour).reshape(-1), len(rows))))

    def pin(self, atoms: Ids, reason: str) -> None:
        """These atoms, and every atom tied to them, stay where they are."""
        self.pins.append((atoms.reshape(-1), reason))

    def successor(self, atoms: Ids, *others: Ids, colour: np.ndarray | int = 0) -> Ids:
        """A new axis whose positions are tied, one by one, to `atoms` and to `others`."""
        new = self.axis(atoms.size).reshape(atoms.shape)
        self.tie([atoms, *others, new], colour)
        return new


@dataclass(frozen=True, eq=False)
class Units:
    """The solved ledger, one entry per atom.

    unit: the component an atom belongs to. kind: two units may trade places if and only if their
    kinds are equal and not -1, the kind of all that is pinned. slot: the atom's rank within its
    unit on its axis. reason: why it is pinned, or "" where no pin touches its unit. tied: whether
    any operation touched it at all.
    """

    unit: np.ndarray
    kind: np.ndarray
    slot: np.ndarray
    reason: np.ndarray
    tied: np.ndarray


def solve(ledger: Ledger) -> Units:
    """Components of the ties, and which of them are alike."""
    if not ledger.size:
        none = np.zeros(0, dtype=np.int64)
        return Units(none, none, none, none.astype(object), none.astype(bool))
    tied = np.zeros(ledger.size, dtype=bool)
    heads, tails = [], []
    for rows, _ in ledger.ties:
        tied[rows] = True
        for column in range(1, rows.shape[1]):
            heads.append(rows[:, 0])
            tails.append(rows[:, column])
    heads, tails = (np.concatenate(x) if x else np.zeros(0, int) for x in (heads, tails))
    graph = coo_array((np.ones(len(heads), bool), (heads, tails)), (ledger.size, ledger.size))
    count, unit = connected_components(graph, directed=False)

    axis = np.repeat(np.arange(len(ledger.lengths)), ledger.lengths)
    slot = _rank_in_runs(unit.astype(np.int64) * (len(ledger.lengths) + 1) + axis)
    kind = np.zeros(count, dtype=np.int64)
    for rows, colour in ledger.ties:
        _refine(kind, unit[rows[:, 0]], np.column_stack([axis[rows], slot[rows], colour]))

    reasons = np.full(count, "", dtype=object)
    for atoms, reason in reversed(ledger.pins):  # the first pin in graph order has the last word
        reasons[unit[atoms]] = reason
        kind[unit[atoms]] = -1
        tied[atoms] = True
    return Units(unit, kind[unit], slot, reasons[unit], tied)


def _rank_in_runs(keys: np.ndarray) -> np.ndarray:
    """For every element its rank among the equal ones, in order of position."""
    order = np.argsort(keys, kind="stable")
    place = np.arange(len(keys))
    first = np.r_[True, np.diff(keys[order]) != 0] if len(keys) else np.zeros(0, bool)
    rank = np.empty(len(keys), dtype=np.int64)
    rank[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    return rank


def _refine(kind: np.ndarray, unit: np.ndarray, rows: np.ndarray) -> None:
    """Split `kind` [units] so that units with unequal sequences of `rows` are of unequal kind.

    unit: the unit of every row. Works exactly, on the rows themselves and not on hashes of them.
    """
    order = np.argsort(unit, kind="stable")
    units, first, counts = np.unique(unit[order], return_index=True, return_counts=True)
    fresh = kind.max() + 1
    for count in np.unique(counts):
        chosen = counts == count
        take = order[first[chosen][:, None] + np.arange(count)]
        table = np.column_stack([kind[units[chosen]], rows[take].reshape(chosen.sum(), -1)])
        table = np.ascontiguousarray(table[:, (table != table[0]).any(axis=0)])
        _, label = np.unique(table, axis=0, return_inverse=True) if table.size else (0, 0)
        kind[units[chosen]] = fresh + np.reshape(label, -1)
        fresh = kind.max() + 1


def collapse(ledger: Ledger, factor: Ids, dims: Iterable[int]) -> Ids:
    """The same units seen along the other dimensions only.

    Positions along `dims` become parts of one unit. They keep their order, because rows in a tie
    stand for each other in order.
    """
    shape = tuple(1 if d in dims else n for d, n in enumerate(factor.shape))
    new = ledger.axis(int(np.prod(shape))).reshape(shape)
    ledger.tie([factor, np.broadcast_to(new, factor.shape)])
    return new


def fix(ledger: Ledger, value: Value, dims: Iterable[int], reason: str) -> Value:
    """The same value with fixed positions along `dims`."""
    dims, factors = set(dims), []
    for f in value.factors:
        spread = _spread(f)
        if spread <= dims:
            ledger.pin(f, reason)
        else:
            factors.append(collapse(ledger, f, spread & dims) if spread & dims else f)
    return replace(value, factors=tuple(factors), why=value.why or reason)


def pin_all(ledger: Ledger, value: Value, reason: str) -> None:
    """Nothing in this value may move."""
    for f in value.factors:
        ledger.pin(f, reason)


def elementwise(ledger: Ledger, values: Sequence[Value], place: str) -> Value:
    """Any function applied position by position, with broadcasting of dimensions of size 1."""
    shape = np.broadcast_shapes(*(v.shape for v in values))
    values = [_pad_left(v, len(shape)) for v in values]
    for d in range(len(shape)):
        still = next((v for v in values if v.is_fixed(d)), None)
        if still is not None:
            reason = still.why or f"meets positions that cannot move, in {place}"
            values = [fix(ledger, v, {d}, reason) for v in values]
    factors, columns = [], [f for v in values for f in v.factors]
    while columns:  # factors that share a dimension, over any chain of others, form one new factor
        joint, spread = [columns.pop(0)], set()
        while spread != (spread := set().union(*map(_spread, joint))):
            joint += [f for f in columns if _spread(f) & spread]
            columns = [f for f in columns if not _spread(f) & spread]
        ids = [np.broadcast_to(f, np.broadcast_shapes(*(g.shape for g in joint))) for f in joint]
        factors.append(ledger.successor(*ids))
    return _derived(shape, factors, values)


def carry(ledger: Ledger, value: Value, shape: Sequence[int]) -> Value:
    """A result whose fixed dimensions may have other sizes (pooling, resizing)."""
    factors = [ledger.successor(f) for f in value.factors]
    return _derived(shape, factors, [value])


def reduce(ledger: Ledger, value: Value, dims: Iterable[int], keepdim: bool = False) -> Value:
    """A symmetric function over `dims` (sum, mean, maximum, norm)."""
    dims = {d % len(value.shape) for d in dims}
    factors = []
    for f in value.factors:
        inside = _spread(f) & dims
        if inside == _spread(f):
            ledger.tie([f])  # all its rows take part, in no order: it leaves no trace
        else:
            kept = collapse(ledger, f, inside) if inside else ledger.successor(f)
            factors.append(kept if keepdim else kept.squeeze(tuple(dims)))
    shape = [1 if d in dims else n for d, n in enumerate(value.shape) if keepdim or d not in dims]
    return _derived(shape, factors, [value])


def normalise(ledger: Ledger, value: Value, dims: Iterable[int]) -> Value:
    """A function that divides `dims` by a symmetric function of them (softmax, layer norm)."""
    dims = {d % len(value.shape) for d in dims}
    factors = []
    for f in value.factors:
        inside = _spread(f) & dims
        partial = inside and inside != _spread(f)
        factors.append(collapse(ledger, f, inside) if partial else ledger.successor(f))
    return _derived(value.shape, factors, [value])


def contract(
    ledger: Ledger, a: Value, a_dim: int, b: Value, b_dim: int, place: str
) -> tuple[Value, Value]:
    """Sum over the products along a's `a_dim` and b's `b_dim`; both come back with size 1 there."""
    ends = []
    for value, dim in ((a, a_dim), (b, b_dim)):
        dim %= len(value.shape)
        f = value.factor_along(dim)
        if f is not None and len(_spread(f)) > 1:
            value = fix(ledger, value, {dim}, "")
            f = None
        ends.append((value, dim, f))
    (a, a_dim, fa), (b, b_dim, fb) = ends
    if fa is not None and fb is not None:
        ledger.tie([fa, fb])
    elif fa is not None or fb is not None:
        other = b if fb is None else a
        reason = other.why or f"meets positions that cannot move, in {place}"
        ledger.pin(fb if fa is None else fa, reason)
    return _without(a, a_dim), _without(b, b_dim)


def concat(ledger: Ledger, values: Sequence[Value], dim: int, place: str) -> Value:
    """Values one after another along `dim`."""
    dim %= len(values[0].shape)
    pieces, rest = [], []
    whole = _stand_alike([v.factor_along(dim) for v in values], dim)
    for v in values:
        f = v.factor_along(dim)
        if f is not None and len(_spread(f)) > 1 and not whole:
            v = fix(ledger, v, _spread(f) - {dim}, "")
        pieces.append(v.factor_along(dim))
        rest.append(_without(v, dim))
    joined = elementwise(ledger, rest, place)
    length = sum(v.shape[dim] for v in values)
    factors = list(joined.factors)
    if any(f is not None for f in pieces):
        rows = []
        for v, f in zip(values, pieces, strict=True):
            if f is None:
                f = ledger.axis(v.shape[dim])
                ledger.pin(f, v.why or f"stands beside others in {place}")
                f = f.reshape([-1 if d == dim else 1 for d in range(len(v.shape))])
            rows.append(f)
        factors.append(ledger.successor(np.concatenate(rows, axis=dim)))
    shape = [length if d == dim else n for d, n in enumerate(joined.shape)]
    return _derived(shape, factors, values)


def _stand_alike(factors: Sequence[Ids | None], dim: int) -> bool:
    """Whether all have the same positions along every dimension but `dim`."""
    shapes = [None if f is None else f.shape[:dim] + f.shape[dim + 1 :] for f in factors]
    return None not in shapes and len(set(shapes)) == 1


def reshape(ledger: Ledger, value: Value, shape: Sequence[int], place: str) -> Value:
    """Row-major reshape; what a factor's dimensions are merged with becomes part of its units."""
    for old, _ in _dim_groups(value.shape, shape):
        crowd = [f for f in value.factors if _spread(f) & set(old)]
        if len(crowd) > 1 and len(old) > 1:
            value = fix(ledger, value, old, f"two kinds of units merge in {place}")
    factors = []
    for f in value.factors:
        full, target = list(f.shape), [1] * len(shape)
        for old, new in _dim_groups(value.shape, shape):
            if _spread(f) & set(old):
                for d in old:
                    full[d] = value.shape[d]
                for d in new:
                    target[d] = shape[d]
        factors.append(ledger.successor(np.broadcast_to(f, full).reshape(target)))
    return _derived(shape, factors, [value])


def relabel(ledger: Ledger, value: Value, shape: Sequence[int], ids: Sequence[Ids]) -> Value:
    """A result that copies positions of `value`: `ids` are its factors after the same indexing."""
    factors = []
    for f in ids:
        if f.size == 1:
            ledger.pin(f, "picked out by its index")
        else:
            factors.append(ledger.successor(f))
    return _derived(shape, factors, [value])


def _derived(shape: Sequence[int], factors: Sequence[Ids], parents: Sequence[Value]) -> Value:
    why = "" if factors else next((v.why for v in parents if v.why), "")
    kept = tuple(f for f in factors if f.size > 1)
    return Value(tuple(int(n) for n in shape), kept, any(v.sampled for v in parents), why)


def _spread(factor: Ids) -> set[int]:
    return {d for d, n in enumerate(factor.shape) if n > 1}


def _pad_left(value: Value, ndim: int) -> Value:
    lead = (1,) * (ndim - len(value.shape))
    factors = tuple(f.reshape(lead + f.shape) for f in value.factors)
    return replace(value, shape=lead + value.shape, factors=factors)


def _without(value: Value, dim: int) -> Value:
    """The value with size 1 along `dim`, and without the factor that varied there."""
    shape = tuple(1 if d == dim else n for d, n in enumerate(value.shape))
    return replace(value, shape=shape, factors=tuple(f for f in value.factors if f.shape[dim] == 1))


def _dim_groups(
    old: Sequence[int], new: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The finest cut of a reshape into runs of old dimensions that become runs of new ones."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        a, b = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        groups.append((tuple(range(a, i)), tuple(range(b, j))))
    return groups
