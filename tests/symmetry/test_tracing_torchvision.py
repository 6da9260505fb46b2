"""torchvision's networks, as users bring them: function kept, groups counted, nothing silent.

`python -m pytest -q -s tests/test_tracing_torchvision.py` prints the table.
"""

import time
from collections.abc import Callable

import pytest
import torch
import torchvision.models as zoo
from torch import nn
from torchvision.models.segmentation import fcn_resnet50
from torchvision.models.vision_transformer import VisionTransformer

from rebasin_utils.symmetry.spec import PermutationSpec
from rebasin_utils.symmetry.tracing.taps import tapped

ROWS: list[str] = []


def small_vit() -> nn.Module:
    return VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64)


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """A net without minutes of random initialisation: `check` puts in its own numbers anyway."""
    with pytest.MonkeyPatch.context() as patch:
        for name in dir(nn.init):
            if name.endswith("_") and not name.startswith("_"):
                patch.setattr(nn.init, name, lambda tensor, *_, **__: tensor)
        model = make()
    for tensor in model.state_dict().values():
        tensor.fill_(tensor.ndim < 2)
    return model


# name, constructor, image side, groups, share of channel positions that is free at least
ZOO = [
    ("ResNet18", zoo.resnet18, 64, 12, 0.93),
    ("ResNet50", zoo.resnet50, 64, 37, 0.98),
    ("Wide-ResNet50-2", zoo.wide_resnet50_2, 64, 37, 0.98),
    ("VGG11", zoo.vgg11, 32, 10, 0.96),
    ("VGG11-BN", zoo.vgg11_bn, 32, 10, 0.97),
    ("MobileNetV2", zoo.mobilenet_v2, 64, 25, 0.97),
    ("MobileNetV3-S", zoo.mobilenet_v3_small, 64, 27, 0.95),
    ("MobileNetV3-L", zoo.mobilenet_v3_large, 64, 30, 0.97),
    ("EfficientNet-B0", zoo.efficientnet_b0, 64, 40, 0.98),
    ("ShuffleNetV2", zoo.shufflenet_v2_x1_0, 64, 86, 0.95),
    ("DenseNet121", zoo.densenet121, 64, 120, 0.99),
    # Its auxiliary classifiers do not run in eval mode: pinned as not used.
    ("GoogLeNet", lambda: zoo.googlenet(init_weights=False), 64, 57, 0.75),
    ("SqueezeNet", zoo.squeezenet1_0, 64, 25, 0.82),
    ("ResNeXt50", zoo.resnext50_32x4d, 64, 21, 0.98),
    ("RegNetY-400MF", zoo.regnet_y_400mf, 64, 37, 0.97),
    ("ConvNeXt-T", zoo.convnext_tiny, 64, 22, 0.98),
    ("ViT, small", small_vit, 32, 5, 0.45),
    ("ViT-B/16", zoo.vit_b_16, 224, 25, 0.98),
    ("AlexNet", zoo.alexnet, 64, 7, 0.94),
    # Windowed attention is one opaque call: only the MLPs between are free.
    ("Swin-T", zoo.swin_t, 64, 12, 0.25),
    ("FCN-ResNet50", lambda: fcn_resnet50(weights=None, weights_backbone=None), 64, 38, 0.9),
]


@pytest.fixture(scope="module", autouse=True)
def table():
    yield
    title = f"{'network':16}{'error':>10}{'groups':>8}{'free':>8}{'trace s':>9}{'check s':>9}"
    print("\n" + "\n".join([title, *ROWS]))


@pytest.mark.parametrize(("name", "make", "side", "groups", "free"), ZOO, ids=[z[0] for z in ZOO])
def test_permuting_keeps_the_function(name, make, side, groups, free):
    torch.manual_seed(0)
    model, x = built(make), torch.randn(1 if side > 64 else 2, 3, side, side)
    start = time.perf_counter()
    spec = PermutationSpec.trace(model, x)
    traced = time.perf_counter()
    error = spec.check(model, x)
    checked = time.perf_counter()
    share = spec.report().free_share
    ROWS.append(
        f"{name:16}{error:10.1e}{len(spec.groups):8}{share:8.3f}"
        f"{traced - start:9.2f}{checked - traced:9.2f}"
    )
    assert error < 1e-5
    assert len(spec.groups) == groups
    assert share > free
    assert not [p for p in spec.pinned if "another shape" in p.reason or "called in" in p.reason]


def places(model: nn.Module, side: int = 64) -> dict[str, tuple[str, int]]:
    spec = PermutationSpec.trace(model, torch.randn(2, 3, side, side))
    return {name: (g.tap.place, g.tap.index.shape[1]) for name, g in spec.groups.items()}


def test_taps_stand_where_the_literature_puts_them():
    resnet = places(built(zoo.resnet18))
    assert resnet["conv1"] == ("layer1.1 (relu)", 1) or resnet["conv1"] == ("layer1.1.relu", 1)
    vgg = places(built(zoo.vgg11_bn), 32)
    assert vgg["features.0"] == ("features.2", 1)
    assert vgg["features.25"] == ("features.27", 1)
    resnext = places(built(zoo.resnext50_32x4d))
    assert resnext["layer1.0.conv1"] == ("layer1.0.relu", 4)
    mobile = places(built(zoo.mobilenet_v2))
    assert mobile["features.18.0"] == ("features.18.2", 1)
    vit = places(small_vit(), 32)
    assert vit["conv_proj"] == ("encoder.ln", 1)
    assert vit["encoder.layers.encoder_layer_0.self_attention"][1] == 8


def test_all_taps_of_a_net_come_out_of_one_forward():
    model, x = zoo.shufflenet_v2_x0_5().eval(), torch.randn(2, 3, 64, 64)
    spec = PermutationSpec.trace(model, x)
    calls = []
    model.conv1.register_forward_hook(lambda *_: calls.append(1))
    matrices = tapped(model, spec)(x)
    assert len(calls) == 1
    for name, group in spec.groups.items():
        assert (
            matrices[name].shape[1:]
            == (group.size, *group.tap.index.shape[1:])[: matrices[name].ndim - 1]
        )
