"""Graphs written down from a real run: for forwards that ask their tensors what they are."""

import warnings
from dataclasses import dataclass
from inspect import signature

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from test_tracing_property import OPERATIONS, SIDE, Program, programs, quick
from test_tracing_structures import Net, proved, reasons, sizes
from torch import Tensor, nn

from rebasin_utils.errors import InputError
from rebasin_utils.nets.models import build
from rebasin_utils.symmetry.example import Example
from rebasin_utils.symmetry.permutation import permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.tracing.capture import capture
from rebasin_utils.symmetry.tracing.recording import Size
from rebasin_utils.symmetry.tracing.taps import tapped


def two_layers(between, outputs: int = 2) -> Net:
    """Linear 3 -> 8, `between` on what it gives, linear 8 -> outputs."""
    parts = {"a": nn.Linear(3, 8), "b": nn.Linear(8, outputs)}
    return Net(lambda net, x: net.b(between(net.a(x))), **parts)


def is_recorded(spec: PermutationSpec) -> bool:
    return isinstance(spec.inputs, Example)


def asks_for_dimensions(x):
    return torch.relu(x) if x.dim() == 2 and x.shape[-1] == 8 else x[:, 0]


def asks_for_a_type(x):
    assert isinstance(x, Tensor)
    return torch.relu(x) if x.dtype in (torch.float32, torch.float64) else x


def goes_through_python(x):
    parts = {"first": x}
    parts.update({"second": torch.relu(parts["first"])})
    return parts["second"] if len(x) and "second" in dict(**parts) else x


def takes_sizes_apart(x):
    batch, width = x.size(0), x.shape[-1] if x.ndim == 2 else 1
    rest = [2 * batch * width // (batch * 2), 1]
    return torch.relu(x).view(batch, 2, -1).reshape(batch, *rest).squeeze(-1)


ASKING = [asks_for_dimensions, asks_for_a_type, goes_through_python, takes_sizes_apart]


@pytest.mark.parametrize("between", ASKING, ids=lambda f: f.__name__)
def test_questions_about_shape_and_type_are_no_data_dependence(between):
    net = two_layers(lambda x: between(x) if len(x.shape) else x)
    spec = proved(net, 3)
    assert sizes(spec) == {"a": 8}
    assert is_recorded(spec)


@pytest.mark.parametrize("between", ASKING, ids=lambda f: f.__name__)
def test_a_recorded_graph_serves_batches_of_other_sizes(between):
    net = two_layers(lambda x: between(x) if len(x.shape) else x)
    spec, x = PermutationSpec.trace(net, torch.randn(2, 3)), torch.randn(7, 3)
    assert spec.inputs.only_batch is None
    assert torch.equal(tapped(net, spec)(x)["a"], torch.relu(net.a(x)))


def test_a_graph_that_holds_for_one_batch_size_says_so():
    class OneByOne(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x, y):
            return torch.stack([self.b(torch.relu(self.a(x[i] + y[i]))) for i in range(len(x))])

    def example(samples):
        return torch.randn(samples, 3), torch.randn(samples, 3)

    net = OneByOne()
    spec = proved(net, example=example(2))
    assert spec.inputs.only_batch == 2
    assert tapped(net, spec)(*example(2))
    with pytest.raises(InputError, match=r"reads 5 off this input \(its number of samples\)"):
        tapped(net, spec)(*example(5))


@settings(quick, max_examples=50)
@given(programs(OPERATIONS, 8))
def test_a_run_and_symbols_lead_to_the_same_groups(steps):
    torch.manual_seed(0)
    net, x = Program(steps).eval(), torch.randn(2, 3, SIDE, SIDE)
    try:
        followed = PermutationSpec.trace(net, x)
    except InputError:
        return
    if not is_recorded(followed):
        same_groups(PermutationSpec.trace(net, {"x": x}), followed)


@pytest.mark.parametrize("name", ["mlp", "resnet8", "vgg11_bn"])
def test_our_models_have_the_same_groups_and_taps_by_a_run(name):
    model, x = build(name, (1, 16, 16), 10), torch.randn(2, 1, 16, 16)
    recorded = PermutationSpec.trace(model, {next(iter(signature(model.forward).parameters)): x})
    followed = PermutationSpec.trace(model, x)
    assert is_recorded(recorded)
    assert not is_recorded(followed)
    same_groups(recorded, followed)
    for name, group in followed.groups.items():
        assert recorded.groups[name].tap.place == group.tap.place


def same_groups(one: PermutationSpec, other: PermutationSpec) -> None:
    assert list(one.groups) == list(other.groups)
    for name, group in one.groups.items():
        for a, b in zip(group.members, other.groups[name].members, strict=True):
            assert (a.tensor, a.axis) == (b.tensor, b.axis)
            assert torch.equal(a.index, b.index)


class Gate(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_way_that_the_input_decides_is_checked_for_every_input():
    net, x = nn.Sequential(Gate(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(2, 3)
    spec = proved(net, example=x)
    assert sizes(spec) == {"1": 4}
    assert tapped(net, spec)(x + 1)["1"].shape == (2, 4)
    with pytest.raises(InputError, match=r"reads False off this input \(test_.*\.py, line \d+\)"):
        tapped(net, spec)(-x)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda x: x if x.max() > 0 else -x, "its control flow depends on the data"),
        (lambda x: x * float(x.max()), r"reads numbers off its activations \(by float\)"),
        (lambda x: x * x.max().item(), r"reads numbers off its activations \(by item\)"),
        (lambda x: torch.from_numpy(x.numpy()) + 0, r"reads numbers .* \(by numpy\)"),
        (lambda x: x[:, : int(x.argmax())], r"reads numbers off its activations \(by int\)"),
        (lambda x: overwritten_through_a_view(x), "overwritten in place through a view"),
        (lambda x: other_memory(x), "gives a tensor other memory"),
    ],
)
def test_what_cannot_be_written_down_is_refused_with_its_own_reason_and_line(between, reason):
    net = two_layers(lambda x: between(x) if len(x.shape) == 2 else x)
    with pytest.raises(
        InputError, match=rf"cannot trace Net \(test_.*\.py, line \d+\): .*{reason}"
    ):
        PermutationSpec.trace(net, torch.randn(2, 3))


def overwritten_through_a_view(x):
    half = x[:, :4]
    half += 1
    return x


def other_memory(x):
    x.data = torch.relu(x)
    return x


def test_what_torch_functions_do_not_show_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.jit.trace(lambda x: torch.relu(x), torch.randn(2, 8))
    net = two_layers(lambda x: compiled(x) if len(x.shape) else x)
    with pytest.raises(InputError, match="does something that is no call of a torch function"):
        PermutationSpec.trace(net, torch.randn(2, 3))


def test_writing_items_is_pinned_and_survives_in_the_graph():
    def zero_first(x):
        x = torch.relu(x) if len(x.shape) else x
        x[:, 0] = 0
        return x

    net, x = two_layers(zero_first), torch.randn(2, 3)
    spec = PermutationSpec.trace(net, x)
    assert not spec.groups
    assert any("setitem_) is not understood" in r for r in reasons(spec, "a.weight"))
    assert torch.allclose(capture(net, spec.inputs)(x)[0], net(x))


def test_constants_made_in_the_forward_are_made_anew_in_every_run():
    def counted(x):
        count = torch.zeros(()) if len(x.shape) else None
        count += x.new_ones(()) if x.dim() else 0
        return torch.relu(x) * count

    net, x = two_layers(counted), torch.randn(2, 3)
    graph = capture(net, PermutationSpec.trace(net, x).inputs)
    for _ in range(2):
        assert torch.allclose(graph(x)[0], net(x))


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor | None = None


class Named(nn.Module):
    """Takes its inputs by name and gives a dataclass, as hubs' models do."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, left=None, right=None, scale=1.0, **options):
        hidden = torch.relu(self.a(left) * torch.sigmoid(self.b(right))) * scale
        options.update(done=True)
        return Output(self.c(hidden))


def test_inputs_by_name_are_remembered_by_name():
    net = Named()
    example = {"right": torch.randn(2, 4), "left": torch.randn(2, 3), "scale": 2.0}
    spec = proved(net, example=example)
    assert sizes(spec) == {"a": 6}
    assert spec.inputs.names == ("right", "left", "scale")
    assert spec.inputs.tensor_names == ("right", "left")
    right, left = torch.randn(5, 4), torch.randn(5, 3)
    hidden = torch.relu(net.a(left) * torch.sigmoid(net.b(right))) * 2
    assert torch.allclose(tapped(net, spec)(right, left)["a"], hidden)


def test_the_spec_keeps_its_own_copy_of_the_example():
    x = torch.randn(2, 3)
    spec = PermutationSpec.trace(two_layers(torch.relu), {"x": x})
    kept = x.clone()
    x.zero_()
    assert torch.equal(spec.inputs.values[0], kept)


class Rotary(nn.Module):
    """Attention with rotary positions (Su et al. 2021), two heads of queries to one of keys."""

    def __init__(self, width=16, heads=4, shared=2):
        super().__init__()
        self.each = width // heads
        self.q, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, shared * self.each) for _ in range(2))

    def forward(self, x):
        q, k, v = (
            f(x).view(*x.shape[:-1], -1, self.each).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        angle = torch.arange(x.shape[1])[:, None] * torch.ones(self.each)
        q, k = (t * angle.cos() + self.turned(t) * angle.sin() for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:-1], -1))

    def turned(self, x):
        first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        return torch.cat((-second, first), dim=-1)


def test_heads_with_rotary_positions_move_with_the_queries_that_share_them():
    net = Net(
        lambda n, x: n.h(n.attention(torch.relu(n.a(x)))),
        a=nn.Linear(3, 16), attention=Rotary(), h=nn.Linear(16, 2),
    )  # fmt: skip
    spec = proved(net, 5, 3)
    heads = next(g for g in spec.groups.values() if g.size == 2)
    index = {m.tensor: m.index for m in heads.members if m.axis == 0}
    assert torch.equal(index["attention.k.weight"], torch.arange(8).view(2, 4))
    assert torch.equal(index["attention.q.weight"], torch.arange(16).view(2, 8))


def test_a_layer_as_a_matrix_product_is_understood():
    net = Net(
        lambda n, x: n.b(torch.addmm(n.bias, torch.relu(n.a(x)), n.weight) if x.dim() == 2 else x),
        a=nn.Linear(3, 8), b=nn.Linear(5, 2),
        weight=nn.Parameter(torch.randn(8, 5)), bias=nn.Parameter(torch.randn(5)),
    )  # fmt: skip
    assert sizes(proved(net, 3)) == {"a": 8, "addmm": 5}


@pytest.mark.parametrize("batch_first", [True, False])
def test_torchs_transformer_encoder_is_opened_up(batch_first):
    layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=batch_first)
    net = Net(
        lambda n, x: n.b(n.encoder(n.a(x))),
        a=nn.Linear(3, 8), encoder=nn.TransformerEncoder(layer, 2), b=nn.Linear(8, 2),
    ).eval()  # fmt: skip
    spec = proved(net, 5, 3)
    assert sorted(sizes(spec).values()) == [4, 4, 8, 16, 16]
    other = torch.randn(7, 6, 3)
    moved = permute(spec, random_permutation(spec, torch.Generator()), net.state_dict())
    expected = net(other)
    net.load_state_dict(moved)
    assert (net(other) - expected).abs().max() < 1e-5


def test_torchs_transformer_with_encoder_and_decoder_is_opened_up():
    net = nn.Transformer(8, 4, 1, 1, 16, batch_first=True)
    spec = proved(net, example=(torch.randn(2, 5, 8), torch.randn(2, 4, 8)))
    assert sorted(sizes(spec).values()) == [4, 4, 4, 16, 16]


def test_a_part_under_autocast_is_traced_and_proved():
    def forward(net, x):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = net.a(x)
        return net.b(torch.relu(hidden.float()))

    net = Net(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(5)  # so that its rounding shows
    spec = PermutationSpec.trace(net, torch.randn(2, 3))
    assert sizes(spec) == {"a": 8}
    assert spec.prove(net, torch.randn(2, 3)) < 1e-5


def test_a_size_is_a_number_that_remembers_where_it_comes_from():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    size = Size(6, graph, lambda: graph.call_method("size", (x, 0)))
    for value, number in [(2 * size + 1, 13), (size // 4, 1), (20 // size, 3), (7 - size, 1)]:
        assert isinstance(value, Size)
        assert value == number
    assert not isinstance(size / 4, Size)
    assert type(size * 0.5) is float
    graph.output((2 * size + 1).node)
    assert torch.fx.GraphModule({}, graph)(torch.zeros(10)) == 21
