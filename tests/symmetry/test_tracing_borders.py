"""What cannot be traced or judged is said in one true sentence; the user's model stays as it is."""

import copy
import warnings

import pytest
import torch
from test_tracing_structures import Net, proved, reasons, sizes
from torch import nn
from torchvision.models import googlenet

from rebasin_utils.errors import InputError
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.tracing.taps import tapped


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


def refused(call, *args) -> str:
    with pytest.raises(InputError) as error:
        call(*args)
    sentence = str(error.value)
    assert "\n" not in sentence
    return sentence


# -------- examples and models that cannot be


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (torch.randn(2, 4), "Sequential does not run on this example: .*2x4 and 3x8"),
        (torch.randn(0, 3), r"example has shape \(0, 3\): give one sample or more"),
        ((), "example holds no tensor"),
        ({"x": None}, "example holds no tensor"),
        ({"images": torch.randn(2, 3)}, "unexpected keyword argument 'images'"),
        ("images", "example is a str: give a tensor, a tuple .* or a dict of them by name"),
        ({1: torch.randn(2, 3)}, "example is a dict: give"),
    ],
)
def test_an_example_that_does_not_fit_is_named(example, words):
    for call in (PermutationSpec.trace, PermutationSpec.trace(small(), torch.randn(2, 3)).check):
        with pytest.raises(InputError, match=words):
            call(small(), example)


def test_the_number_of_a_models_inputs_may_be_wrong():
    sentence = refused(PermutationSpec.trace, small(), (torch.randn(2, 3), torch.randn(2, 3)))
    assert "Sequential does not run on this example" in sentence


def averaged(net):
    return torch.optim.swa_utils.AveragedModel(net)


class OptimizedModule(nn.Module):
    """Like the wrapper that `torch.compile` gives, whose import takes seconds."""

    __module__ = "torch._dynamo.eval_frame"

    def __init__(self, net):
        super().__init__()
        self._orig_mod = net

    def forward(self, x):
        return self._orig_mod(x)


@pytest.mark.parametrize("wrap", [nn.DataParallel, averaged, OptimizedModule])
@pytest.mark.parametrize("inside", [True, False])
def test_a_wrapper_is_named_with_the_way_to_its_network(wrap, inside):
    net = nn.Sequential(wrap(small()), nn.ReLU()) if inside else wrap(small())
    name = "_orig_mod" if wrap is OptimizedModule else "module"
    where = "model.0" if inside else "model"
    sentence = refused(PermutationSpec.trace, net, torch.randn(2, 3))
    assert sentence.startswith(f"{where} is a ")
    assert sentence.endswith(f"give the Sequential inside, {where}.{name}")


def test_a_model_that_is_compiled_in_place_is_traced_as_it_is():
    net = small()
    net.compile()
    assert sizes(proved(net, 3)) == {"0": 8}
    assert net._compiled_call_impl is not None


@pytest.mark.filterwarnings("ignore")
def test_scripted_and_quantised_networks_are_named():
    x = torch.randn(2, 3)
    for net in (torch.jit.script(small()), torch.jit.trace(small(), x)):
        assert "model is a TorchScript module" in refused(PermutationSpec.trace, net, x)
    net = nn.Sequential(nn.Linear(3, 4), torch.jit.script(nn.ReLU()), nn.Linear(4, 2))
    assert "model.1 is a TorchScript module" in refused(PermutationSpec.trace, net, x)
    net = torch.ao.quantization.quantize_dynamic(small(), {nn.Linear})
    assert "model.0 is a quantised Linear" in refused(PermutationSpec.trace, net, x)


def test_what_is_not_a_module_is_named():
    state = small().state_dict()
    assert "model is a OrderedDict" in refused(PermutationSpec.trace, state, torch.randn(2, 3))


# -------- proofs that compare nothing


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (lambda x, y: y.argmax(1), "no output of Net holds real numbers"),
        (lambda x, y: None, "no output of Net holds real numbers"),
        (lambda x, y: y.shape, "no output of Net holds real numbers"),
        (lambda x, y: x, "hardly depend on what the groups move"),
        (lambda x, y: torch.ones(3), "hardly depend on what the groups move"),
        (lambda x, y: y[:, :1].softmax(1), "hardly depend on what the groups move"),
        (lambda x, y: torch.sigmoid(y + 1e4), "hardly depend on what the groups move"),
        (lambda x, y: y[:0], "cannot judge an output whose largest entry is 0"),
        (lambda x, y: y / 0, "cannot judge an output whose largest entry is inf"),
    ],
)
def test_outputs_that_can_tell_nothing_prove_nothing(last, words):
    net = Net(lambda n, x: last(x, n.seq(x)), seq=small())
    spec = PermutationSpec.trace(Net(lambda n, x: n.seq(x), seq=small()), torch.randn(2, 3))
    for call in (spec.check, spec.prove):
        with pytest.raises(InputError, match=words):
            call(net, torch.randn(2, 3))


def test_a_spec_without_groups_proves_nothing():
    net = nn.Sequential(nn.Linear(3, 2))
    spec = PermutationSpec.trace(net, torch.randn(2, 3))
    assert "nothing to move" in refused(spec.check, net, torch.randn(2, 3))
    assert "nothing to move" in refused(spec.prove, net, torch.randn(2, 3))


def test_an_output_that_is_no_number_after_permuting_is_red():
    runs = []

    def forward(net, x):
        runs.append(len(runs))
        return net.seq(x) if runs[-1] == 0 else net.seq(x) * float("nan")

    spec = PermutationSpec.trace(Net(lambda n, x: n.seq(x), seq=small()), torch.randn(2, 3))
    assert spec.check(Net(forward, seq=small()), torch.randn(2, 3)) == float("inf")
    runs.clear()
    assert "changes its output by inf" in refused(
        spec.prove, Net(forward, seq=small()), torch.randn(2, 3)
    )


# -------- the user's model


class Writing(nn.Module):
    """Writes into itself wherever a module can."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 6, max_norm=0.1)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("scratch", torch.zeros(8), persistent=False)
        self.seen = torch.zeros(8)

    def forward(self, index):
        self.calls += 1
        hidden = torch.relu(self.a(self.table(index)))
        self.mean.mul_(0.9).add_(hidden.mean((0, 1)), alpha=0.1)
        self.scratch = self.scratch + 1
        self.seen.add_(1)
        return self.b(hidden).mean(1)


def test_a_model_that_writes_into_itself_is_left_alone():
    net, index = Writing().eval(), torch.randint(9, (2, 4))
    kept = copy.deepcopy({**net.state_dict(), "scratch": net.scratch, "seen": net.seen})
    spec = PermutationSpec.trace(net, index)
    assert spec.check(net, index) < 1e-10
    assert sizes(spec) == {"table": 6, "a": 8}
    tapped(net, spec)(index)
    for name, tensor in {**net.state_dict(), "scratch": net.scratch, "seen": net.seen}.items():
        assert torch.equal(tensor, kept[name]), name


def test_copies_keep_which_tensors_share_memory():
    net = Net(lambda n, x: n.b(n.a(x)), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    base = torch.randn(40)
    net.a.weight = nn.Parameter(base[:24].view(6, 4))
    net.b.weight = nn.Parameter(base[20:32].view(2, 6))
    spec = PermutationSpec.trace(net, torch.randn(2, 4))
    assert reasons(spec, "a.weight") == {"b.weight and a.weight share memory in part"}


# -------- heads that only training uses


class Headed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(3, 8), nn.Linear(8, 2), nn.Linear(8, 4)

    def forward(self, x):
        hidden = torch.relu(self.a(x))
        return (self.b(hidden), self.aux(hidden)) if self.training else self.b(hidden)


def test_a_head_that_only_training_uses_is_named_once():
    with pytest.warns(UserWarning, match="does not use aux.weight, aux.bias in eval") as caught:
        spec = PermutationSpec.trace(Headed(), torch.randn(2, 3))
    assert len(caught) == 1
    report = spec.report()
    assert report.unused == ("aux.weight", "aux.bias")
    assert "never moved: aux.weight, aux.bias" in str(report)
    assert "never moved: aux.weight, aux.bias" in report._repr_html_()


def test_googlenets_auxiliary_heads_are_named():
    with pytest.warns(UserWarning, match=r"aux1\.conv\.conv\.weight, .* and \d+ more"):
        spec = PermutationSpec.trace(googlenet(init_weights=False), torch.randn(2, 3, 64, 64))
    assert {name.split(".")[0] for name in spec.report().unused} == {"aux1", "aux2"}


def test_a_net_that_uses_all_it_has_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec = PermutationSpec.trace(small(), torch.randn(2, 3))
    assert spec.report().unused == ()
    assert "never moved" not in str(spec.report())
