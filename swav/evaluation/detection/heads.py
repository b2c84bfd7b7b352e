"""The layers between a backbone and the predictors: C4's last layer, and the feature pyramid with its head."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from swav.errors import ConfigError
from swav.evaluation.detection.roi import pool
from swav.evaluation.detection.structures import Rules
from swav.network.backbone import TimmTrunk
from swav.network.dilated import strides_of
from swav.network.resnet import ResNet

C4_STRIDE, FPN_STRIDES = 16, (4, 8, 16, 32, 64)
_RESNET_PARTS = ("conv1", "bn1", "maxpool", "layer1", "layer2", "layer3", "layer4")


class C4(nn.Module):
    """A ResNet whose fourth layer works on regions of the third one's map, with a BatchNorm behind it.

    Args:
        trunk: taken over as it is; of a ResNet's shape.

    Attributes:
        strides: of the maps [pixels].
        channels: of the maps.
        features: of a region.

    Raises:
        ConfigError: it is no ResNet, or its third layer's map is not of stride 16.
    """

    strides = (C4_STRIDE,)

    def __init__(self, trunk: nn.Module):
        super().__init__()
        where = "C4 detector: expected a ResNet, or a ResNet of timm's, with a map of stride 16 behind layer3"
        advice = "use backbone=resnet50 with stem=imagenet or half, or timm:resnet50"
        parts = trunk.model if isinstance(trunk, TimmTrunk) else trunk
        if not isinstance(trunk, ResNet | TimmTrunk) or not all(hasattr(parts, name) for name in _RESNET_PARTS):
            raise ConfigError(f"{where}, found {_name(trunk)}; {advice}")
        third = trunk.stage_names.index("layer3")
        if (stride := _strides(trunk, where, advice)[third]) != C4_STRIDE:
            raise ConfigError(f"{where}, found stride {stride}; {advice}")
        self.trunk = trunk
        self.channels, self.features = trunk.stage_channels[third], trunk.stage_channels[third + 1]
        self.norm = nn.BatchNorm2d(self.features)

    @property
    def _resnet(self) -> nn.Module:
        return (
            self.trunk.model if isinstance(self.trunk, TimmTrunk) else self.trunk
        )  # looked up: layers may be replaced

    def forward(self, images: Float[Tensor, "N C H W"]) -> list[Tensor]:
        net = self._resnet
        activation = net.act1 if isinstance(self.trunk, TimmTrunk) else net.relu
        x = net.maxpool(activation(net.bn1(net.conv1(images))))  # type: ignore[operator]
        return [net.layer3(net.layer2(net.layer1(x)))]  # type: ignore[operator]

    def regions(self, maps: list[Tensor], boxes: Sequence[Float[Tensor, "_ 4"]]) -> Float[Tensor, "r F"]:
        """Return the features of regions of maps."""
        x: Tensor = self.norm(self._resnet.layer4(pool(maps, self.strides, boxes, 14)))  # type: ignore[operator]
        return x.mean(dim=(2, 3))


class Pyramid(nn.Module):
    """A backbone with a feature pyramid, and the head for regions of its maps: four convolutions and a fully connected layer.

    BatchNorm is behind every convolution.

    Args:
        trunk: taken over as it is; with maps at strides 4, 8, 16 and 32.
        channels: of the pyramid and of the convolutions.
        features: of a region.
        rules: whose initialisation.

    Attributes:
        strides: of the maps [pixels].

    Raises:
        ConfigError: the backbone has no map at one of these strides, or takes no images of any size.
    """

    strides = FPN_STRIDES

    def __init__(self, trunk: nn.Module, channels: int, features: int, rules: Rules):
        super().__init__()
        where = f"feature pyramid: expected a backbone with maps of strides {', '.join(map(str, FPN_STRIDES[:-1]))}"
        advice = "use a ResNet with stem=imagenet or half, or a hierarchical model of timm's for images of any size"
        if not hasattr(trunk, "stages"):
            raise ConfigError(f"{where}, found {_name(trunk)}; {advice}")
        last = {stride: place for place, stride in enumerate(_strides(trunk, where, advice))}
        if not set(FPN_STRIDES[:-1]) <= set(last):
            found = ", ".join(map(str, sorted(last))) or "none"
            raise ConfigError(f"{where}, found {found} in {_name(trunk)}; {advice}")
        self.trunk, self.channels, self.features = trunk, channels, features
        self.places = [last[stride] for stride in FPN_STRIDES[:-1]]
        inputs = [trunk.stage_channels[place] for place in self.places]  # type: ignore[index]
        self.fpn = FeaturePyramidNetwork(inputs, channels, norm_layer=nn.BatchNorm2d)
        self.convs = convolutions(channels, channels, 4)
        self.fc = nn.Linear(channels * 49, features)
        for parameter in [*self.fpn.parameters(), self.fc.weight]:
            if parameter.dim() == 1:  # of a BatchNorm
                continue
            if rules.xavier:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.kaiming_uniform_(parameter, a=1)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Float[Tensor, "N C H W"]) -> list[Tensor]:
        stages = self.trunk.stages(images)  # type: ignore[operator]
        found = self.fpn(OrderedDict((str(i), stages[place]) for i, place in enumerate(self.places)))
        maps = list(found.values())
        return [*maps, nn.functional.max_pool2d(maps[-1], 1, stride=2)]

    def regions(self, maps: list[Tensor], boxes: Sequence[Float[Tensor, "_ 4"]]) -> Float[Tensor, "r F"]:
        """Return the features of regions of maps."""
        x = self.convs(self.pooled(maps, boxes, 7))
        return nn.functional.relu(self.fc(x.flatten(1)))

    def pooled(
        self, maps: list[Tensor], boxes: Sequence[Float[Tensor, "_ 4"]], side: int
    ) -> Float[Tensor, "r F {side} {side}"]:
        """Return what is cut out of the maps, of which the last is for proposals only."""
        return pool(maps[:-1], self.strides[:-1], boxes, side)


def convolutions(inputs: int, channels: int, count: int) -> nn.Sequential:
    """Return convolutions of 3x3, each with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for i in range(count):
        convolution = nn.Conv2d(inputs if i == 0 else channels, channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))]
    return nn.Sequential(*layers)


def _strides(trunk: nn.Module, where: str, advice: str) -> list[int]:
    try:
        with torch.no_grad():
            return strides_of(trunk)
    except Exception as error:  # a model may raise anything at a size that it was not made for
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ConfigError(
            f"{where}, found that {_name(trunk)} takes no images of any size ({reason}); {advice}"
        ) from None


def _name(trunk: nn.Module) -> str:
    return f"timm:{trunk.name}" if isinstance(trunk, TimmTrunk) else type(trunk).__name__
