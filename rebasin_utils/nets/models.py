"""The networks of the study, as plain `nn.Module`s that torch.fx can trace.

* `MLP`: the laptop-sized network of the pocket preset; without norm layers, with batch norm or with
  layer norm.
* `ResNet`: the CIFAR ResNet-(6n+2) of the paper (Adnan et al. 2025, Section 4; He et al. 2016,
  Section 4.2) with a width multiplier. Its down-sampling shortcuts are 3x3 convolutions followed
  by batch norm, as in the code the paper's numbers come from, not the usual 1x1 or padding.
* `VGG11`: without batch norm (the paper's) and with.

* the networks of Oh et al. 2025 (`sign_nets`);
* the bottleneck ResNets of ImageNet (`imagenet_nets`).

Every model says in `not_prunable` which weights the paper leaves out of pruning. Nonlinearities are
modules, so that each activation has a name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rebasin_utils.errors import InputError


class MLP(nn.Module):
    """Flatten, then `len(hidden)` ReLU layers and a linear classifier.

    Args:
        image_shape: (channels, height, width) of one input image.
        classes: number of logits.
        hidden: units of each hidden layer.
        width: multiplies every entry of `hidden`.
        norm: put batch norm or layer norm before every ReLU. The linear layer before it has no
            bias then: the norm layer's β is the bias of its units.
    """

    not_prunable: tuple[str, ...] = ()

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        hidden: Sequence[int] = (128, 128, 128),
        width: int = 1,
        norm: Literal["batch", "layer"] | None = None,
    ):
        super().__init__()
        sizes = [image_shape[0] * image_shape[1] * image_shape[2], *(h * width for h in hidden)]
        self.flatten = nn.Flatten()
        self.layers = nn.Sequential()
        for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            self.layers.add_module(f"linear{i}", nn.Linear(fan_in, fan_out, bias=norm is None))
            if norm == "batch":
                self.layers.add_module(f"bn{i}", nn.BatchNorm1d(fan_out))
            elif norm == "layer":
                self.layers.add_module(f"ln{i}", nn.LayerNorm(fan_out))
            self.layers.add_module(f"relu{i}", nn.ReLU())
        self.classifier = nn.Linear(sizes[-1], classes)
        _kaiming_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.layers(self.flatten(images)))


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, plus the shortcut, then ReLU (He et al. 2016, Figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != out_channels:
            self.shortcut.add_module("conv", _conv3x3(in_channels, out_channels, stride))
            self.shortcut.add_module("bn", nn.BatchNorm2d(out_channels))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


class ResNet(nn.Module):
    """CIFAR ResNet of depth 6n+2: a stem, three stages of n basic blocks, pooling, classifier.

    Stage widths are 16w, 32w and 64w. Width 1 at depth 20 has 292,954 parameters for 10 classes.

    Args:
        image_shape: (channels, height, width) of one input image.
        classes: number of logits.
        depth: 8, 14, 20, … (6n+2).
        width: the multiplier w.

    Raises:
        InputError: when `depth` is not 6n+2 with n >= 1.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], classes: int, depth: int = 20, width: int = 1
    ):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InputError(f"depth = {depth}: a CIFAR ResNet has depth 6n+2 (8, 14, 20, 26, …)")
        blocks = (depth - 2) // 6
        channels = [16 * width, 32 * width, 64 * width]
        self.stem = nn.Sequential()
        self.stem.add_module("conv", _conv3x3(image_shape[0], channels[0]))
        self.stem.add_module("bn", nn.BatchNorm2d(channels[0]))
        self.stem.add_module("relu", nn.ReLU())
        self.stages = nn.Sequential()
        in_channels = channels[0]
        for s, out_channels in enumerate(channels):
            stage = nn.Sequential()
            for b in range(blocks):
                stride = 2 if s > 0 and b == 0 else 1
                stage.append(BasicBlock(in_channels, out_channels, stride))
                in_channels = out_channels
            self.stages.append(stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels[-1], classes)
        self.not_prunable = tuple(
            f"{name}.weight"
            for name, module in self.named_modules()
            if ".shortcut." in name and isinstance(module, nn.Conv2d)
        )
        _kaiming_normal(self)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.stages(self.stem(images)))))


class VGG11(nn.Module):
    """VGG11 for small images (Simonyan & Zisserman 2015, column A, with one linear classifier).

    Initialised with PyTorch's defaults, as the released runs are in effect. Needs images of at
    least 32x32, or 16x16, where the last pooling step is left out.

    Args:
        image_shape: (channels, height, width) of one input image.
        classes: number of logits.
        batch_norm: put batch norm after every convolution.
        width: multiplies every channel count.

    Raises:
        InputError: when an image side is below 16 pixels.
    """

    not_prunable: tuple[str, ...] = ()

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        batch_norm: bool = False,
        width: int = 1,
    ):
        super().__init__()
        side = min(image_shape[1:])
        if side < 16:
            raise InputError(f"image side = {side}: VGG11 pools the image away below 16 pixels")
        plan = [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512]
        if side >= 32:
            plan.append("M")
        self.features = nn.Sequential()
        in_channels, i = image_shape[0], 0
        for step in plan:
            if step == "M":
                self.features.add_module(f"pool{i}", nn.MaxPool2d(2))
                continue
            i += 1
            conv = nn.Conv2d(in_channels, step * width, 3, padding=1)
            self.features.add_module(f"conv{i}", conv)
            if batch_norm:
                self.features.add_module(f"bn{i}", nn.BatchNorm2d(step * width))
            self.features.add_module(f"relu{i}", nn.ReLU())
            in_channels = step * width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(in_channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.flatten(self.pool(self.features(images))))


def mlp_bn(image_shape: tuple[int, int, int], classes: int, width: int = 1) -> MLP:
    """`MLP` with batch norm before every ReLU."""
    return MLP(image_shape, classes, width=width, norm="batch")


def mlp_ln(image_shape: tuple[int, int, int], classes: int, width: int = 1) -> MLP:
    """`MLP` with layer norm before every ReLU."""
    return MLP(image_shape, classes, width=width, norm="layer")


def vgg11_bn(image_shape: tuple[int, int, int], classes: int, width: int = 1) -> VGG11:
    """`VGG11` with batch norm after every convolution."""
    return VGG11(image_shape, classes, batch_norm=True, width=width)


def resnet8(image_shape: tuple[int, int, int], classes: int, width: int = 1) -> ResNet:
    """The smallest CIFAR `ResNet`: one block a stage."""
    return ResNet(image_shape, classes, depth=8, width=width)


def resnet20(image_shape: tuple[int, int, int], classes: int, width: int = 1) -> ResNet:
    """The paper's CIFAR `ResNet`: three blocks a stage."""
    return ResNet(image_shape, classes, depth=20, width=width)


def _of(module: str, name: str) -> Callable[..., nn.Module]:
    """A constructor of another module here, imported when it is first called.

    Those modules import torchvision, which takes nearly as long as torch.
    """

    def build(*args: Any, **options: Any) -> nn.Module:
        return getattr(import_module(f"rebasin_utils.nets.{module}"), name)(*args, **options)

    return build


#: name -> constructor(image_shape, classes, width=…); the names that settings accept.
MODELS = {
    "mlp": MLP,
    "resnet8": resnet8,
    "resnet20": resnet20,
    "vgg11": VGG11,
    "vgg11_bn": vgg11_bn,
    "mlp_bn": mlp_bn,
    "mlp_ln": mlp_ln,
    "resnet50_small": _of("sign_nets", "resnet50_small"),
    "mobilenet_v2_small": _of("sign_nets", "mobilenet_v2_small"),
    "mobilenet_v2": _of("sign_nets", "mobilenet_v2"),
    "efficientnet_b0_small": _of("sign_nets", "efficientnet_b0_small"),
    "efficientnet_b0_small_dropout": _of("sign_nets", "efficientnet_b0_small_dropout"),
    "shufflenet_g3": _of("sign_nets", "ShuffleNet"),
    "mlp_mixer": _of("sign_nets", "MlpMixer"),
    "resnet50": _of("imagenet_nets", "resnet50"),
    "resnet14_bottleneck": _of("imagenet_nets", "resnet14_bottleneck"),
}


def build(
    name: str, image_shape: tuple[int, int, int], classes: int, width: int = 1, seed: int = 0
) -> nn.Module:
    """A freshly initialised model; the init depends on `seed` alone.

    Raises:
        InputError: when `name` is not one of `MODELS`.
    """
    if name not in MODELS:
        raise InputError(f"model = {name!r}: choose one of {', '.join(MODELS)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](image_shape, classes, width=width)


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


def _kaiming_normal(model: nn.Module) -> None:
    """He et al. 2015, equation 10 (fan-in, gain sqrt 2); biases keep PyTorch's default."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
