"""The networks of Oh et al. 2025 (A Winning Sign), in their variants for small images.

ResNet50, MobileNetV2 and EfficientNet-B0 are torchvision's, with the strides of their first layers
changed; ShuffleNet with grouped convolutions (Zhang et al. 2018) and MLP-Mixer (Tolstikhin et al.
2021) are in neither torchvision nor, so, timm, and stand here. Inits are PyTorch's and
torchvision's own.

No dropout and no stochastic depth, but for the released code's EfficientNet, which has a dropout of
0.2 (and a stochastic depth that is always off).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision import models as zoo

from rebasin_utils.errors import InputError

Shape = tuple[int, int, int]


def resnet50_small(image_shape: Shape, classes: int, width: int = 1) -> nn.Module:
    """torchvision's ResNet50 with a 3×3 stem of stride 1 and no max-pooling.

    Raises:
        InputError: for another width than 1.
    """
    net = zoo.resnet50(num_classes=_one(width, "resnet50_small", classes))
    net.conv1 = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net


def mobilenet_v2_small(image_shape: Shape, classes: int, width: int = 1) -> nn.Module:
    """torchvision's MobileNetV2 with strides of 1 in the stem and in the second stage.

    width: multiplies the channels, as torchvision's `width_mult`.
    """
    stages = [
        [1, 16, 1, 1],
        [6, 24, 2, 1],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    net = zoo.MobileNetV2(
        num_classes=classes, width_mult=width, inverted_residual_setting=stages, dropout=0.0
    )
    net.features[0][0] = _stem_like(net.features[0][0], image_shape[0])
    return net


def mobilenet_v2(image_shape: Shape, classes: int, width: int = 1) -> nn.Module:
    """torchvision's MobileNetV2 without its dropout, as for ImageNet.

    width: multiplies the channels, as torchvision's `width_mult`.
    """
    net = zoo.MobileNetV2(num_classes=classes, width_mult=width, dropout=0.0)
    if image_shape[0] != 3:
        net.features[0][0] = _stem_like(net.features[0][0], image_shape[0])
    return net


def efficientnet_b0_small(
    image_shape: Shape, classes: int, width: int = 1, dropout: float = 0.0
) -> nn.Module:
    """torchvision's EfficientNet-B0 with a stem of stride 1.

    dropout: of the classifier's inputs.

    Raises:
        InputError: for another width than 1.
    """
    net = zoo.efficientnet_b0(
        num_classes=_one(width, "efficientnet_b0_small", classes),
        stochastic_depth_prob=0.0,
        dropout=dropout,
    )
    net.features[0][0] = _stem_like(net.features[0][0], image_shape[0])
    return net


def efficientnet_b0_small_dropout(image_shape: Shape, classes: int, width: int = 1) -> nn.Module:
    """`efficientnet_b0_small` with the dropout of the code of Oh et al."""
    return efficientnet_b0_small(image_shape, classes, width, dropout=0.2)


class ShuffleUnit(nn.Module):
    """1×1 grouped, shuffled, 3×3 by channel, 1×1 grouped; added to its input, or beside it."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int):
        super().__init__()
        made = outputs - inputs if stride == 2 else outputs
        middle = outputs // 4
        first = 1 if inputs == 24 else groups  # the stem is too narrow to be grouped
        self.conv1 = nn.Conv2d(inputs, middle, 1, groups=first)
        self.bn1 = nn.BatchNorm2d(middle)
        self.relu1 = nn.ReLU()
        self.shuffle = nn.ChannelShuffle(first)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, groups=middle)
        self.bn2 = nn.BatchNorm2d(middle)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(middle, made, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(made)
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.relu1(self.bn1(self.conv1(x))))
        y = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(y)))))
        if self.shortcut is None:
            return self.relu3(y + x)
        return self.relu3(torch.cat([y, self.shortcut(x)], dim=1))


class ShuffleNet(nn.Module):
    """ShuffleNet with three groups: stages of 4, 8 and 4 units of 240, 480 and 960 channels."""

    not_prunable: tuple[str, ...] = ()

    def __init__(self, image_shape: Shape, classes: int, width: int = 1, groups: int = 3):
        super().__init__()
        self.stem = nn.Conv2d(image_shape[0], 24, 1)
        self.bn = nn.BatchNorm2d(24)
        self.relu = nn.ReLU()
        self.stages = nn.Sequential()
        channels = 24
        for outputs, units in ((240, 4), (480, 8), (960, 4)):
            for unit in range(units):
                stride = 1 if unit else 2
                self.stages.append(ShuffleUnit(channels, outputs * width, stride, groups))
                channels = outputs * width
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(self.relu(self.bn(self.stem(images))))
        return self.classifier(self.flatten(self.pool(x)))


class MixerBlock(nn.Module):
    """Mixes the tokens of every channel, then the channels of every token."""

    def __init__(self, tokens: int, channels: int, of_tokens: int, of_channels: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.tokens1 = nn.Linear(tokens, of_tokens)
        self.gelu1 = nn.GELU()
        self.tokens2 = nn.Linear(of_tokens, tokens)
        self.norm2 = nn.LayerNorm(channels)
        self.channels1 = nn.Linear(channels, of_channels)
        self.gelu2 = nn.GELU()
        self.channels2 = nn.Linear(of_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x).transpose(1, 2)
        x = x + self.tokens2(self.gelu1(self.tokens1(y))).transpose(1, 2)
        return x + self.channels2(self.gelu2(self.channels1(self.norm2(x))))


class MlpMixer(nn.Module):
    """MLP-Mixer: patches of 16 pixels a side (4 of small images), 12 blocks of 512 channels.

    The hidden layers have four times the tokens, and half the channels.

    Raises:
        InputError: when the patches do not tile the images.
    """

    not_prunable: tuple[str, ...] = ()

    def __init__(
        self,
        image_shape: Shape,
        classes: int,
        width: int = 1,
        depth: int = 12,
        channels: int = 512,
    ):
        super().__init__()
        _, height, wide = image_shape
        patch = 16 if min(height, wide) >= 128 else 4
        if height % patch or wide % patch:
            raise InputError(
                f"image shape = {image_shape}: patches of {patch} pixels do not tile it"
            )
        tokens, channels = (height // patch) * (wide // patch), channels * width
        self.stem = nn.Conv2d(image_shape[0], channels, patch, stride=patch)
        self.blocks = nn.Sequential()
        for _ in range(depth):
            self.blocks.append(MixerBlock(tokens, channels, 4 * tokens, channels // 2))
        self.norm = nn.LayerNorm(channels)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images).flatten(2).transpose(1, 2)
        return self.classifier(self.norm(self.blocks(x)).mean(1))


def _one(width: int, name: str, classes: int) -> int:
    if width != 1:
        raise InputError(f"model.width = {width}: {name} comes in width 1 only")
    return classes


def _stem_like(conv: nn.Conv2d, channels: int) -> nn.Conv2d:
    """The same convolution with stride 1 on images of so many channels, initialised as it was."""
    stem = nn.Conv2d(channels, conv.out_channels, conv.kernel_size, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out")
    return stem
