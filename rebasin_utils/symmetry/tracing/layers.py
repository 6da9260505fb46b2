"""Rules for the operations that compute: activations, layers with weights, norms, products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from rebasin_utils.symmetry.tracing.moves import permute
from rebasin_utils.symmetry.tracing.rules import (
    Call,
    Rule,
    Rules,
    Unknown,
    along,
    values_in,
)
from rebasin_utils.symmetry.tracing.values import (
    Value,
    contract,
    elementwise,
    fix,
    normalise,
    reduce,
    reshape,
)

RULES = Rules()

# -------- position by position


@RULES.functions(
    "relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu celu gelu silu mish softplus softsign "
    "hardtanh hardswish hardsigmoid hardshrink softshrink tanhshrink threshold logsigmoid sigmoid "
    "sigmoid_ tanh tanh_ exp expm1 log log1p log2 log10 sqrt rsqrt square abs neg negative sign "
    "sin cos tan atan erf reciprocal clamp clamp_ clamp_min clamp_max clip floor ceil round pow "
    "float_power nan_to_num isnan isinf isfinite logical_not invert",
    computes=True,
)
@RULES.functions(
    "add add_ sub sub_ mul mul_ div div_ multiply divide true_divide truediv floordiv remainder "
    "mod fmod maximum minimum lerp addcmul addcdiv eq ne lt le gt ge and_ or_ logical_and "
    "logical_or logical_xor masked_fill masked_fill_ iadd isub imul itruediv bitwise_not "
    "bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__ __invert__ __eq__ rsub __rsub__ "
    "__rdiv__ __rpow__ __floordiv__ __rfloordiv__ __rmod__",
    computes=True,
)
def pointwise(call: Call, *args: Any, **kwargs: Any) -> Value:
    return elementwise(call.ledger, values_in(args, kwargs), call.place)


@RULES.functions(
    "clone detach contiguous to float half double bfloat16 bool type_as cpu cuda zeros_like "
    "ones_like full_like requires_grad_"
)
def copy(call: Call, x: Value, *_: Any, **__: Any) -> Value:
    return elementwise(call.ledger, [x], call.place)


@RULES.functions("where", computes=True)
def where(call: Call, condition: Value, first: Any, second: Any) -> Value:
    return elementwise(call.ledger, values_in(condition, first, second), call.place)


@RULES.functions("dropout dropout1d dropout2d dropout3d")
def dropout(
    call: Call, x: Value, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Value:
    if training and p > 0:
        raise Unknown(f"{call.place} draws random numbers in eval mode")
    return elementwise(call.ledger, [x], call.place)


def stochastic_depth(call: Call, x: Value, p: float, mode: str, training: bool = True) -> Value:
    """torchvision's, an identity in eval mode."""
    return dropout(call, x, p, training)


_HOME = "torchvision.ops.stochastic_depth"
RULES.foreign[_HOME, "stochastic_depth"] = Rule(stochastic_depth, computes=False)


@RULES.modules(
    "ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Softplus Softsign Hardtanh Hardswish "
    "Hardsigmoid Hardshrink Softshrink Tanhshrink Threshold LogSigmoid Sigmoid Tanh RReLU",
    computes=True,
)
@RULES.modules("Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout")
def activation(call: Call, module: nn.Module, x: Value) -> Value:
    return elementwise(call.ledger, [x], call.place)


@RULES.modules("PReLU", computes=True)
def prelu(call: Call, module: nn.PReLU, x: Value) -> Value:
    slope = call.parameter(module, "weight")
    return elementwise(call.ledger, [x, along(slope, 1, len(x.shape))], call.place)


# -------- layers with weights


@RULES.functions("linear", computes=True)
def linear(call: Call, x: Value, weight: Value, bias: Value | None = None) -> Value:
    x, weight = contract(call.ledger, x, -1, weight, 1, call.place)
    produced = [along(weight, -1, len(x.shape), source=0)]
    return elementwise(call.ledger, [x, *produced, *values_in(bias)], call.place)


@RULES.modules("Linear", computes=True)
def linear_module(call: Call, module: nn.Linear, x: Value) -> Value:
    return linear(call, x, call.parameter(module, "weight"), call.parameter(module, "bias"))


@RULES.functions("conv1d conv2d conv3d", computes=True)
def conv(
    call: Call, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Value:  # fmt: skip
    return _conv(call, x, weight, bias, groups, axis_in=1)


@RULES.functions("conv_transpose1d conv_transpose2d conv_transpose3d", computes=True)
def conv_transpose(
    call: Call, x: Value, weight: Value, bias: Value | None = None, stride: Any = 1,
    padding: Any = 0, output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Value:  # fmt: skip
    return _conv(call, x, weight, bias, groups, axis_in=0)


@RULES.modules(
    "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d", computes=True
)
def conv_module(call: Call, module: nn.modules.conv._ConvNd, x: Value) -> Value:
    weight, bias = call.parameter(module, "weight"), call.parameter(module, "bias")
    return _conv(call, x, weight, bias, module.groups, axis_in=0 if module.transposed else 1)


def _conv(
    call: Call, x: Value, weight: Value, bias: Value | None, groups: int, axis_in: int
) -> Value:
    ledger, ndim = call.ledger, len(x.shape)
    pixels = len(weight.shape) - 2
    channel = ndim - pixels - 1
    weight = fix(ledger, weight, range(2, pixels + 2), "kernel position")
    x = fix(ledger, x, range(channel + 1, ndim), f"{call.place} looks at neighbours")
    if groups == 1:
        x, weight = contract(ledger, x, channel, weight, axis_in, call.place)
        made = along(weight, channel, ndim, source=1 - axis_in)
    elif axis_in == 1:
        x, made = _grouped(call, x, weight, groups, channel)
    else:
        raise Unknown(f"{call.place} is a transposed convolution in groups")
    terms = [along(b, channel, ndim) for b in values_in(bias)]
    shape = tuple(n if d <= channel else 1 for d, n in enumerate(x.shape))
    result = elementwise(ledger, [replace(x, shape=shape), made, *terms], call.place)
    return replace(result, shape=call.shape)


def _grouped(call: Call, x: Value, weight: Value, groups: int, channel: int) -> tuple[Value, Value]:
    """A convolution in groups: a whole group, inputs and outputs, is one unit.

    Where the input channels cannot move, the outputs may still move within their group. A depthwise
    convolution is the case of one input channel a group.
    """
    ledger, ndim = call.ledger, len(x.shape)
    weight = fix(ledger, weight, {1}, "input axis shared by the groups of a convolution")
    outputs, source = weight.factor_along(0), x.factor_along(channel)
    per_output, per_input = weight.shape[0] // groups, x.shape[channel] // groups
    if outputs is None:  # a kernel that is no part of the state
        x = fix(ledger, x, {channel}, f"{call.place} has a constant kernel")
        source = x.factor_along(channel)
    if source is not None and outputs is not None:
        if max(source.shape) != source.size:
            x = fix(ledger, x, {d for d in range(ndim) if d != channel}, "")
            source = x.factor_along(channel)
        column = outputs.reshape(groups, per_output)
        rows = source.reshape(groups, per_input)
        for k in range(per_input):  # binds every input of a group to the group's first output
            ledger.tie([column[:, 0], rows[:, k]])
        for k in range(1, per_output):
            ledger.tie([column[:, 0], column[:, k]])
        colour = 0
    else:
        colour = np.repeat(np.arange(groups), per_output)
    made = Value((weight.shape[0],), sampled=x.sampled)
    if outputs is not None:
        new = ledger.successor(outputs.reshape(-1), colour=colour)
        made = replace(made, factors=(new,))
    shape = tuple(1 if d == channel else n for d, n in enumerate(x.shape))
    rest = tuple(f for f in x.factors if f is not source)
    return replace(x, shape=shape, factors=rest), along(made, channel, ndim)


@RULES.functions("embedding")
def embedding(call: Call, index: Value, weight: Value, *_: Any, **__: Any) -> Value:
    weight = fix(call.ledger, weight, {0}, "looked up by its index")
    index = replace(fix(call.ledger, index, range(len(index.shape)), "an index"), why="")
    index = replace(index, shape=(*index.shape, 1))
    return elementwise(call.ledger, [index, along(weight, -1, len(index.shape), 1)], call.place)


@RULES.modules("Embedding", computes=True)
def embedding_module(call: Call, module: nn.Embedding, index: Value) -> Value:
    return embedding(call, index, call.parameter(module, "weight"))


# -------- normalisation


@RULES.functions("batch_norm", computes=True)
def batch_norm(
    call: Call, x: Value, mean: Value | None, var: Value | None, weight: Value | None = None,
    bias: Value | None = None, training: bool = False, *_: Any, **__: Any,
) -> Value:  # fmt: skip
    ndim = len(x.shape)
    if training or mean is None:
        x = normalise(call.ledger, x, [d for d in range(ndim) if d != 1])
    terms = [along(t, 1, ndim) for t in values_in(mean, var, weight, bias)]
    return elementwise(call.ledger, [x, *terms], call.place)


@RULES.modules("BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm", computes=True)
def batch_norm_module(call: Call, module: nn.BatchNorm2d, x: Value) -> Value:
    names = ("running_mean", "running_var", "weight", "bias")
    return batch_norm(call, x, *(call.parameter(module, n) for n in names))


@RULES.functions("layer_norm rms_norm", computes=True)
def layer_norm(
    call: Call, x: Value, normalized_shape: Sequence[int], weight: Value | None = None,
    bias: Value | None = None, eps: float | None = None,
) -> Value:  # fmt: skip
    last = range(len(x.shape) - len(normalized_shape), len(x.shape))
    x = normalise(call.ledger, x, last)
    return elementwise(call.ledger, [x, *values_in(weight, bias)], call.place)


@RULES.modules("LayerNorm RMSNorm", computes=True)
def layer_norm_module(call: Call, module: nn.LayerNorm, x: Value) -> Value:
    weight, bias = (call.parameter(module, n) for n in ("weight", "bias"))
    return layer_norm(call, x, module.normalized_shape, weight, bias)


@RULES.functions("group_norm", computes=True)
def group_norm(
    call: Call, x: Value, num_groups: int, weight: Value | None = None, bias: Value | None = None,
    eps: float = 1e-5,
) -> Value:  # fmt: skip
    ndim, channels = len(x.shape), x.shape[1]
    if num_groups == 1:
        x = normalise(call.ledger, x, range(1, ndim))
    else:
        x = normalise(call.ledger, x, range(2, ndim))
        source = x.factor_along(1)
        if source is not None and num_groups < channels:  # stay within the norm's own group
            group = np.arange(channels) // (channels // num_groups)
            group = group.reshape([-1 if d == 1 else 1 for d in range(ndim)])
            new = call.ledger.successor(source, colour=np.broadcast_to(group, source.shape))
            x = replace(x, factors=tuple(new if f is source else f for f in x.factors))
    terms = [along(t, 1, ndim) for t in values_in(weight, bias)]
    return elementwise(call.ledger, [x, *terms], call.place)


@RULES.modules("GroupNorm", computes=True)
def group_norm_module(call: Call, module: nn.GroupNorm, x: Value) -> Value:
    weight, bias = (call.parameter(module, n) for n in ("weight", "bias"))
    return group_norm(call, x, module.num_groups, weight, bias)


@RULES.modules("InstanceNorm1d InstanceNorm2d InstanceNorm3d", computes=True)
def instance_norm_module(call: Call, module: nn.InstanceNorm2d, x: Value) -> Value:
    x = normalise(call.ledger, x, range(2, len(x.shape)))
    names = ("running_mean", "running_var", "weight", "bias")
    return batch_norm(call, x, *(call.parameter(module, n) for n in names))


@RULES.functions("softmax log_softmax", computes=True)
def softmax(call: Call, x: Value, dim: int | None = None, *_: Any, **__: Any) -> Value:
    if dim is None:
        raise Unknown(f"{call.place} does not say along which dimension")
    return normalise(call.ledger, x, [dim])


@RULES.functions("normalize", computes=True)
def unit_norm(
    call: Call, x: Value, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None
) -> Value:
    return normalise(call.ledger, x, [dim])


@RULES.modules("Softmax LogSoftmax Softmax2d", computes=True)
def softmax_module(call: Call, module: nn.Softmax, x: Value) -> Value:
    return softmax(call, x, -3 if isinstance(module, nn.Softmax2d) else module.dim)


# -------- products


@RULES.functions("matmul bmm mm", computes=True)
def matmul(call: Call, a: Value, b: Value) -> Value:
    if min(len(a.shape), len(b.shape)) < 2:
        raise Unknown(f"{call.place} multiplies vectors")
    return elementwise(call.ledger, contract(call.ledger, a, -1, b, -2, call.place), call.place)


@RULES.functions("addmm baddbmm", computes=True)
def matmul_added(call: Call, x: Value, a: Value, b: Value, **_: Any) -> Value:
    return elementwise(call.ledger, [x, matmul(call, a, b)], call.place)


@RULES.functions("einsum", computes=True)
def einsum(call: Call, equation: str, *operands: Any) -> Value:
    """A product over all letters, then a sum over those that the result lacks."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    letters = result + "".join(sorted(set(terms) - set(result) - {","}))
    values = values_in(operands)
    if not arrow or "." in equation or len(terms.split(",")) != len(values):
        raise Unknown(f"{call.place} leaves dimensions unnamed")
    factors = []
    for term, x in zip(terms.split(","), values, strict=True):
        if len(set(term)) < len(term):
            raise Unknown(f"{call.place} takes a diagonal")
        for d, letter in enumerate(term):
            f = x.factor_along(d)
            if letter not in result and f is not None and max(f.shape) < f.size:
                x = fix(call.ledger, x, {d}, "")
        x = permute(call, x, [term.index(a) for a in letters if a in term])
        factors.append(_spaced(x, [a in term for a in letters]))
    product = elementwise(call.ledger, factors, call.place)
    return reduce(call.ledger, product, range(len(result), len(letters)))


def _spaced(value: Value, present: Sequence[bool]) -> Value:
    """The value with dimensions of size 1 put in where `present` is False."""
    at = [d for d, here in enumerate(present) if not here]
    factors = tuple(np.expand_dims(f, at) for f in value.factors)
    sizes = iter(value.shape)
    return replace(value, shape=tuple(next(sizes) if p else 1 for p in present), factors=factors)


@RULES.functions("scaled_dot_product_attention", computes=True)
def attention(
    call: Call, query: Value, key: Value, value: Value, attn_mask: Value | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:  # fmt: skip
    if dropout_p > 0:
        raise Unknown(f"{call.place} draws random numbers in eval mode")
    if enable_gqa:  # several heads of the query share one of key and value
        query, key, value = (_by_shared_heads(call, x, key.shape[-3]) for x in (query, key, value))
        if attn_mask is not None:
            raise Unknown(f"{call.place} masks grouped queries")
    flipped = [*range(len(key.shape) - 2), len(key.shape) - 1, len(key.shape) - 2]
    scores = matmul(call, query, permute(call, key, flipped))
    scores = elementwise(call.ledger, [scores, *values_in(attn_mask)], call.place)
    if is_causal:
        scores = fix(call.ledger, scores, {len(scores.shape) - 2, len(scores.shape) - 1}, "causal")
    mixed = matmul(call, normalise(call.ledger, scores, [-1]), value)
    return reshape(call.ledger, mixed, call.shape, call.place) if enable_gqa else mixed


def _by_shared_heads(call: Call, x: Value, heads: int) -> Value:
    """[…, heads · r, tokens, features] -> […, heads, r, tokens, features]."""
    *batch, all_heads, tokens, features = x.shape
    shape = (*batch, heads, all_heads // heads, tokens, features)
    return reshape(call.ledger, x, shape, call.place)
