"""The bottleneck ResNets of ImageNet, torchvision's, wider or in miniature."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

Shape = tuple[int, int, int]


class BottleneckResNet(ResNet):
    """torchvision's ResNet of bottlenecks (He et al. 2016, Figure 5), its channels a multiple.

    Stem, streams and the bottlenecks' outsides are `multiple` times as wide; the insides `inside`
    times that.
    """

    def __init__(
        self, image_shape: Shape, classes: int, blocks: list[int], multiple: float, inside: int = 1
    ):
        self._multiple = multiple
        super().__init__(Bottleneck, blocks, classes, width_per_group=64 * inside)
        stem = self.conv1.out_channels
        if image_shape[0] != 3 or multiple != 1:
            stem = round(64 * multiple)
            self.conv1 = nn.Conv2d(image_shape[0], stem, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.bn1 = nn.BatchNorm2d(stem)
            self.fc = nn.Linear(round(2048 * multiple), classes)
        self.not_prunable = tuple(
            f"{name}.weight"
            for name, module in self.named_modules()
            if ".downsample." in name and isinstance(module, nn.Conv2d)
        )

    def _make_layer(self, block, planes: int, *args, **options) -> nn.Sequential:
        if planes == 64:  # the first stage: what comes from the stem
            self.inplanes = round(64 * self._multiple)
        return super()._make_layer(block, round(planes * self._multiple), *args, **options)


def resnet50(image_shape: Shape, classes: int, width: int = 1) -> BottleneckResNet:
    """ResNet50 of Adnan et al. 2025, Table 10: at width 1 torchvision's, 25,557,032 parameters.

    width: multiplies the channels, and once more those inside the bottlenecks. So does the released
    code, whose width 2 has 271 million parameters; "about four times" as many, as it says, would be
    98 million.
    """
    return BottleneckResNet(image_shape, classes, [3, 4, 6, 3], width, inside=width)


def resnet14_bottleneck(image_shape: Shape, classes: int, width: int = 1) -> BottleneckResNet:
    """`resnet50` in miniature: one bottleneck a stage, an eighth of the channels at width 1."""
    return BottleneckResNet(image_shape, classes, [1, 1, 1, 1], width / 8)
