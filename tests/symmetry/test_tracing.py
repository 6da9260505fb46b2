"""The traced spec of our own models: right groups, right taps, and a check that can go red."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from rebasin_utils.errors import InputError
from rebasin_utils.nets.models import MLP, VGG11, ResNet, build
from rebasin_utils.symmetry.permutation import permute, random_permutation
from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.tracing.taps import tapped

BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


def trace(model: nn.Module, *shape: int, **options) -> PermutationSpec:
    return PermutationSpec.trace(model, torch.randn(2, *shape), **options)


def axes(spec: PermutationSpec) -> dict[str, set]:
    return {name: {(m.tensor, m.axis) for m in g.members} for name, g in spec.groups.items()}


def resnet_by_hand(blocks: int) -> dict[str, set]:
    """The groups of protocol: one inside every block, one residual stream for every stage."""

    def conv_bn(conv: str, bn: str) -> set:
        return {(f"{conv}.weight", 0)} | {(f"{bn}.{n}", 0) for n in BATCH_NORM}

    groups = {}
    streams = [conv_bn("stem.conv", "stem.bn"), set(), set()]
    for stage in range(3):
        for block in range(blocks):
            path = f"stages.{stage}.{block}"
            reads = streams[stage - 1 if block == 0 and stage else stage]
            reads.add((f"{path}.conv1.weight", 1))
            if block == 0 and stage:
                reads.add((f"{path}.shortcut.conv.weight", 1))
                streams[stage] |= conv_bn(f"{path}.shortcut.conv", f"{path}.shortcut.bn")
            streams[stage] |= conv_bn(f"{path}.conv2", f"{path}.bn2")
            inner = conv_bn(f"{path}.conv1", f"{path}.bn1") | {(f"{path}.conv2.weight", 1)}
            groups[f"{path}.conv1"] = inner
    streams[2].add(("classifier.weight", 1))
    names = ("stem.conv", "stages.1.0.conv2", "stages.2.0.conv2")
    return groups | dict(zip(names, streams, strict=True))


@pytest.mark.parametrize("depth", [8, 20])
def test_a_resnet_has_the_groups_that_one_would_write_by_hand(depth):
    spec = trace(ResNet((3, 32, 32), 10, depth=depth), 3, 32, 32)
    assert axes(spec) == resnet_by_hand((depth - 2) // 6)
    for group in spec.groups.values():
        for member in group.members:
            assert torch.equal(member.index, torch.arange(group.size)[:, None])
    if depth == 20:
        assert len(spec.groups) == 12
    assert {(p.tensor, p.reason) for p in spec.pinned} == {
        ("stem.conv.weight", "model input"),
        ("classifier.weight", "model output"),
        ("classifier.bias", "model output"),
    }


@pytest.mark.parametrize(
    ("model", "shape", "groups"),
    [
        (MLP((1, 14, 14), 10), (1, 14, 14), 3),
        (build("resnet8", (1, 14, 14), 10), (1, 14, 14), 6),
        (build("resnet20", (3, 32, 32), 10, width=2), (3, 32, 32), 12),
        (VGG11((3, 32, 32), 10), (3, 32, 32), 8),
        (VGG11((1, 16, 16), 10, batch_norm=True), (1, 16, 16), 8),
    ],
    ids=["mlp", "resnet8", "resnet20x2", "vgg11", "vgg11_bn"],
)
def test_permuting_keeps_the_function_of_our_models(model, shape, groups):
    spec = trace(model, *shape)
    assert len(spec.groups) == groups
    assert spec.check(model, torch.randn(2, *shape)) < 1e-10
    assert spec.prove(model, torch.randn(2, *shape), seed=1) < 1e-10


def test_a_trained_looking_net_computes_the_same_in_float32():
    model = build("resnet8", (1, 14, 14), 10)
    x = torch.randn(16, 1, 14, 14)
    model(x), model(3 * x + 1)  # running statistics away from 0 and 1
    model.eval()
    spec = PermutationSpec.trace(model, x)
    p = random_permutation(spec, torch.Generator().manual_seed(0))
    other = build("resnet8", (1, 14, 14), 10, seed=1).eval()
    other.load_state_dict(permute(spec, p, model.state_dict()))
    before, after = model(x), other(x)
    assert (before - after).abs().max() < 1e-5 * before.abs().max()


def test_leaving_out_any_one_member_turns_the_check_red():
    model, x = build("resnet8", (1, 14, 14), 10), torch.randn(2, 1, 14, 14)
    spec = PermutationSpec.trace(model, x)
    for name, group in spec.groups.items():
        for i in range(len(group.members)):
            members = group.members[:i] + group.members[i + 1 :]
            broken = replace(spec, groups={**spec.groups, name: replace(group, members=members)})
            assert broken.check(model, x) > 1e-3, group.members[i].tensor
    with pytest.raises(InputError, match="does not keep the function of ResNet"):
        broken.prove(model, x)


def test_tying_two_groups_or_moving_outputs_turns_the_check_red():
    model, x = build("mlp", (1, 4, 4), 10), torch.randn(2, 1, 4, 4)
    spec = PermutationSpec.trace(model, x)
    first, second, _ = spec.groups.values()
    mixed = replace(first, members=(first.members[0], first.members[1], second.members[2]))
    assert replace(spec, groups={**spec.groups, first.name: mixed}).check(model, x) > 1e-3
    logits = replace(first.members[0], tensor="classifier.bias", index=torch.arange(10)[:, None])
    moved = replace(first, name="logits", size=10, members=(logits,))
    assert replace(spec, groups={**spec.groups, "logits": moved}).check(model, x) > 1e-3


def test_a_wrong_order_of_pixels_behind_a_flatten_turns_the_check_red():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 5))
    nn.init.constant_(model[0].bias, 3.0)  # a dead unit's pixels may come in any order
    x = torch.randn(2, 3, 3, 3)
    spec = PermutationSpec.trace(model, x)
    group = spec.groups["0"]
    assert torch.equal(group.members[-1].index, torch.arange(36).view(4, 9))
    assert spec.check(model, x) < 1e-10
    index = group.members[-1].index.clone()
    index[0] = index[0].flip(0)
    members = (*group.members[:-1], replace(group.members[-1], index=index))
    assert replace(spec, groups={"0": replace(group, members=members)}).check(model, x) > 1e-3


def test_neither_tracing_nor_checking_nor_tapping_changes_the_model():
    model, x = build("resnet8", (1, 14, 14), 10).train(), torch.randn(2, 1, 14, 14)
    model.stages[1].eval()  # a mixed mode must survive too
    modes = [m.training for m in model.modules()]
    kept, kept_x = copy.deepcopy(model.state_dict()), x.clone()
    random_state = torch.get_rng_state()
    spec = PermutationSpec.trace(model, x)
    spec.check(model, x)
    tapped(model, spec)(x)
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(t, kept[n]) for n, t in model.state_dict().items())
    assert torch.equal(x, kept_x)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_every_tap_is_the_activation_after_the_nonlinearity():
    model, x = build("resnet20", (3, 8, 8), 10).eval(), torch.randn(2, 3, 8, 8)
    spec = PermutationSpec.trace(model, x)
    taps = {name: group.tap.place for name, group in spec.groups.items()}
    assert taps["stem.conv"] == "stages.0.2.relu2"
    assert taps["stages.1.0.conv2"] == "stages.1.2.relu2"
    assert taps["stages.2.0.conv2"] == "stages.2.2.relu2"
    assert taps["stages.1.1.conv1"] == "stages.1.1.relu1"
    seen = {}
    for place in taps.values():
        module = model.get_submodule(place)
        module.register_forward_hook(lambda m, i, o, place=place: seen.update({place: o}))
    model(x)
    for module in model.modules():
        module._forward_hooks.clear()
    for name, matrix in tapped(model, spec)(x).items():
        expected = seen[taps[name]].permute(0, 2, 3, 1).flatten(0, 2)
        assert matrix.shape == (expected.shape[0], spec.groups[name].size)
        assert torch.equal(matrix, expected)


def test_the_released_code_taps_the_last_stream_one_block_early():
    model = build("resnet20", (3, 8, 8), 10)
    usual, released = (trace(model, 3, 8, 8, stream_tap=s) for s in ("last", "released_code"))
    changed = {
        name: released.groups[name].tap.place
        for name in usual.groups
        if usual.groups[name].tap.place != released.groups[name].tap.place
    }
    assert changed == {"stages.2.0.conv2": "stages.2.1.relu2"}
    mlp = trace(MLP((1, 4, 4), 3), 1, 4, 4, stream_tap="released_code")
    assert mlp.groups["layers.linear2"].tap.place == "layers.relu2"
    with pytest.raises(InputError, match="needs two blocks"):
        trace(build("resnet8", (3, 8, 8), 10), 3, 8, 8, stream_tap="released_code")
    with pytest.raises(InputError, match="choose 'last' or 'released_code'"):
        trace(model, 3, 8, 8, stream_tap="first")


def test_a_permuted_net_shows_the_same_activations_in_another_order():
    model = build("vgg11_bn", (3, 16, 16), 10).eval()
    x = torch.randn(3, 3, 16, 16)
    spec = PermutationSpec.trace(model, x[:1])  # another batch size than the one tapped below
    p = random_permutation(spec, torch.Generator().manual_seed(0))
    before = tapped(model, spec)(x)
    other = build("vgg11_bn", (3, 16, 16), 10, seed=1)
    other.load_state_dict(permute(spec, p, model.state_dict()))
    for name, after in tapped(other, spec)(x).items():
        assert torch.allclose(after, before[name][:, p[name]], atol=1e-4)


def test_a_tap_survives_operations_that_overwrite_it():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)
            self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

        def forward(self, x):
            x = torch.relu(self.stem(x))
            for block in self.blocks:
                x = x.add_(block(x))
            return self.head(torch.relu(self.hidden(x)))

    model, x = Stream(), torch.randn(3, 4)
    spec = PermutationSpec.trace(model, x, stream_tap="released_code")
    assert spec.groups["stem"].tap.node == "add_"
    stem = torch.relu(model.stem(x))
    assert torch.equal(tapped(model, spec)(x)["stem"], stem + model.blocks[0](stem))


def test_inputs_that_the_forward_overwrites_stay_as_they_are():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(3, 4)
    kept = x.clone()
    spec = PermutationSpec.trace(model, x)
    assert spec.check(model, x) < 1e-10
    tapped(model, spec)(x)
    assert torch.equal(x, kept)


def test_channels_last_activations_are_tapped_without_a_copy():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    spec = PermutationSpec.trace(model, x)
    matrix = tapped(model, spec)(x)["0"]
    assert matrix.is_contiguous()
    assert matrix._base is not None


def test_a_spec_of_another_architecture_is_refused():
    spec = trace(build("resnet8", (1, 8, 8), 10), 1, 8, 8)
    with pytest.raises(InputError, match=r"MLP has no activation .* another architecture"):
        tapped(MLP((1, 8, 8), 10), spec)
    with pytest.raises(InputError, match="is not in the traced model's state"):
        spec.check(MLP((1, 8, 8), 10), torch.randn(2, 1, 8, 8))


def test_a_net_pruned_with_torch_prune_has_the_spec_of_the_dense_net():
    model, x = build("resnet8", (1, 14, 14), 10), torch.randn(2, 1, 14, 14)
    dense = PermutationSpec.trace(model, x)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    prune.global_unstructured(
        [(m, "weight") for m in convs], pruning_method=prune.L1Unstructured, amount=0.8
    )
    pruned = PermutationSpec.trace(model, x)
    assert axes(pruned) == axes(dense)
    assert pruned.shapes == dense.shapes
    assert dense.check(model, x) < 1e-10
    assert all(hasattr(m, "weight_mask") for m in convs)


def test_the_report_is_readable():
    report = trace(build("resnet20", (3, 8, 8), 10), 3, 8, 8).report()
    assert report.free_share > 0.99
    assert len(report.groups) == 12
    text = str(report)
    assert "12 groups" in text
    assert "stages.2.2.relu2" in text
    assert "model output" in text
