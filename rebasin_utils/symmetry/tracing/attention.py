"""Torch's attention spelled out, so that its heads appear in a graph.

Vaswani et al. 2017, Section 3.2.2. `nn.MultiheadAttention` is one opaque call to a tracer; a copy
of a model that is about to be traced gets `Attention` in its place.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rebasin_utils.symmetry.tracing.rules import is_pristine


def spell_out(net: nn.Module) -> None:
    """Put `Attention` for every plain `nn.MultiheadAttention` within `net`, in place."""
    for path, module in list(net.named_modules(remove_duplicate=False)):
        if type(module) is nn.MultiheadAttention and _is_plain(module) and path:
            net.set_submodule(path, Attention(module))


class Attention(nn.MultiheadAttention):
    """Computes what `whole` computes, and shows how. With a mask it calls it, and shows nothing.

    It has all attributes of `whole`, because torch's transformer layers look at them.
    """

    def __init__(self, whole: nn.MultiheadAttention):
        nn.Module.__init__(self)
        vars(self).update({k: dict(v) if type(v) is dict else v for k, v in vars(whole).items()})
        self.whole = whole

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
        if not self.batch_first:
            merged = merged.transpose(0, 1)
        return F.linear(merged, self.out_proj.weight, self.out_proj.bias), attention

    def _heads(self, x: Tensor) -> Tensor:
        """[batch, tokens, features] (or tokens first) -> [batch, heads, tokens, features each]."""
        if not self.batch_first:
            x = x.transpose(0, 1)
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)


def _is_plain(module: nn.MultiheadAttention) -> bool:
    same = module._qkv_same_embed_dim and module.in_proj_weight is not None
    return same and is_pristine(module) and module.bias_k is None and not module.add_zero_attn
