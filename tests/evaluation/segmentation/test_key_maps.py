"""Names of MMSegmentation, as its sources build them, become ours: all of them, each once."""

import pytest
import torch

from swav.evaluation.segmentation.fcn import Fcn
from swav.network.backbone import BACKBONES
from tests.evaluation.segmentation.key_maps import from_mmseg

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def module(name):
    """mmcv's ConvModule."""
    return [f"{name}.conv.weight", *(f"{name}.bn.{part}" for part in NORM)]


def test_every_name_of_mmseg_becomes_one_of_ours():
    trunk = BACKBONES["resnet50"](width=1 / 16)
    ours = set(Fcn(trunk, trunk.stage_channels, 21, channels=8).state_dict())
    # MMSegmentation's plain ResNet names its tensors as torchvision's does, and so do ours
    names = [f"backbone.{name}" for name in trunk.state_dict()]
    names += [*module("decode_head.convs.0"), *module("decode_head.convs.1"), *module("decode_head.conv_cat")]
    names += module("auxiliary_head.convs.0")
    names += [f"{head}.conv_seg.{part}" for head in ("decode_head", "auxiliary_head") for part in ("weight", "bias")]
    found = from_mmseg({name: torch.empty(0) for name in names})
    assert set(found) == ours and len(found) == len(names)


def test_a_tensor_without_a_place_is_refused():
    with pytest.raises(KeyError, match="neck"):
        from_mmseg({"neck.lateral.weight": torch.empty(0)})
