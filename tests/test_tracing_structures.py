"""Structures that people's models have: kept, pinned with the reason, or refused; never wrong."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.permutation import PermutationSpec
from rebasin_utils.trace_values import Ledger, solve
from rebasin_utils.tracing import tapped


class Net(nn.Module):
    """A model made of parts by name and a function (net, x) -> output."""

    def __init__(self, forward, **parts):
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.run(self, x)


def proved(model: nn.Module, *shape: int, example=None) -> PermutationSpec:
    """The spec, after three random permutations of it have kept the model's function."""
    x = torch.randn(2, *shape) if example is None else example
    spec = PermutationSpec.trace(model, x)
    for seed in range(3):
        assert spec.check(model, x, seed) < 1e-10
    return spec


def sizes(spec: PermutationSpec) -> dict[str, int]:
    return {name: group.size for name, group in spec.groups.items()}


def reasons(spec: PermutationSpec, tensor: str) -> set[str]:
    return {p.reason for p in spec.pinned if p.tensor == tensor}


def test_a_module_used_twice_ties_its_inputs_to_its_outputs():
    def forward(net, x):
        x = torch.relu(net.stem(x))
        x = torch.relu(net.shared(x))
        return net.head(torch.relu(net.shared(x)))

    net = Net(forward, stem=nn.Linear(5, 8), shared=nn.Linear(8, 8), head=nn.Linear(8, 3))
    spec = proved(net, 5)
    assert sizes(spec) == {"stem": 8}
    axes = {(m.tensor, m.axis) for m in spec.groups["stem"].members}
    assert {("shared.weight", 0), ("shared.weight", 1), ("head.weight", 1)} <= axes


def test_tied_weights_move_under_both_names():
    net = Net(
        lambda net, i: net.decode(F.gelu(net.encode(i))).mean(1),
        encode=nn.Embedding(11, 6),
        decode=nn.Linear(6, 11, bias=False),
    )
    net.decode.weight = net.encode.weight
    spec = proved(net, example=torch.randint(11, (2, 4)))
    members = [(m.tensor, m.axis) for m in spec.groups["encode"].members]
    assert members == [("encode.weight", 1), ("decode.weight", 1)]
    assert reasons(spec, "encode.weight") == {"looked up by its index"}


def test_weights_that_share_memory_in_part_are_pinned():
    net = Net(lambda n, x: n.b(torch.relu(n.a(x))), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    base = torch.randn(40)
    net.a.weight = nn.Parameter(base[:24].view(6, 4))
    net.b.weight = nn.Parameter(base[20:32].view(2, 6))
    spec = PermutationSpec.trace(net, torch.randn(2, 4))
    assert not spec.groups
    assert reasons(spec, "a.weight") == {"b.weight and a.weight share memory in part"}
    net.b.weight = nn.Parameter(base[24:36].view(2, 6))  # side by side is no sharing
    assert sizes(proved(net, 4)) == {"a": 6}


def test_data_dependent_control_flow_is_refused_with_its_place():
    class Gate(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), Gate()), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"cannot trace 1\.1 \(test_.*\.py, line \d+\): .*control"):
        PermutationSpec.trace(net, torch.randn(2, 3))


def test_an_unknown_operation_pins_what_it_touches_and_says_so():
    def forward(net, x):
        x = torch.relu(net.a(x))
        x = torch.fft.rfft(net.b(x)).abs()
        return net.d(torch.relu(net.c(x)))

    parts = {"a": nn.Linear(3, 8), "b": nn.Linear(8, 8), "c": nn.Linear(5, 6), "d": nn.Linear(6, 2)}
    spec = proved(Net(forward, **parts), 3)
    assert sizes(spec) == {"a": 8, "c": 6}
    assert any("fft_rfft" in r and "not understood" in r for r in reasons(spec, "b.weight"))
    assert any("fft_rfft" in r for r in reasons(spec, "c.weight"))


def test_a_look_alike_function_is_not_mistaken_for_torchs():
    net = Net(lambda n, x: n.b(my_relu(n.a(x))), a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    assert not PermutationSpec.trace(net, torch.randn(2, 3)).groups


def relu(x):
    """Not torch's: it treats positions differently."""
    return x * torch.arange(x.shape[-1])


my_relu = relu
torch.fx.wrap("my_relu")


def test_local_response_norm_and_recurrent_nets_are_pinned():
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.LocalResponseNorm(3), nn.Flatten(), nn.Linear(24, 2))
    assert not proved(net, 3, 2, 2).groups
    net = Net(
        lambda n, x: n.b(n.a(x)[0][:, -1]), a=nn.LSTM(3, 5, batch_first=True), b=nn.Linear(5, 2)
    )
    spec = proved(net, 4, 3)
    assert not spec.groups
    assert any("a is not understood" in r for r in reasons(spec, "a.weight_ih_l0"))


def test_parameters_that_the_forward_never_uses_are_pinned():
    net = Net(
        lambda n, x: n.b(F.relu(n.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 2), c=nn.Linear(9, 9)
    )
    spec = proved(net, 3)
    assert reasons(spec, "c.weight") == {"not used in the forward"}


def test_units_stay_within_their_norm_group():
    def with_norm(groups):
        return nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.GroupNorm(groups, 8), nn.ReLU(), nn.Conv2d(8, 2, 1)
        )

    assert sorted(sizes(proved(with_norm(2), 3, 4, 4)).values()) == [4, 4]
    assert sorted(sizes(proved(with_norm(1), 3, 4, 4)).values()) == [8]
    assert sorted(sizes(proved(with_norm(8), 3, 4, 4)).values()) == [8]
    assert sizes(proved(with_norm(4), 3, 4, 4)) == {"0": 2, "0#2": 2, "0#3": 2, "0#4": 2}


def test_slices_that_go_different_ways_do_not_trade_places():
    def forward(net, x):
        x = net.a(x)
        one, two, three = x[:, :2], x[:, 2:4], x[:, 4:]
        mixed = torch.cat([torch.relu(one), torch.tanh(three), torch.relu(two)], 1)
        return net.b(mixed)

    spec = proved(Net(forward, a=nn.Linear(3, 7), b=nn.Linear(7, 2)), 3)
    assert sorted(sizes(spec).values()) == [2, 2, 3]


def test_half_of_the_channels_transposed_before_a_flatten_stays_apart():
    def forward(net, x):
        x = net.a(x)
        mixed = torch.cat([x[:, :3].flatten(2), x[:, 3:].transpose(2, 3).flatten(2)], 1)
        return net.b(torch.relu(mixed.flatten(1)))

    net = Net(forward, a=nn.Conv2d(2, 6, 1), b=nn.Linear(6 * 9, 2))
    assert sorted(sizes(proved(net, 2, 3, 3)).values()) == [3, 3]


def test_one_channel_picked_by_its_index_is_pinned():
    net = Net(lambda n, x: n.b(n.a(x)[:, 2:3] * n.a(x)), a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    spec = proved(net, 3)
    assert sizes(spec) == {"a": 5}
    assert reasons(spec, "a.bias") == {"picked out by its index"}


def test_a_softmax_within_heads_keeps_the_heads_whole():
    def forward(net, x):
        heads = net.a(x).unflatten(1, (4, 3)).softmax(-1)
        return net.b(heads.flatten(1))

    spec = proved(Net(forward, a=nn.Linear(5, 12), b=nn.Linear(12, 2)), 5)
    assert sizes(spec) == {"a": 4}
    assert torch.equal(spec.groups["a"].members[0].index, torch.arange(12).view(4, 3))


def test_zero_padded_shortcuts_are_understood():
    def forward(net, x):
        wide = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return net.head(torch.relu(net.conv(x) + wide).mean((2, 3)))

    net = Net(
        lambda n, x: forward(n, torch.relu(n.stem(x))),
        stem=nn.Conv2d(3, 4, 1),
        conv=nn.Conv2d(4, 8, 3, stride=2, padding=1),
        head=nn.Linear(8, 2),
    )
    spec = proved(net, 3, 4, 4)
    assert sorted(sizes(spec).values()) == [4, 4]  # the stream, and the channels that meet zeros


def test_an_autoencoder_with_unflatten_and_transposed_convolutions():
    net = nn.Sequential(
        nn.Linear(5, 6 * 4), nn.Unflatten(1, (6, 2, 2)), nn.BatchNorm2d(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, stride=2), nn.LeakyReLU(), nn.Conv2d(4, 1, 3),
    )  # fmt: skip
    spec = proved(net, 5)
    assert sizes(spec) == {"0": 6, "4": 4}
    assert spec.groups["0"].members[0].index.shape == (6, 4)


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


@pytest.mark.parametrize("how", ["hook", "forward", "spectral_norm", "weight_norm"])
def test_layers_that_were_tampered_with_are_pinned(how):
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    if how == "hook":
        net[1].register_forward_hook(lambda m, i, o: o * torch.arange(6))
    elif how == "forward":
        net[1].forward = lambda x: F.linear(x, net[1].weight) * torch.arange(6)
    else:
        getattr(nn.utils.parametrizations, how)(net[1])
    spec = PermutationSpec.trace(net, torch.randn(2, 3))
    assert not spec.groups
    assert any("not understood" in r for r in reasons(spec, "0.weight"))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", ["spectral_norm", "weight_norm"])
def test_the_older_reparametrisations_are_pinned_too(how):
    net = nn.Sequential(nn.Linear(3, 4), getattr(nn.utils, how)(nn.Linear(4, 6)), nn.Linear(6, 2))
    assert not PermutationSpec.trace(net.eval(), torch.randn(2, 3)).groups


def test_randomness_and_writes_through_views_are_refused():
    net = Net(lambda n, x: n.b(F.dropout(n.a(x))), a=nn.Linear(3, 9), b=nn.Linear(9, 2))
    with pytest.raises(InputError, match="does not compute what the model computes"):
        PermutationSpec.trace(net.eval(), torch.randn(2, 3))

    def forward(net, x):
        x = net.a(x)
        half = x[:, :4]
        half += 1
        return net.b(x)

    with pytest.raises(InputError, match="writes in place through a view"):
        PermutationSpec.trace(Net(forward, a=nn.Linear(3, 9), b=nn.Linear(9, 2)), torch.randn(2, 3))


def test_several_inputs_optional_arguments_and_dict_outputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x, y, scale=None):
            hidden = torch.relu(self.a(x) * torch.sigmoid(self.b(y)))
            return {"logits": self.c(hidden if scale is None else hidden * scale), "shape": x.shape}

    example = (torch.randn(2, 3), torch.randn(2, 4))
    spec = proved(Two(), example=example)
    assert sizes(spec) == {"a": 6}
    assert tapped(Two(), spec)(*example)["a"].shape == (2, 6)


def test_numbers_read_off_a_tensor_pin_it():
    def forward(net, x):
        x = net.a(x)
        return net.b(x.roll(x.shape[0], 0)) + net.c(x.argmax(-1, keepdim=True).float())

    net = Net(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2), c=nn.Linear(1, 2))
    assert not proved(net, 3).groups


def test_a_constant_output_cannot_be_judged():
    net = Net(lambda n, x: n.b(n.a(x)) * 0, a=nn.Linear(3, 6), b=nn.Linear(6, 2))
    with pytest.raises(InputError, match="cannot judge an output whose largest entry is 0"):
        PermutationSpec.trace(net, torch.randn(2, 3)).check(net, torch.randn(2, 3))


def test_slots_and_colours_decide_who_is_alike():
    """Two units of two atoms each, on axes A and B, bound straight or crosswise."""

    def kinds(second, colour):
        ledger = Ledger()
        a, b = ledger.axis(4), ledger.axis(4)
        ledger.tie([a, a[[0, 0, 2, 2]]])
        ledger.tie([a, b[[0, 1, *second]]], np.array(colour))
        return solve(ledger).kind[[0, 2]]

    alike, other = kinds([2, 3], [0, 1, 0, 1])
    assert alike == other
    for case in (([3, 2], [0, 1, 0, 1]), ([2, 3], [0, 1, 1, 0])):
        first, second = kinds(*case)
        assert first != second
