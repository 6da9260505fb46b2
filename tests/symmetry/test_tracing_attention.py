"""Tokens: mixers and attention, by hand and torch's own; heads move as blocks."""

import pytest
import torch
import torch.nn.functional as F
from test_tracing_structures import Net, proved, reasons, sizes
from torch import nn

from rebasin_utils.symmetry.tracing.taps import tapped


class Mixer(nn.Module):
    """MLP-Mixer (Tolstikhin et al. 2021): mixes tokens, then channels, around a residual stream."""

    def __init__(self, tokens=9, width=8, layers=2):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers + 1))
        self.token_mlps = nn.ModuleList(mlp(tokens, 7) for _ in range(layers))
        self.channel_mlps = nn.ModuleList(mlp(width, 10) for _ in range(layers))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for i, (tokens, channels) in enumerate(
            zip(self.token_mlps, self.channel_mlps, strict=True)
        ):
            x = x + tokens(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
            x = x + channels(self.norms[2 * i + 1](x))
        return self.head(self.norms[-1](x).mean(1))


def mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def test_an_mlp_mixer_frees_its_width_and_all_hidden_units_but_not_its_tokens():
    spec = proved(Mixer(), 3, 12, 12)
    assert sorted(sizes(spec).values()) == [7, 7, 8, 10, 10]
    assert all("meets positions" in r for r in reasons(spec, "token_mlps.0.0.weight"))
    assert spec.groups["patches"].size == 8
    assert spec.groups["patches"].tap.place == "norms.4"


class Attention(nn.Module):
    """Self-attention by hand, as model zoos write it."""

    def __init__(self, by_einsum: bool, width=8, heads=4):
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
        self.by_einsum = by_einsum

    def forward(self, x):
        b, n, c = x.shape[0], x.shape[1], x.shape[2]
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.by_einsum:
            weights = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
            x = torch.einsum("bhij, bhjd -> bhid", weights, v)
        else:
            x = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(x.transpose(1, 2).reshape(b, n, c))


@pytest.mark.parametrize("by_einsum", [True, False])
def test_attention_heads_move_as_blocks(by_einsum):
    net = Net(
        lambda n, x: n.c(torch.relu(n.b(n.a(x)))),
        a=nn.Linear(3, 8), b=Attention(by_einsum), c=nn.Linear(8, 2),
    )  # fmt: skip
    spec = proved(net, 5, 3)
    heads = next(g for g in spec.groups.values() if g.size == 4)
    index = {(m.tensor, m.axis): m.index for m in heads.members}
    expected = torch.arange(24).view(3, 4, 2).transpose(0, 1).reshape(4, 6)
    assert torch.equal(index["b.qkv.weight", 0], expected)
    assert torch.equal(index["b.out.weight", 1], torch.arange(8).view(4, 2))
    matrix = tapped(net, spec)(torch.randn(2, 5, 3))[heads.name]
    # The attention weights of every pair of tokens, or where they stay hidden the heads' features.
    assert matrix.shape == ((2 * 5 * 5, 4) if by_einsum else (2 * 5, 4, 2))


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_multihead_attention_is_opened_up(need_weights, batch_first):
    def forward(net, x):
        x, memory = net.a(x), net.m(x)
        y, weights = net.attention(x, memory, memory, need_weights=need_weights)
        return (net.b(y), weights) if need_weights else net.b(y)

    net = Net(
        forward, a=nn.Linear(3, 8), m=nn.Linear(3, 8), b=nn.Linear(8, 2),
        attention=nn.MultiheadAttention(8, 4, batch_first=batch_first),
    )  # fmt: skip
    spec = proved(net, 5, 3)
    assert sizes(spec) == {"a": 8, "attention": 4, "attention#2": 8}


def test_masked_attention_is_pinned_and_says_so():
    def forward(net, x):
        x, mask = net.a(x), torch.ones(5, 5).triu(1).bool()
        return net.b(net.attention(x, x, x, attn_mask=mask)[0])

    attention = nn.MultiheadAttention(8, 4, batch_first=True)
    net = Net(forward, a=nn.Linear(3, 8), attention=attention, b=nn.Linear(8, 2))
    spec = proved(net, 5, 3)
    assert not spec.groups
    assert any("not understood" in r for r in reasons(spec, "attention.in_proj_weight"))
