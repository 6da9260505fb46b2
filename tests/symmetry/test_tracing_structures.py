"""Structures that people's models have: kept, pinned with the reason, or refused; never wrong."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.tracing.taps import tapped
from rebasin_utils.symmetry.tracing.values import Ledger, solve


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
    """The spec, after three random permutations of it, if any, have kept the model's function."""
    x = torch.randn(2, *shape) if example is None else example
    spec = PermutationSpec.trace(model, x)
    for seed in range(3) if spec.groups else ():
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


def test_a_mean_over_a_part_of_the_units_keeps_the_parts_together():
    def forward(net, x):
        heads = net.a(x).unflatten(1, (4, 3))
        return net.b(heads.mean(2)) + net.c(heads.flatten(1))

    net = Net(forward, a=nn.Linear(5, 12), b=nn.Linear(4, 2), c=nn.Linear(12, 2))
    assert sizes(proved(net, 5)) == {"a": 4}


def test_pooling_over_channels_pins_them():
    def forward(net, x):
        return net.b(F.avg_pool2d(net.a(x).transpose(1, 3), (1, 2)).flatten(1))

    net = Net(forward, a=nn.Conv2d(3, 6, 1), b=nn.Linear(4 * 4 * 3, 2))
    spec = proved(net, 3, 4, 4)
    assert not spec.groups
    assert any("looks at neighbours" in r for r in reasons(spec, "a.weight"))


def test_a_depthwise_kernel_that_is_no_part_of_the_state_pins_its_channels():
    def forward(net, x):
        return net.b(F.conv2d(net.a(x), net.kernel, groups=6))

    net = Net(forward, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 1))
    net.register_buffer("kernel", torch.randn(6, 1, 3, 3), persistent=False)
    assert not proved(net, 3, 4, 4).groups
    net.register_buffer("kernel", torch.randn(6, 1, 3, 3))
    assert sizes(proved(net, 3, 4, 4)) == {"a": 6}


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

    with pytest.raises(InputError, match="overwritten in place through a view"):
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
    net = Net(lambda n, x: n.b(x) * n.a(x).tolist()[0][2], a=nn.Linear(3, 6), b=nn.Linear(3, 2))
    spec = proved(net, 3)
    assert not spec.groups
    assert any("reads numbers off it" in r for r in reasons(spec, "a.weight"))
    shapes_only = Net(lambda n, x: n.b(n.a(x).roll(x.shape[0], 0)), a=net.a, b=nn.Linear(6, 2))
    assert sizes(proved(shapes_only, 3)) == {"a": 6}


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
