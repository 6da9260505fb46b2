"""Rules for the operations that copy, rearrange, pool or sum what is there."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from rebasin_utils.symmetry.tracing.rules import (
    Call,
    Rule,
    Rules,
    Shape,
    Unknown,
)
from rebasin_utils.symmetry.tracing.values import (
    Ids,
    Value,
    carry,
    concat,
    elementwise,
    fix,
    reduce,
    relabel,
    reshape,
)

RULES = Rules()

# -------- pooling and sums


def _neighbours(call: Call, x: Value, pixels: int) -> Value:
    """Any function of the last `pixels` dimensions, the same for every channel."""
    last = range(len(x.shape) - pixels, len(x.shape))
    x = fix(call.ledger, x, last, f"{call.place} looks at neighbours")
    return carry(call.ledger, x, call.shape)


for _k in (1, 2, 3):
    _kinds = ("max_pool", "avg_pool", "adaptive_max_pool", "adaptive_avg_pool", "lp_pool")

    @RULES.functions(" ".join(f"{kind}{_k}d" for kind in _kinds))
    def pool(call: Call, x: Value, *_: Any, _k: int = _k, **__: Any) -> Value:
        return _neighbours(call, x, _k)

    _kinds = ("MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "LPPool")
    _kinds += ("ReflectionPad", "ReplicationPad", "CircularPad", "ConstantPad", "ZeroPad")

    @RULES.modules(" ".join(f"{kind}{_k}d" for kind in _kinds))
    def pool_module(call: Call, module: nn.Module, x: Value, _k: int = _k) -> Value:
        return _neighbours(call, x, _k)


@RULES.functions("interpolate")
def interpolate(call: Call, x: Value, *_: Any, **__: Any) -> Value:
    return _neighbours(call, x, len(x.shape) - 2)


@RULES.modules("Upsample UpsamplingNearest2d UpsamplingBilinear2d")
def upsample(call: Call, module: nn.Module, x: Value) -> Value:
    return _neighbours(call, x, len(x.shape) - 2)


@RULES.functions("sum mean nansum nanmean prod all any amax amin logsumexp var std count_nonzero")
def summary(
    call: Call, x: Value, dim: int | Sequence[int] | None = None, *_: Any, **__: Any
) -> Value:
    ndim = len(x.shape)
    if dim is None or isinstance(dim, bool) or dim == () or dim == []:
        dims = range(ndim)
    else:
        dims = [dim] if isinstance(dim, int) else dim
    return reduce(call.ledger, x, dims, keepdim=len(call.shape) == ndim)


@RULES.functions("norm")
def norm(call: Call, x: Value, p: Any = "fro", dim: Any = None, *_: Any, **__: Any) -> Value:
    return summary(call, x, dim)


@RULES.functions("max min")
def extremum(call: Call, x: Value, dim: Any = None, *_: Any, **__: Any) -> Any:
    if isinstance(dim, Value):
        return elementwise(call.ledger, [x, dim], call.place)
    if dim is None:
        return reduce(call.ledger, x, range(len(x.shape)))
    x = fix(call.ledger, x, {dim % len(x.shape)}, f"{call.place} tells positions by their index")
    best = reduce(call.ledger, x, [dim], keepdim=len(call.out[0].sizes) == len(x.shape))
    return best, best


@RULES.functions("cumsum cumprod")
def cumulative(call: Call, x: Value, dim: int, *_: Any, **__: Any) -> Value:
    return _by_order(call, x, [dim])


@RULES.functions("flip")
def flip(call: Call, x: Value, *dims: Any) -> Value:
    return _by_order(call, x, dims if isinstance(dims[0], int) else dims[0])


@RULES.functions("roll")
def roll(call: Call, x: Value, shifts: Any, dims: Any = None) -> Value:
    if dims is None:
        raise Unknown(f"{call.place} does not say along which dimension")
    return _by_order(call, x, [dims] if isinstance(dims, int) else dims)


def _by_order(call: Call, x: Value, dims: Sequence[int]) -> Value:
    dims = [d % len(x.shape) for d in dims]
    return carry(call.ledger, fix(call.ledger, x, dims, f"{call.place} goes by order"), call.shape)


# -------- rearranging


@RULES.functions("reshape view flatten unflatten squeeze unsqueeze reshape_as view_as ravel")
def new_shape(call: Call, x: Value, *_: Any, **__: Any) -> Value:
    if int(np.prod(x.shape)) != int(np.prod(call.shape)):
        raise Unknown(f"{call.place} reinterprets the numbers")
    return reshape(call.ledger, x, call.shape, call.place)


@RULES.modules("Flatten Unflatten")
def new_shape_module(call: Call, module: nn.Module, x: Value) -> Value:
    return new_shape(call, x)


@RULES.functions("permute")
def permute(call: Call, x: Value, *dims: Any) -> Value:
    order = [d % len(x.shape) for d in (dims if isinstance(dims[0], int) else dims[0])]
    shape = [x.shape[d] for d in order]
    return relabel(call.ledger, x, shape, [f.transpose(order) for f in x.factors])


@RULES.functions("transpose swapaxes swapdims")
def transpose(call: Call, x: Value, dim0: int, dim1: int) -> Value:
    order = list(range(len(x.shape)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(call, x, order)


@RULES.functions("t adjoint")
def matrix_transpose(call: Call, x: Value) -> Value:
    return transpose(call, x, -1, -2) if len(x.shape) > 1 else x


@RULES.functions("expand expand_as broadcast_to")
def expand(call: Call, x: Value, *_: Any, **__: Any) -> Value:
    lead = (1,) * (len(call.shape) - len(x.shape))
    return relabel(call.ledger, x, call.shape, [f.reshape(lead + f.shape) for f in x.factors])


@RULES.functions("repeat")
def repeat(call: Call, x: Value, *sizes: Any) -> Value:
    times = sizes if isinstance(sizes[0], int) else sizes[0]
    lead = (1,) * (len(call.shape) - len(x.shape))
    factors = [f.reshape(lead + f.shape) for f in x.factors]
    if any(n != 1 and f.shape[d] > 1 for f in factors for d, n in enumerate(times)):
        raise Unknown(f"{call.place} repeats channels")
    return relabel(call.ledger, x, call.shape, factors)


@RULES.functions("channel_shuffle")
def channel_shuffle(call: Call, x: Value, groups: int) -> Value:
    n, channels, *pixels = x.shape
    x = reshape(call.ledger, x, (n, groups, channels // groups, *pixels), call.place)
    x = transpose(call, x, 1, 2)
    return reshape(call.ledger, x, call.shape, call.place)


@RULES.modules("ChannelShuffle")
def channel_shuffle_module(call: Call, module: nn.ChannelShuffle, x: Value) -> Value:
    return channel_shuffle(call, x, module.groups)


@RULES.functions("pad")
def pad(
    call: Call, x: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Value:
    ndim, lengths = len(x.shape), call.shape
    padded = {ndim - 1 - i // 2 for i, n in enumerate(pad) if n != 0}
    channel = [d for d in padded if x.factor_along(d) is not None]
    x = carry(
        call.ledger,
        fix(call.ledger, x, padded - set(channel), f"{call.place} looks at neighbours"),
        [n if d in channel else lengths[d] for d, n in enumerate(x.shape)],
    )
    if channel and mode != "constant":
        raise Unknown(f"{call.place} copies channels by their index")
    for d in channel:  # every added channel is the same constant, so they may trade places
        before, after = pad[2 * (ndim - 1 - d)], pad[2 * (ndim - 1 - d) + 1]
        if min(before, after) < 0:
            raise Unknown(f"{call.place} crops channels")
        shape = tuple(before + after if i == d else 1 for i in range(ndim))
        added = call.ledger.axis(before + after).reshape(shape)
        fill = Value(shape, (added,) if added.size > 1 else ())
        order = np.roll(np.arange(lengths[d]), before)
        x = concat(call.ledger, [x, fill], d, call.place)
        moved = [f.take(order, axis=d) if f.shape[d] > 1 else f for f in x.factors]
        x = relabel(call.ledger, x, x.shape, moved)
    return x


@RULES.functions("new_zeros new_ones new_full new_empty new_tensor")
def new_constant(call: Call, x: Value, *_: Any, **__: Any) -> Value:
    return Value(call.shape, why="meets a constant made in the forward")


# -------- joining and picking


@RULES.functions("cat concat concatenate")
def cat(call: Call, tensors: Sequence[Value], dim: int = 0) -> Value:
    if not all(isinstance(t, Value) for t in tensors):
        raise Unknown(f"{call.place} joins something that is not a tensor")
    return concat(call.ledger, tensors, dim, call.place)


@RULES.functions("stack")
def stack(call: Call, tensors: Sequence[Value], dim: int = 0) -> Value:
    dim %= len(call.shape)
    raised = []
    for t in tensors:
        shape = (*t.shape[:dim], 1, *t.shape[dim:])
        factors = [np.expand_dims(f, dim) for f in t.factors]
        raised.append(relabel(call.ledger, t, shape, factors))
    return concat(call.ledger, raised, dim, call.place)


@RULES.functions("getitem")
def getitem(call: Call, x: Any, item: Any) -> Any:
    if not isinstance(x, Value):
        return x[item]
    items = list(item) if isinstance(item, tuple) else [item]
    if not all(i is None or i is Ellipsis or type(i) in (int, slice) for i in items):
        raise Unknown(f"{call.place} picks positions by a tensor")
    if Ellipsis not in items:
        items.append(Ellipsis)
    at = items.index(Ellipsis)
    missing = len(x.shape) - sum(i is not None for i in items if i is not Ellipsis)
    items[at : at + 1] = [slice(None)] * missing
    return relabel(call.ledger, x, call.shape, [_pick(f, items) for f in x.factors])


def _pick(factor: Ids, items: Sequence[Any]) -> Ids:
    """Index a factor as its value is indexed: where it does not vary, its one row stays."""
    local, d = [], 0
    for item in items:
        if item is not None:
            if factor.shape[d] == 1:
                item = 0 if isinstance(item, int) else slice(None)
            d += 1
        local.append(item)
    return factor[tuple(local)]


@RULES.functions("select")
def select(call: Call, x: Value, dim: int, index: int) -> Value:
    return getitem(call, x, (slice(None),) * (dim % len(x.shape)) + (index,))


@RULES.functions("narrow")
def narrow(call: Call, x: Value, dim: int, start: int, length: int) -> Value:
    piece = slice(start % x.shape[dim], start % x.shape[dim] + length)
    return getitem(call, x, (slice(None),) * (dim % len(x.shape)) + (piece,))


@RULES.functions("split chunk split_with_sizes tensor_split")
def split(call: Call, x: Value, size: Any, dim: int = 0) -> tuple[Value, ...]:
    return _pieces(call, x, dim)


@RULES.functions("unbind")
def unbind(call: Call, x: Value, dim: int = 0) -> tuple[Value, ...]:
    dim %= len(x.shape)
    return tuple(
        _at(call, shape)(x, (slice(None),) * dim + (i,)) for i, shape in enumerate(call.out)
    )


def _pieces(call: Call, x: Value, dim: int) -> tuple[Value, ...]:
    dim, start, pieces = dim % len(x.shape), 0, []
    for shape in call.out:
        piece = slice(start, start + shape.sizes[dim])
        pieces.append(_at(call, shape)(x, (slice(None),) * dim + (piece,)))
        start = piece.stop
    return tuple(pieces)


def _at(call: Call, shape: Shape) -> Callable:
    """`getitem` for one of several results."""
    one = Call(call.ledger, call.place, shape, call.parameter)
    return lambda x, item: getitem(one, x, item)


def attribute(call: Call, x: Any, name: str) -> Any:
    """`x.T` and the like, and the fields of a pair (values, indices)."""
    if isinstance(x, tuple) and name in ("values", "indices"):
        return x[("values", "indices").index(name)]
    if isinstance(x, Value) and name == "data":
        return elementwise(call.ledger, [x], call.place)
    if isinstance(x, Value) and name in ("T", "mT"):
        return matrix_transpose(call, x)
    raise Unknown(f"{call.place} reads the attribute {name!r}")


RULES.by_function[builtins.getattr] = Rule(attribute, computes=False)
