"""A backbone whose last maps stay large: strides beyond a limit become dilations. No weight changes, and none is added."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from swav.errors import ConfigError
from swav.network.backbone import TimmTrunk, timm_options
from swav.network.resnet import BasicBlock, Bottleneck, ResNet

_PROBE = 64  # side of the image of which the strides of maps are measured [pixels]


def dilated(trunk: nn.Module, stride: int = 8) -> nn.Module:
    """Return a copy of a backbone of which no map has a larger stride.

    A layer that would halve the map keeps its size, and convolutions behind it look as far as before: those of its first
    block by the dilation of the layer before, the others by twice that (MMSegmentation's `contract_dilation`, torchvision's
    `replace_stride_with_dilation`, timm's `output_stride`).

    Args:
        trunk: a ResNet of ours, or a model of timm's that takes `output_stride`.
        stride: the limit [pixels of the image].

    Raises:
        ConfigError: another backbone.
    """
    if isinstance(trunk, ResNet):
        return _dilated_resnet(copy.deepcopy(trunk), stride)
    if isinstance(trunk, TimmTrunk):
        return _dilated_timm(trunk, stride)
    raise ConfigError(
        f"backbone: expected a ResNet, or a convolutional model of timm's, found {type(trunk).__name__}; use segment-linear"
    )


def strides_of(trunk: nn.Module) -> list[int]:
    """Return the stride of each stage's map [pixels of the image]."""
    parameter = next(trunk.parameters())
    channels = parameter.shape[1] if parameter.ndim == 4 else 3
    with torch.no_grad():
        training = trunk.training
        image = torch.zeros(1, channels, _PROBE, _PROBE, device=parameter.device)
        maps: list[Tensor] = trunk.eval().stages(image)  # type: ignore[operator]
        trunk.train(training)
    return [_PROBE // one.shape[-1] for one in maps]


def _dilated_resnet(trunk: ResNet, stride: int) -> ResNet:
    reached = strides_of(trunk)[0] * (1 if isinstance(trunk.maxpool, nn.Identity) else 2)  # of the first layer's input
    dilation = 1
    for layer in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
        blocks = cast("list[BasicBlock | Bottleneck]", list(layer))
        its_stride, before = _stride_of(blocks[0]), dilation
        if reached * its_stride > stride:
            dilation *= its_stride
            _take_stride(blocks[0])
        else:
            reached *= its_stride
        for place, block in enumerate(blocks):
            _dilate(block, before if place == 0 else dilation, dilation)
    return trunk


def _stride_of(block: BasicBlock | Bottleneck) -> int:
    return (block.conv1 if isinstance(block, BasicBlock) else block.conv2).stride[0]


def _take_stride(block: BasicBlock | Bottleneck) -> None:
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)


def _dilate(block: BasicBlock | Bottleneck, first: int, then: int) -> None:
    """Of a bottleneck its one 3x3 convolution; of a basic block the second always by the layer's own dilation."""
    convolutions = (
        [(block.conv1, first), (block.conv2, then)] if isinstance(block, BasicBlock) else [(block.conv2, first)]
    )
    for convolution, dilation in convolutions:
        convolution.dilation = convolution.padding = (dilation, dilation)


def _dilated_timm(trunk: TimmTrunk, stride: int) -> TimmTrunk:
    import timm

    name = trunk.name
    channels = next(trunk.parameters()).shape[1]
    options: dict[str, Any] = timm_options(name, channels)
    try:
        model = timm.create_model(name, pretrained=False, output_stride=stride, **options)
    except (TypeError, ValueError, AssertionError, NotImplementedError):  # as each family of models refuses it
        raise ConfigError(
            f"backbone timm:{name}: expected a model whose strides can become dilations (timm's output_stride={stride}), "
            "found one that cannot; use segment-linear"
        ) from None
    model.load_state_dict(trunk.model.state_dict())
    new = copy.copy(trunk)
    new._modules = {"model": model}
    return new
