"""Random small architectures: the function is kept, or the model refused; never wrong.

Hypothesis draws a program, a list of (operation, two numbers); the net runs it over a growing list
of activations, so that branches, joins, module reuse and dead ends come up by themselves. Among the
operations are traps for a tracer that goes by names or shapes: slices that go different ways,
shuffles, transposed flattens, norms over part of the channels, softmax over channels.
"""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from torch import nn

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.spec import PermutationSpec

SIDE = 4


class Program(nn.Module):
    """Runs `steps` on [batch, channels, height, width]; every step adds one activation."""

    def __init__(self, steps: list[tuple[str, int, int]], hidden: int = 6):
        super().__init__()
        self.layers = nn.ModuleList()
        self.steps = []
        self.shapes = [(3, SIDE, SIDE)]
        self._add("conv", 0, 0)  # so that step 1 on work on hidden channels
        for name, i, j in steps:
            self._add(name, i % (len(self.shapes) - 1) + 1, j)
        c, h, w = self.shapes[-1]
        self.hidden, self.head = nn.Linear(c * h * w, hidden), nn.Linear(hidden, 3)

    def _add(self, name: str, at: int, number: int) -> None:
        """Append an operation on activation `at` where its shape allows; else nothing."""
        made = OPERATIONS[name](self, self.shapes, at, number)
        if made is not None:
            self.steps.append(made)
            with torch.no_grad():
                shape = tuple(self.activations(torch.zeros(2, *self.shapes[0]))[-1].shape[1:])
            self.shapes.append(shape)

    def layer(self, module: nn.Module) -> int:
        self.layers.append(module)
        return len(self.layers) - 1

    def activations(self, x):
        values = [x]
        for step in self.steps:
            values.append(step(self.layers, values))
        return values

    def forward(self, x):
        return self.head(torch.relu(self.hidden(self.activations(x)[-1].flatten(1))))


def layer(make, allowed=lambda c, n: True):
    """An operation that is one new module, `make(channels, number)`."""

    def operation(net, shapes, at, n):
        c = shapes[at][0]
        if not allowed(c, n) or c * shapes[at][1] > 100:
            return None
        i = net.layer(make(c, n))
        return lambda layers, v: layers[i](v[at])

    return operation


def function(apply, allowed=lambda shape: True):
    """An operation without weights, `apply(activation, number)`."""

    def operation(net, shapes, at, n):
        return (lambda layers, v: apply(v[at], n)) if allowed(shapes[at]) else None

    return operation


def binary(apply, fits):
    """An operation on two activations, the second chosen among those whose shape fits."""

    def operation(net, shapes, at, n):
        others = [i for i, s in enumerate(shapes) if fits(shapes[at], s)]
        if not others or shapes[at][0] > 16:
            return None
        other = others[n % len(others)]
        return lambda layers, v: apply(v[at], v[other])

    return operation


def broadcast(a, b):
    return b[0] in (1, a[0]) and b[1:] in ((1, 1), a[1:])


def reuse(net, shapes, at, n):
    """A module that is in use already, once more."""
    fits = [
        i for i, m in enumerate(net.layers) if isinstance(m, nn.Conv2d)
        and m.in_channels == shapes[at][0]
    ]  # fmt: skip
    if not fits:
        return None
    i = fits[n % len(fits)]
    return lambda layers, v: layers[i](v[at])


def squeeze_excite(net, shapes, at, n):
    c = shapes[at][0]
    down, up = net.layer(nn.Conv2d(c, 3, 1)), net.layer(nn.Conv2d(3, c, 1))

    def run(layers, v):
        gate = torch.relu(layers[down](F.adaptive_avg_pool2d(v[at], 1)))
        return v[at] * torch.sigmoid(layers[up](gate))

    return run


def flatten_linear(net, shapes, at, n):
    c, h, w = shapes[at]
    i = net.layer(nn.Linear(c * h * w, 4 + n % 3))
    return lambda layers, v: layers[i](v[at].flatten(1))[:, :, None, None]


def unflatten(net, shapes, at, n):
    c, h, w = shapes[at]
    i = net.layer(nn.Linear(c * h * w, 4 * h * w))
    return lambda layers, v: layers[i](v[at].flatten(1)).view(-1, 4, h, w)


def attention(net, shapes, at, n):
    c, h, w = shapes[at]
    if c % 2:
        return None
    i = net.layer(nn.MultiheadAttention(c, 2, batch_first=True))

    def run(layers, v):
        tokens = v[at].flatten(2).transpose(1, 2)
        mixed = layers[i](tokens, tokens, tokens, need_weights=bool(n % 2))[0]
        return mixed.transpose(1, 2).reshape(-1, c, h, w)

    return run


def layer_norm(net, shapes, at, n):
    i = net.layer(nn.LayerNorm(shapes[at][0]))
    return lambda layers, v: layers[i](v[at].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def two_ways(net, shapes, at, n):
    """Parts of the channels take different ways and come back in another order."""
    c, h, w = shapes[at]
    if c < 2:
        return None
    k, way = 1 + n % (c - 1), n % (4 if h == w else 3)

    def run(layers, v):
        first, second = v[at][:, :k], v[at][:, k:]
        if way == 0:
            first, second = torch.relu(first), torch.tanh(second)
        elif way == 1:
            first, second = second, first
        elif way == 2:
            second = second.flip(3)
        else:
            second = second.transpose(2, 3)
        return torch.cat([first, second], 1)

    return run


def shuffle(x, n):
    b, c, h, w = x.shape
    return x.reshape(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)


def even(shape):
    return shape[0] % 2 == 0


def small(shape):
    return 1 < shape[0] <= 8


OPERATIONS = {
    "conv": layer(lambda c, n: nn.Conv2d(c, (4, 6, 8)[n % 3], 1 + 2 * (n % 2), padding=n % 2)),
    "depthwise": layer(lambda c, n: nn.Conv2d(c, c * (1 + n % 2), 3, padding=1, groups=c)),
    "grouped": layer(
        lambda c, n: nn.Conv2d(c, (4, 6)[n % 2], 1, groups=2), lambda c, n: c % 2 == 0
    ),
    "batch_norm": layer(lambda c, n: nn.BatchNorm2d(c)),
    "group_norm": layer(lambda c, n: nn.GroupNorm((1, 2, c)[n % 3], c), lambda c, n: c % 2 == 0),
    "layer_norm": layer_norm,
    "relu": layer(lambda c, n: nn.ReLU(inplace=bool(n % 2))),
    "prelu": layer(lambda c, n: nn.PReLU(c)),
    "add": binary(lambda a, b: a + b, broadcast),
    "multiply": binary(lambda a, b: a * b, broadcast),
    "cat": binary(lambda a, b: torch.cat([a, b], 1), lambda a, b: a[1:] == b[1:] and b[0] <= 16),
    "pool": function(lambda x, n: F.avg_pool2d(x, 2), lambda s: min(s[1:]) > 1),
    "mean": function(lambda x, n: x.mean((2, 3), keepdim=True)),
    "channel_mean": function(lambda x, n: x.mean(1, keepdim=True)),
    "softmax": function(lambda x, n: x.softmax(1)),
    "half_softmax": function(lambda x, n: x.unflatten(1, (2, -1)).softmax(2).flatten(1, 2), even),
    "pick": function(lambda x, n: x[:, n % x.shape[1]][:, None] * x),
    "two_ways": two_ways,
    "shuffle": function(shuffle, even),
    "pad": function(lambda x, n: F.pad(x, (0, 0, 0, 0, 1, 2)), small),
    "roll": function(lambda x, n: x.roll(1, 1 + n % 2)),
    "swap": function(lambda x, n: x.transpose(1, 3), lambda s: s[0] <= 8),
    "gram": function(lambda x, n: (x.flatten(2) @ x.flatten(2).transpose(1, 2))[..., None], small),
    "reuse": reuse,
    "squeeze_excite": squeeze_excite,
    "flatten_linear": flatten_linear,
    "unflatten": unflatten,
    "attention": attention,
}

PLAIN = ["conv", "batch_norm", "relu", "add", "cat", "pool", "depthwise", "squeeze_excite"]


def programs(names, most):
    step = st.tuples(st.sampled_from(sorted(names)), st.integers(0, 30), st.integers(0, 30))
    return st.lists(step, min_size=1, max_size=most)


def judge(steps) -> PermutationSpec | None:
    """The spec of a program, after it kept the function twice if it moves anything, or None."""
    torch.manual_seed(0)
    net, x = Program(steps).eval(), torch.randn(2, 3, SIDE, SIDE)
    try:
        spec = PermutationSpec.trace(net, x)
    except InputError:
        return None
    for seed in range(2) if spec.groups else ():
        assert spec.check(net, x, seed) < 1e-8
    return spec


quick = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@quick
@given(programs(OPERATIONS, 12))
def test_any_program_keeps_its_function_or_is_refused(steps):
    event("refused" if judge(steps) is None else "kept")


@quick
@given(programs([*PLAIN, "flatten_linear"], 10))
def test_plain_programs_are_understood_and_have_free_groups(steps):
    spec = judge(steps)
    assert spec is not None
    assert not any("understood" in p.reason or "shape" in p.reason for p in spec.pinned)
    assert any(group.name == "hidden" and group.size == 6 for group in spec.groups.values())


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_each_operation_alone_keeps_the_function(name):
    for number in range(4):
        spec = judge([("batch_norm", 0, 0), (name, 1, number), ("relu", 2, 0)])
        assert spec is not None
        assert spec.groups
