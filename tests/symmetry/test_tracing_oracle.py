"""An independent witness: the same channels are tied as in Torch-Pruning's dependency graph.

Torch-Pruning (Fang et al. 2023) finds out which channels must be removed together, by walking the
autograd graph; we find out which must move together, by walking the torch.fx graph. For one output
channel of every convolution and linear layer the two sets of (tensor, axis, position) are compared.

Where they differ, and why:
* Grouped convolutions that are not depthwise (ResNeXt, RegNet): to permute, a whole group of the
  convolution must move as one block; to prune, one channel of a group may go. Theirs is a part of
  ours.
* Bare parameters (ConvNeXt's layer scale, ViT's class token and position embedding): Torch-Pruning
  must be told of them by hand; we follow them.
* Attention: `nn.MultiheadAttention` is one module to Torch-Pruning, whose heads and width go
  together; we open it up. Its own tensors are left out here.
* ShuffleNetV2 is not compared: Torch-Pruning 1.6 fails on its channel shuffle.
"""

import warnings

import pytest
import torch
import torch_pruning as tp
import torchvision.models as zoo
from test_tracing_torchvision import built, small_vit
from torch import nn

from rebasin_utils.nets import models
from rebasin_utils.symmetry.spec import PermutationSpec

Position = tuple[str, int, int]  # tensor, axis, index


def our_units(spec: PermutationSpec) -> dict[Position, frozenset[Position]]:
    """Every free position, with all that move with it."""
    units = {}
    for group in spec.groups.values():
        for u in range(group.size):
            unit = frozenset((m.tensor, m.axis, int(i)) for m in group.members for i in m.index[u])
            units.update(dict.fromkeys(unit, unit))
    return units


def their_unit(
    graph: tp.DependencyGraph, names: dict[nn.Module, str], layer: nn.Module, channel: int
) -> frozenset[Position]:
    """All that Torch-Pruning would remove together with one output channel of `layer`."""
    if isinstance(layer, nn.Linear):
        remove = tp.prune_linear_out_channels
    elif layer.groups == layer.in_channels > 1:
        remove = tp.prune_depthwise_conv_out_channels
    else:
        remove = tp.prune_conv_out_channels
    unit = set()
    for dependency, channels in graph.get_pruning_group(layer, remove, idxs=[channel]):
        module, name = dependency.target.module, names.get(dependency.target.module)
        if name is None or isinstance(module, nn.MultiheadAttention):
            continue
        reads = "in_channels" in dependency.handler.__name__
        if (
            isinstance(module, nn.Conv2d | nn.Linear)
            and reads
            and getattr(module, "groups", 1) == 1
        ):
            moved = [("weight", 1)]
        else:
            moved = [(n, 0) for n, t in module.named_parameters(recurse=False) if t is not None]
            moved += [(n, 0) for n, t in module.named_buffers(recurse=False) if t.ndim]
        unit |= {(f"{name}.{n}", axis, int(c)) for n, axis in moved for c in channels}
    return frozenset(unit)


def compare(model: nn.Module, side: int, left_out: tuple[str, ...] = ()) -> list:
    """(layer, ours, theirs) for the first and last output channel of every layer that is free."""
    model, x = model.eval(), torch.randn(2, 3, side, side)
    units = our_units(PermutationSpec.trace(model, x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bare parameters
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=x)
    names = {module: name for name, module in model.named_modules()}
    pairs = []
    for layer, name in names.items():
        inside = isinstance(layer, nn.Conv2d | nn.Linear) and "self_attention" not in name
        for channel in (0, layer.weight.shape[0] - 1) if inside else ():
            ours = units.get((f"{name}.weight", 0, channel))
            if ours is not None:
                ours = frozenset(p for p in ours if not any(word in p[0] for word in left_out))
                pairs.append((name, ours, their_unit(graph, names, layer, channel)))
    assert len(pairs) > 3
    return pairs


@pytest.mark.parametrize(
    ("make", "side", "left_out"),
    [
        pytest.param(lambda: models.build("resnet20", (3, 32, 32), 10), 32, (), id="ResNet20"),
        pytest.param(
            lambda: models.build("vgg11_bn", (3, 32, 32), 10), 32, (), id="VGG11-BN-small"
        ),
        pytest.param(zoo.resnet18, 64, (), id="ResNet18"),
        pytest.param(zoo.resnet50, 64, (), id="ResNet50"),
        pytest.param(zoo.vgg11_bn, 32, (), id="VGG11-BN"),
        pytest.param(zoo.mobilenet_v2, 64, (), id="MobileNetV2"),
        pytest.param(zoo.mobilenet_v3_small, 64, (), id="MobileNetV3-S"),
        pytest.param(zoo.efficientnet_b0, 64, (), id="EfficientNet-B0"),
        pytest.param(zoo.densenet121, 64, (), id="DenseNet121"),
        pytest.param(lambda: zoo.googlenet(init_weights=False), 64, (), id="GoogLeNet"),
        pytest.param(zoo.squeezenet1_0, 64, (), id="SqueezeNet"),
        pytest.param(zoo.convnext_tiny, 64, ("layer_scale",), id="ConvNeXt-T"),
        pytest.param(small_vit, 32, ("self_attention", "class_token", "pos_embedding"), id="ViT"),
    ],
)
def test_the_same_channels_are_tied(make, side, left_out):
    for name, ours, theirs in compare(built(make), side, left_out):
        assert ours == theirs, f"{name}: {sorted(ours ^ theirs)[:5]}"


@pytest.mark.parametrize(("make", "layers"), [(zoo.resnext50_32x4d, 2), (zoo.regnet_y_400mf, 3)])
def test_groups_of_a_convolution_move_as_blocks_that_contain_what_pruning_ties(make, layers):
    model = built(make)
    grouped = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
    blocks = 0
    for name, ours, theirs in compare(model, 64):
        if any(tensor.removesuffix(".weight") in grouped for tensor, _, _ in ours):
            assert theirs < ours, name
            blocks += 1
        else:
            assert ours == theirs, f"{name}: {sorted(ours ^ theirs)[:5]}"
    # Two channels of every layer whose outputs are blocks (RegNet's excitation too), in 16 blocks.
    assert blocks == 2 * layers * 16


def test_the_comparison_notices_a_missing_tie():
    model = built(zoo.resnet18).eval()
    pairs = compare(model, 64)
    without = compare(model, 64, left_out=("layer2.0.downsample.1",))
    assert all(ours == theirs for _, ours, theirs in pairs)
    assert any(ours != theirs for _, ours, theirs in without)
