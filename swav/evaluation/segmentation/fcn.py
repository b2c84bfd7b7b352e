"""Networks that give a class to every pixel: the fully convolutional network (FCN) of MMSegmentation, and a linear layer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swav.data.targets import VOID
from swav.features import Precision
from swav.network.dilated import dilated
from swav.system import autocast

AUXILIARY = 0.4  # weight of the auxiliary head's loss
DROPOUT = 0.1  # of whole channels, before the last layer


class FcnHead(nn.Module):
    """Convolutions of 3x3 with BatchNorm and ReLU, and a 1x1 convolution that gives the logits.

    Args:
        inputs: channels of the map.
        channels: of the convolutions.
        classes: of the logits.
        convolutions: how many.
        concatenate: whether the map itself joins the last one's input, with one more convolution behind.
    """

    def __init__(self, inputs: int, channels: int, classes: int, *, convolutions: int, concatenate: bool):
        super().__init__()
        self.convs = nn.Sequential(
            *(_convolution(inputs if i == 0 else channels, channels) for i in range(convolutions))
        )
        self.conv_cat = _convolution(inputs + channels, channels) if concatenate else None
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(channels, classes, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N K h w"]:
        y = self.convs(x)
        if self.conv_cat is not None:
            y = self.conv_cat(torch.cat([x, y], dim=1))
        return self.classifier(self.dropout(y))  # type: ignore[no-any-return]


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU, initialised as MMCV's ConvModule."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Fcn(nn.Module):
    """A backbone at stride 8, a head on its last map and, in training, another on the map before.

    Source: MMSegmentation 0.30, fcn_r50-d8 with the plain ResNet, whose logits it equals.

    Args:
        trunk: backbone with stages, of which a copy is trained.
        stage_channels: channels of its stages.
        classes: K.
        channels: of the head; half as many in the auxiliary one.
        seed: of the fresh weights.
        precision: of the convolutions.
    """

    def __init__(
        self,
        trunk: nn.Module,
        stage_channels: Sequence[int],
        classes: int,
        *,
        channels: int = 512,
        seed: int = 0,
        precision: Precision = "fp32",
    ):
        super().__init__()
        self.trunk, self.precision = dilated(trunk), precision
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = FcnHead(stage_channels[-1], channels, classes, convolutions=2, concatenate=True)
            self.auxiliary = FcnHead(stage_channels[-2], channels // 2, classes, convolutions=1, concatenate=False)

    def forward(self, images: Float[Tensor, "N C H W"]) -> list[tuple[float, Float[Tensor, "N K h w"]]]:
        """Return each head's weight in the loss and its logits, in float32 at least; in eval mode the first head's only."""
        with autocast(images.device, self.precision):
            maps = self.trunk.stages(images)  # type: ignore[operator]
            found = [(1.0, self.head(maps[-1]))]
            if self.training:
                found.append((AUXILIARY, self.auxiliary(maps[-2])))
        return [(weight, logits.to(torch.promote_types(logits.dtype, torch.float32))) for weight, logits in found]


class LinearSegmenter(nn.Module):
    """A frozen backbone, BatchNorm and one 1x1 convolution on its last map.

    Args:
        trunk: backbone with stages, in eval mode.
        inputs: channels of its last map.
        classes: K.
        seed: of the fresh weights.
        precision: of the backbone.
    """

    def __init__(self, trunk: nn.Module, inputs: int, classes: int, *, seed: int = 0, precision: Precision = "fp32"):
        super().__init__()
        self._frozen, self.precision = (
            [trunk],
            precision,
        )  # in a list: not a part that is trained, saved or put into train mode
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.norm = nn.BatchNorm2d(inputs)
            self.classifier = nn.Conv2d(inputs, classes, 1)
            nn.init.normal_(self.classifier.weight, std=0.01)
            nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, images: Float[Tensor, "N C H W"]) -> list[tuple[float, Float[Tensor, "N K h w"]]]:
        """Return weight 1 and the logits."""
        with torch.no_grad(), autocast(images.device, self.precision):
            features = self._frozen[0].stages(images)[-1].float()  # type: ignore[operator]
        return [(1.0, self.classifier(self.norm(features)))]


def resized(logits: Float[Tensor, "N K h w"], size: tuple[int, int], align_corners: bool) -> Float[Tensor, "N K H W"]:
    """Return logits of every pixel, bilinear."""
    return nn.functional.interpolate(logits, size, mode="bilinear", align_corners=align_corners)


def pixel_loss(logits: Float[Tensor, "N K H W"], truth: Tensor) -> Tensor:
    """Return the cross-entropy, summed over labelled pixels and divided by all of them, as the target page's version does.

    Args:
        truth: [N, H, W], with VOID where a pixel does not count.
    """
    losses = nn.functional.cross_entropy(logits, truth.long(), reduction="none", ignore_index=VOID)
    return losses.mean()
