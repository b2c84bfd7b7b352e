"""The trunk: image to features. ResNets with torchvision's blocks and key names, of any width, with three stems."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, conv1x1

BLOCKS: dict[str, type[BasicBlock | Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """Deep residual network: a stem and four layers.

    Every parameter bears torchvision's name, so weights go back and forth. Unlike torchvision's, `width` multiplies
    *all* channels (the paper's RN50-w2/w4/w5), and the stem can suit small images. Strides are in the 3x3 convolution
    ("V1.5"). There is no classifier.

    Args:
        block: "basic" or "bottleneck".
        layers: blocks in each of the four layers.
        width: factor on all channels.
        stem: "imagenet": 7x7 stride 2 and max-pool; "half": 3x3 stride 2 and max-pool; "small": 3x3 alone.
        zero_init_residual: start each residual branch at zero.

    Source: He et al. 2015 (arXiv 1512.03385); initialisation as in torchvision.
    """

    def __init__(
        self,
        block: Literal["basic", "bottleneck"],
        layers: Sequence[int],
        width: float = 1.0,
        stem: Literal["imagenet", "half", "small"] = "imagenet",
        zero_init_residual: bool = False,
    ):
        super().__init__()
        self._block = BLOCKS[block]
        self._channels = base = round(64 * width)
        self.conv1 = (
            nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)
            if stem == "imagenet"
            else nn.Conv2d(3, base, 3, stride=2 if stem == "half" else 1, padding=1, bias=False)
        )
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if stem == "small" else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._layer(base, layers[0], stride=1)
        self.layer2 = self._layer(base * 2, layers[1], stride=2)
        self.layer3 = self._layer(base * 4, layers[2], stride=2)
        self.layer4 = self._layer(base * 8, layers[3], stride=2)
        self.stage_channels = [base, *(base * 2**i * self._block.expansion for i in range(4))]
        self.num_features = self.stage_channels[-1]
        self._initialise(zero_init_residual)

    def _layer(self, planes: int, blocks: int, stride: int) -> nn.Sequential:
        out = planes * self._block.expansion
        shortcut = None
        if stride != 1 or self._channels != out:
            shortcut = nn.Sequential(conv1x1(self._channels, out, stride), nn.BatchNorm2d(out))
        first = self._block(self._channels, planes, stride, shortcut)
        self._channels = out
        return nn.Sequential(first, *(self._block(out, planes) for _ in range(blocks - 1)))

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
            elif zero_init_residual and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def stages(self, images: Float[Tensor, "N 3 H W"]) -> list[Tensor]:
        """Feature maps after the stem (before max-pool) and after each of the four layers."""
        maps = [self.relu(self.bn1(self.conv1(images)))]
        x = self.maxpool(maps[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, images: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N F"]:
        """Features after global average pooling."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


BACKBONES: dict[str, Callable[..., ResNet]] = {
    "resnet18": lambda **options: ResNet("basic", (2, 2, 2, 2), **options),
    "resnet34": lambda **options: ResNet("basic", (3, 4, 6, 3), **options),
    "resnet50": lambda **options: ResNet("bottleneck", (3, 4, 6, 3), **options),
}


def count_parameters(module: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in module.parameters())


def in_channels_last(module: nn.Module) -> nn.Module:
    """Stores 4-d weights with channels last, the layout in which convolutions are fastest. Changes no value."""
    return module.to(memory_format=torch.channels_last)
