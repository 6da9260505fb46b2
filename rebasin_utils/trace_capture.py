"""Capturing a model's graph with torch.fx, in eval mode, without touching the model."""

from __future__ import annotations

import copy
import inspect
import os
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from rebasin_utils.errors import InputError
from rebasin_utils.trace_rules import is_pristine

_NOT_THE_USERS = (os.path.dirname(torch.__file__), os.path.dirname(__file__))


def as_inputs(example: Tensor | tuple[Any, ...]) -> tuple[Any, ...]:
    """The positional arguments of the forward."""
    return tuple(example) if isinstance(example, tuple | list) else (example,)


def eval_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode that shares the model's tensors; the model keeps its own mode."""
    tensors: dict[int, Any] = {}
    for module in model.modules():
        own = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        tensors.update((id(t), t) for t in own if isinstance(t, Tensor))
    try:
        return copy.deepcopy(model, tensors).eval()
    except Exception as e:
        raise InputError(f"{type(model).__name__} cannot be copied: {e}") from e


def capture(model: nn.Module, inputs: int) -> fx.GraphModule:
    """The graph of the model's forward with `inputs` positional arguments, in eval mode.

    Raises:
        InputError: when the forward depends on the data or does what torch.fx cannot follow; the
            sentence names the module and the line.
    """
    net = eval_copy(model)
    for path, module in list(net.named_modules(remove_duplicate=False)):
        if type(module) is nn.MultiheadAttention and _is_plain(module) and path:
            net.set_submodule(path, _Attention(module))
    tracer = _Tracer()
    root = net if _arity(net) == inputs else _Fixed(net, inputs)
    try:
        graph = tracer.trace(root)
    except Exception as e:
        where = ".".join(tracer.stack[-1:]) or type(model).__name__
        raise InputError(f"cannot trace {where}{_line_of(e)}: {_first_sentence(e)}") from e
    return fx.GraphModule(root, graph, type(model).__name__)


def place_of(node: fx.Node) -> str:
    """The path of the module in which a node stands; "" for the model's own forward."""
    if node.op == "call_module":
        path = node.target
    else:
        stack = node.meta.get("nn_module_stack")
        path = next(reversed(stack.values()))[0] if stack else ""
    return _own_path(path)


def attribute(root: nn.Module, path: str) -> Any:
    """What stands at a dotted path."""
    for part in path.split("."):
        root = getattr(root, part)
    return root


class _Tracer(fx.Tracer):
    """torch.fx's tracer, which remembers where it is when something goes wrong."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []

    def call_module(
        self, m: nn.Module, forward: Callable, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self.stack.append(_own_path(self.path_of_module(m)))
        result = super().call_module(m, forward, args, kwargs)
        self.stack.pop()  # not reached after an error, so the last entry is its place
        return result


class _Fixed(nn.Module):
    """Calls a model with so many positional arguments, so that its others keep their defaults."""

    def __new__(cls, net: nn.Module, inputs: int) -> _Fixed:
        kinds = {1: _Fixed, 2: _Fixed2, 3: _Fixed3}
        if inputs not in kinds:
            raise InputError(f"{inputs} inputs: give an example for every argument of the forward")
        return super().__new__(kinds[inputs])

    def __init__(self, net: nn.Module, inputs: int):
        super().__init__()
        self.the_traced_net = net

    def forward(self, x: Tensor) -> Any:
        return self.the_traced_net(x)


class _Fixed2(_Fixed):
    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.the_traced_net(x, y)


class _Fixed3(_Fixed):
    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> Any:
        return self.the_traced_net(x, y, z)


class _Attention(nn.Module):
    """`nn.MultiheadAttention` spelled out, so that its heads appear in the graph.

    Vaswani et al. 2017, Section 3.2.2. With a mask the module stays whole, and is not understood.
    """

    def __init__(self, whole: nn.MultiheadAttention):
        super().__init__()
        self.whole = whole
        self.in_proj_weight, self.in_proj_bias = whole.in_proj_weight, whole.in_proj_bias
        self.out_proj = whole.out_proj

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None,
        average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if key_padding_mask is not None or attn_mask is not None:
            return self.whole(
                query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        weights = self.in_proj_weight.chunk(3, dim=0)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3, dim=0)
        q, k, v = (
            self._heads(F.linear(x, weights[i], biases[i]))
            for i, x in enumerate((query, key, value))
        )
        if need_weights:
            attention = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1)
            heads = attention @ v
            attention = attention.mean(1) if average_attn_weights else attention
        else:
            heads, attention = F.scaled_dot_product_attention(q, k, v), None
        merged = heads.transpose(1, 2).flatten(2)
        if not self.whole.batch_first:
            merged = merged.transpose(0, 1)
        return F.linear(merged, self.out_proj.weight, self.out_proj.bias), attention

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, tokens, features] (or tokens first) -> [batch, heads, tokens, features each]."""
        if not self.whole.batch_first:
            x = x.transpose(0, 1)
        return x.unflatten(2, (self.whole.num_heads, self.whole.head_dim)).transpose(1, 2)


def _own_path(path: str) -> str:
    """A module's path in the user's model."""
    return "" if path == "the_traced_net" else path.removeprefix("the_traced_net.")


def _is_plain(module: nn.MultiheadAttention) -> bool:
    same = module._qkv_same_embed_dim and module.in_proj_weight is not None
    return same and is_pristine(module) and module.bias_k is None and not module.add_zero_attn


def _arity(module: nn.Module) -> int:
    parameters = inspect.signature(module.forward).parameters.values()
    return len([p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)])


def _line_of(error: Exception) -> str:
    """The innermost line of the user's own code that led to the error."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_NOT_THE_USERS)]
    return f" ({os.path.basename(own[-1].filename)}, line {own[-1].lineno})" if own else ""


def _first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, fx.proxy.TraceError) and "control flow" in text:
        return "its control flow depends on the data, and a permutation could change its path"
    return text[:200]
