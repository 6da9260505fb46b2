"""Activation matching on whole networks: ResNet50, mixed precision, threads, hooks, ties."""

from __future__ import annotations

import copy
import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune

from rebasin_utils.errors import InputError
from rebasin_utils.landscape.interpolation import lerp, reset_batch_norm
from rebasin_utils.nets import models
from rebasin_utils.nets.data import in_order
from rebasin_utils.symmetry.activations import streamed
from rebasin_utils.symmetry.matching import assign, match_activations, similarities
from rebasin_utils.symmetry.moments import Moments
from rebasin_utils.symmetry.permutation import permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.tracing.taps import tapped
from rebasin_utils.symmetry.weight_matching import match_weights

SHAPE = (1, 14, 14)


def with_state(net: nn.Module, state) -> nn.Module:
    other = copy.deepcopy(net)
    other.load_state_dict(state)
    return other.eval()


def alive(net: nn.Module, batches, seed: int = 0) -> nn.Module:
    """Random batch-norm affine, and running statistics that fit the data."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = 0.5 + torch.rand(module.weight.shape, generator=generator)
            module.bias.data = 0.5 * torch.randn(module.bias.shape, generator=generator)
    return with_state(net, reset_batch_norm(net, net.state_dict(), batches))


def pair(name: str, batches) -> tuple[PermutationSpec, nn.Module, nn.Module]:
    nets = [models.build(name, SHAPE, 10, seed=seed) for seed in (0, 1)]
    spec = PermutationSpec.trace(nets[0], batches[0][:2])
    return spec, *(alive(net, batches, seed) for seed, net in enumerate(nets))


@pytest.fixture(scope="module")
def batches(images) -> list[torch.Tensor]:
    return [x for x, _ in in_order(images, 64)]


# ------------------------------------------------------------------------------------- ResNet50


@pytest.fixture(scope="module")
def resnet50():
    """torchvision's ResNet50, a permuted copy of it, and images: 24 of 64 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = torchvision.models.resnet50()
    generator = torch.Generator().manual_seed(1)
    images = list(torch.randn(24, 3, 64, 64, generator=generator).split(12))
    reference = alive(net, images)
    spec = PermutationSpec.trace(net, images[0][:1])
    planted = random_permutation(spec, generator)
    moving = with_state(net, permute(spec, planted, reference.state_dict()))
    return spec, moving, reference, images


def recovered(spec, p, moving: nn.Module, reference: nn.Module) -> int:
    """How many of the net's parameters are equal to the reference's, bit for bit."""
    moved = permute(spec, p, dict(moving.named_parameters()))
    return sum(torch.equal(moved[n], t) for n, t in reference.named_parameters())


def test_resnet50_is_aligned_to_a_permuted_copy_of_itself(resnet50):
    spec, moving, reference, images = resnet50
    parameters = dict(reference.named_parameters())
    unlike = [n for n, t in moving.named_parameters() if not torch.equal(t, parameters[n])]
    assert len(unlike) >= 160  # all but the classifier's bias
    matching = match_activations(spec, moving, reference, images)
    assert recovered(spec, matching.permutation, moving, reference) == len(parameters) == 161

    moved = permute(spec, matching.permutation, moving.state_dict())
    middle = with_state(moving, lerp(moved, reference.state_dict(), 0.5))
    unmatched = with_state(moving, lerp(moving.state_dict(), reference.state_dict(), 0.5))
    with torch.no_grad():
        end = reference(images[0])
        scale = end.abs().max()
        assert (middle(images[0]) - end).abs().max() < 1e-4 * scale
        assert (unmatched(images[0]) - end).abs().max() > 0.1 * scale


def test_resnet50_is_aligned_by_its_weights_alone(resnet50):
    spec, moving, reference, _ = resnet50
    matching = match_weights(spec, moving.state_dict(), reference.state_dict())
    assert recovered(spec, matching.permutation, moving, reference) == 161
    assert matching.objective == pytest.approx(matching.norms, rel=1e-6)


# ----------------------------------------------------------------- one pass is as good as many


@pytest.mark.parametrize("name", ["mlp", "resnet8", "vgg11_bn"])
def test_one_pass_matches_as_well_as_a_pass_per_layer(name):
    """The released procedure: every group on its own, float64, the net run as far as its layer."""
    shape = (1, 16, 16)
    nets = [models.build(name, shape, 10, seed=seed) for seed in (0, 1)]
    batches = list(torch.randn(96, *shape, generator=torch.Generator().manual_seed(0)).split(32))
    spec = PermutationSpec.trace(nets[0], batches[0][:2])
    moving, reference = (alive(net, batches, seed) for seed, net in enumerate(nets))
    matching = match_activations(spec, moving, reference, batches)
    for group, units in spec.groups.items():
        part = replace(spec, groups={group: units})
        of_moving, of_reference = (
            torch.cat([run(x)[group] for x in batches]).double().T.numpy()
            for run in (tapped(net, part) for net in (moving, reference))
        )
        with np.errstate(invalid="ignore"):
            whole = np.corrcoef(of_reference, of_moving)[: units.size, units.size :]
        _, quality = assign(np.nan_to_num(whole), 0, group)
        found = np.nan_to_num(whole)[np.arange(units.size), matching.permutation[group]].mean()
        assert found == pytest.approx(quality.after, abs=1e-6)
        assert matching.groups[group].after == pytest.approx(quality.after, abs=1e-6)


# ---------------------------------------------------- what must not matter, and must not change


@pytest.mark.parametrize("dtypes", [("float64", "float32"), ("float32", "bfloat16")])
def test_nets_of_different_precision_are_matched(dtypes, batches):
    spec, net, _ = pair("resnet8", batches)
    planted = random_permutation(spec, torch.Generator().manual_seed(0))
    moving = with_state(net, permute(spec, planted, net.state_dict()))
    moving, reference = (
        copy.deepcopy(n).to(getattr(torch, t)) for n, t in zip((moving, net), dtypes, strict=True)
    )
    matching = match_activations(spec, moving, reference, batches)
    wrong = sum(
        int((planted[n][p] != torch.arange(len(p))).sum()) for n, p in matching.permutation.items()
    )
    assert wrong == 0
    assert all(p.dtype == torch.int64 for p in matching.permutation.values())


def with_ties(net: nn.Module) -> nn.Module:
    """A copy of an MLP whose second layer has 6 dead units that nothing tells apart, and 6 that act
    alike."""
    net = copy.deepcopy(net)
    linear = net.layers.linear1
    with torch.no_grad():
        net.layers.linear2.weight[:, 3:9] = 0.0
        linear.weight[3:9], linear.bias[3:9] = 0.0, -1.0
        linear.weight[20:26], linear.bias[20:26] = (
            linear.weight[20].clone(),
            linear.bias[20].clone(),
        )
    return net


def test_ties_are_broken_alike_for_any_number_of_threads(batches):
    spec, moving, reference = pair("mlp", batches)
    moving, reference = (with_ties(net) for net in (moving, reference))
    found = []
    for threads, data in ((1, batches), (2, batches), (1, batches[::-1]), (2, batches[::-1])):
        torch.set_num_threads(threads)
        try:
            found.append(match_activations(spec, moving, reference, data).permutation)
        finally:
            torch.set_num_threads(1)
    for p in found[1:]:
        assert all(torch.equal(p[n], q) for n, q in found[0].items())
    dead = found[0]["layers.linear1"][3:9].tolist()
    assert dead == sorted(dead)


def test_two_threads_match_a_residual_net_like_one(batches):
    spec, moving, reference = pair("resnet8", batches)
    one = match_activations(spec, moving, reference, batches)
    torch.set_num_threads(2)
    try:
        two = match_activations(spec, moving, reference, batches)
    finally:
        torch.set_num_threads(1)
    for n, p in one.permutation.items():
        assert torch.equal(p, two.permutation[n])
        assert one.groups[n].after == pytest.approx(two.groups[n].after, abs=1e-6)


def test_nets_keep_their_tensors_mode_layout_and_hooks(batches):
    spec, moving, reference = pair("resnet8", batches)
    moving.train()
    tensors = {
        n: (t, t.clone(), t.stride(), t.requires_grad)
        for net in (moving, reference)
        for n, t in [(f"{id(net)}.{n}", t) for n, t in net.state_dict(keep_vars=True).items()]
    }
    match_activations(spec, moving, reference, batches)
    assert moving.training
    assert not reference.training
    for net in (moving, reference):
        for n, t in net.state_dict(keep_vars=True).items():
            kept, value, stride, grad = tensors[f"{id(net)}.{n}"]
            assert t is kept
            assert torch.equal(t, value)
            assert t.stride() == stride
            assert t.requires_grad == grad
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.is_grad_enabled()


def test_labels_in_the_batches_are_passed_over(images, batches):
    spec, moving, reference = pair("mlp", batches)
    with_labels = similarities(spec, moving, reference, in_order(images, 64))
    without = similarities(spec, moving, reference, batches)
    assert all(np.array_equal(with_labels[n][0], without[n][0]) for n in spec.groups)


@pytest.mark.parametrize("setting", ["medium", "autocast"])
def test_what_the_caller_allows_for_training_does_not_reach_the_moments(setting):
    b, a = torch.randn(2, 1000, 8, generator=torch.Generator().manual_seed(0))
    backends = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    results = []
    for allowed in (False, True):
        torch.set_float32_matmul_precision("medium" if allowed else "highest")
        inside = [backend.fp32_precision for backend in backends]
        collected = Moments("correlation", "pooled")
        try:
            with torch.autocast("cpu", torch.bfloat16, enabled=allowed and setting == "autocast"):
                collected.add(b, a)
            assert [backend.fp32_precision for backend in backends] == inside
        finally:
            torch.set_float32_matmul_precision("highest")
        results.append(collected.similarity()[0])
    assert np.array_equal(*results)


def test_memory_does_not_grow_with_the_data(batches):
    """Nothing of a batch is kept, and what is kept has one size."""
    generator = torch.Generator().manual_seed(0)
    collected, sizes = Moments("correlation", "pooled"), set()
    for _ in range(40):
        collected.add(*torch.randn(2, 1000, 12, generator=generator))
        tensors = [t for v in vars(collected).values() if isinstance(v, list) for t in v]
        sizes.add(sum(t.numel() for t in tensors))
    assert max(sizes) <= 2 * 12 + 2 * (12 * 12 + 4 * 12)

    spec, moving, reference = pair("resnet8", batches)
    at_each_batch = []

    def counted():
        for x in batches:
            at_each_batch.append(numbers_in_memory())
            yield x

    match_activations(spec, moving, reference, counted())
    assert max(at_each_batch[1:]) <= at_each_batch[1] + 4 * batches[0].numel()


def numbers_in_memory() -> int:
    """Of all floating-point tensors that Python knows; views count again."""
    gc.collect()
    tensors = (t for t in gc.get_objects() if issubclass(type(t), torch.Tensor))
    return sum(t.numel() for t in tensors if t.is_floating_point())


def test_an_activation_is_not_kept_once_the_net_is_past_it(batches):
    spec, net, _ = pair("resnet8", batches)
    stream = streamed(net, spec)
    before, sizes, kept = numbers_in_memory(), [], []
    for _, matrix in stream(batches[0]):
        sizes.append(matrix.numel())
        kept.append(numbers_in_memory() - before)
    assert sizes[0] == max(sizes) > 3 * sizes[-1]
    assert kept[-1] < sizes[0]
    del matrix
    assert numbers_in_memory() - before < sizes[-1]


# ------------------------------------------------------------------- activations, made for speed


def pruned(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", 0.5)
    return net


class Overwrites(nn.Module):
    """The released code's tap of its stream is written over: by adding to the stream in place."""

    def __init__(self):
        super().__init__()
        self.stem, self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

    def forward(self, x):
        x = torch.relu_(self.stem(x.relu_()))
        for block in self.blocks:
            x = x.add_(block(x))
        return self.head(torch.relu(self.hidden(x)))


class Shares(nn.Module):
    """Batch norms' results that may not be overwritten: one goes into a ReLU with its own hook,
    one is used twice, and one is too small for the sum."""

    def __init__(self):
        super().__init__()
        self.hooked, self.twice, self.small = (
            nn.Sequential(nn.Conv2d(c, 6, 1), nn.BatchNorm2d(6)) for c in (1, 6, 6)
        )
        self.relu, self.head = nn.ReLU(), nn.Conv2d(6, 2, 1)
        self.relu.register_forward_hook(lambda module, inputs, output: output + inputs[0])

    def forward(self, x):
        x = self.twice(self.relu(self.hooked(x)))
        x = torch.relu(x) + x
        return self.head(self.small(x.mean((2, 3), keepdim=True)) + x)


def test_what_a_convolution_gives_can_be_looked_at_before_its_relu():
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    x = torch.randn(2, 1, 8, 8)
    spec = PermutationSpec.trace(net, x)
    ((name, group),) = spec.groups.items()
    assert group.tap.node == "_1"
    earlier = replace(spec, groups={name: replace(group, tap=replace(group.tap, node="_0"))})
    ((_, matrix),) = streamed(net, earlier)(x)
    torch.testing.assert_close(matrix, net[0](x).movedim(1, -1).flatten(0, -2))


NETS = {
    "resnet8": lambda: models.build("resnet8", SHAPE, 10),
    "pruned": lambda: pruned(models.build("resnet8", SHAPE, 10)),
    "overwrites": Overwrites,
    "shares": Shares,
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(),
    "mobilenet": lambda: torchvision.models.mobilenet_v3_small(),
}


@pytest.mark.parametrize("name", NETS)
def test_the_fast_copy_shows_what_the_net_itself_does(name):
    """Channels last, batch norms folded, one activation at a time: rounding error and no more."""
    torch.manual_seed(0)
    net = NETS[name]()
    shapes = {"overwrites": (4,), "shufflenet": (3, 64, 64), "mobilenet": (3, 64, 64)}
    x = torch.randn(4, *shapes.get(name, SHAPE))
    kept = x.clone()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    spec = PermutationSpec.trace(net, x, "released_code" if name == "overwrites" else "last")
    expected = tapped(net, spec)(x)
    found = {n: matrix.clone() for n, matrix in streamed(net, spec)(x)}
    assert torch.equal(x, kept)
    assert found.keys() == expected.keys()
    for n, matrix in expected.items():
        assert (found[n] - matrix).abs().max() <= 1e-5 * matrix.abs().max()
    assert np.mean([bool(matrix.any()) for matrix in expected.values()]) > 0.9


VALUES = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("tensor", ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean",
                                    "1.running_var", "3.weight", "3.bias", "x"])  # fmt: skip
def test_the_fast_copy_shows_nan_and_infinity_where_the_net_does(tensor, value):
    """Of two convolutions the first has a batch norm; both have a ReLU."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)),
    ).eval()
    x = torch.randn(4, 2, 8, 8)
    spec = PermutationSpec.trace(net, x)
    with torch.no_grad():
        (net.state_dict() | {"x": x})[tensor].flatten()[1] = value
    expected = tapped(net, spec)(x)
    for name, matrix in streamed(net, spec)(x):
        torch.testing.assert_close(matrix, expected[name], equal_nan=True, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", ["correlation", "covariance", "inner_product"])
@pytest.mark.parametrize("broken", ["moving", "reference"])
def test_a_unit_that_is_not_finite_is_refused_even_where_all_of_the_other_net_is_dead(
    broken, objective
):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
    x = torch.randn(8, 2, 8, 8)
    spec = PermutationSpec.trace(net, x)
    wrong, dead = (copy.deepcopy(net) for _ in range(2))
    with torch.no_grad():
        wrong[0].weight[3, 0, 1, 1] = float("nan")
        dead[0].weight.zero_()
    for other in (net, dead):
        pair = (wrong, other) if broken == "moving" else (other, wrong)
        with pytest.raises(InputError, match="not finite"):
            match_activations(spec, *pair, [x], objective=objective)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "corr"}, "objective = 'corr'"),
        ({"std": "batch"}, "std = 'batch'"),
        ({"batches": torch.zeros(4, *SHAPE)}, "one tensor"),
        ({"reference": models.build("resnet8", SHAPE, 10)}, "another architecture"),
    ],
)
def test_what_cannot_be_matched_is_refused_in_one_sentence(arguments, message):
    net = models.build("mlp", SHAPE, 10)
    spec = PermutationSpec.trace(net, torch.zeros(2, *SHAPE))
    given = {"reference": net, "batches": [torch.randn(4, *SHAPE)]} | arguments
    with pytest.raises(InputError, match=message) as error:
        match_activations(spec, net, **given)
    assert "\n" not in str(error.value)
