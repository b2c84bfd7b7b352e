"""A ResNet in one file that needs torch only: it is also what a run exports beside weights that torchvision's cannot hold.

Names of parameters, their order and their random draws are torchvision's, so weights go back and forth.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Block = Literal["basic", "bottleneck"]
Stem = Literal["imagenet", "half", "small"]
DEPTHS: dict[str, tuple[Block, tuple[int, int, int, int]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
}


def convolution(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    """A convolution of side x side pixels without bias, padded so that stride 1 keeps the size of an odd side's map."""
    return nn.Conv2d(inputs, outputs, side, stride=stride, padding=side // 2, bias=False)


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions (ResNet-18 and 34).

    Args:
        inputs: channels of its input.
        planes: channels of its convolutions, and of its output.
        stride: of the first convolution.
        downsample: makes the shortcut fit the output; None: the shortcut is the input.
    """

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__()
        self.conv1 = convolution(inputs, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = convolution(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        branch += x if self.downsample is None else self.downsample(x)
        return self.relu(branch)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions, the last to 4 times the channels (ResNet-50).

    The stride is in the 3x3 convolution ("V1.5"); the paper has it in the first.

    Args:
        inputs: channels of its input.
        planes: channels of its first two convolutions; its output has 4 times as many.
        stride: of the 3x3 convolution.
        downsample: makes the shortcut fit the output; None: the shortcut is the input.
    """

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__()
        self.conv1 = convolution(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = convolution(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = convolution(planes, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        branch: Tensor = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        branch += x if self.downsample is None else self.downsample(x)
        return self.relu(branch)  # type: ignore[no-any-return]


BLOCKS: dict[str, type[BasicBlock | Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """Deep residual network: a stem and four layers, without a classifier.

    Unlike torchvision's, `width` multiplies *all* channels (the paper's RN50-w2/w4/w5), and the stem can suit small images.

    Args:
        block: "basic" or "bottleneck".
        layers: blocks in each of the four layers.
        width: factor on all channels.
        stem: "imagenet": 7x7 stride 2 and max-pool; "half": 3x3 stride 2 and max-pool; "small": 3x3 alone.
        zero_init_residual: start each residual branch at zero.
        in_channels: C of the images.

    Source: He et al. 2015 (arXiv 1512.03385); initialisation as in torchvision.
    """

    def __init__(
        self,
        block: Block,
        layers: Sequence[int],
        width: float = 1.0,
        stem: Stem = "imagenet",
        zero_init_residual: bool = False,
        in_channels: int = 3,
    ):
        super().__init__()
        self._block = BLOCKS[block]
        self._channels = base = round(64 * width)
        self.conv1 = convolution(in_channels, base, 7 if stem == "imagenet" else 3, 1 if stem == "small" else 2)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if stem == "small" else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._layer(base, layers[0], stride=1)
        self.layer2 = self._layer(base * 2, layers[1], stride=2)
        self.layer3 = self._layer(base * 4, layers[2], stride=2)
        self.layer4 = self._layer(base * 8, layers[3], stride=2)
        self.stage_names = ["stem", "layer1", "layer2", "layer3", "layer4"]
        self.stage_channels = [base, *(base * 2**i * self._block.expansion for i in range(4))]
        self.num_features = self.stage_channels[-1]
        self._initialise(zero_init_residual)

    def _layer(self, planes: int, blocks: int, stride: int) -> nn.Sequential:
        out = planes * self._block.expansion
        shortcut = None
        if stride != 1 or self._channels != out:
            shortcut = nn.Sequential(convolution(self._channels, out, 1, stride), nn.BatchNorm2d(out))
        first = self._block(self._channels, planes, stride, shortcut)
        self._channels = out
        return nn.Sequential(first, *(self._block(out, planes) for _ in range(blocks - 1)))

    def _initialise(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Feature maps [N, C_i, H_i, W_i] of images [N, C, H, W]: after the stem (before max-pool), after each layer."""
        maps = [self.relu(self.bn1(self.conv1(images)))]
        x = self.maxpool(maps[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Features [N, F] of images [N, C, H, W], after global average pooling."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.mean(dim=(2, 3))


def load_resnet(path: str | Path, block: Block, layers: Sequence[int], **options: Any) -> ResNet:
    """A ResNet in eval mode, with the tensors of a safetensors file (read here, without its library).

    Args:
        path: of the file.
        block, layers, options: what the network was built with.

    Raises:
        OSError, ValueError, KeyError: the file is missing or damaged.
        RuntimeError: its tensors are another network's.
    """
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, dict[str, Any]] = json.loads(content[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        numbers = bytearray(content[start + begin : start + end])  # torch warns of memory that may not be written
        kind = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}[entry["dtype"]]
        tensors[name] = torch.frombuffer(numbers, dtype=kind).reshape(entry["shape"])
    network = ResNet(block, layers, **options)
    network.load_state_dict(tensors)
    return network.eval().to(memory_format=torch.channels_last)  # fastest for convolutions
