"""Attacks: dilations that differ from torchvision's and timm's; a copy that shares or changes weights; a stem without stride.

Run: pytest tests/network/test_dilated.py
"""

import pytest
import timm
import torch
import torchvision
from torch import nn

from swav.errors import ConfigError
from swav.network.backbone import BACKBONES, TimmTrunk
from swav.network.dilated import dilated, strides_of
from swav.network.resnet import ResNet


def stages(trunk: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    return trunk.stages(images)  # type: ignore[operator, no-any-return]


def fresh(name: str, **options) -> ResNet:
    torch.manual_seed(0)
    trunk = BACKBONES[name](**options).eval()
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):  # or a shifted map would go unseen
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return trunk


def test_resnet50_is_torchvisions_with_strides_replaced_by_dilations():
    trunk = fresh("resnet50")
    other = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    other.load_state_dict(trunk.state_dict(), strict=False)
    images = torch.randn(1, 3, 65, 48)
    features = nn.Sequential(*list(other.children())[:-2])
    with torch.no_grad():
        torch.testing.assert_close(stages(dilated(trunk), images)[-1], features(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_basic_blocks_are_timms_with_output_stride_8(name):
    trunk = fresh(name)
    other = timm.create_model(name, num_classes=0, output_stride=8).eval()
    other.load_state_dict(trunk.state_dict())
    images = torch.randn(1, 3, 65, 48)
    with torch.no_grad():
        for ours, theirs in zip(
            stages(dilated(trunk), images),
            other.forward_intermediates(images, intermediates_only=True),  # type: ignore[operator]
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stem", "plain"), [("imagenet", [2, 4, 8, 16, 32]), ("half", [2, 4, 8, 16, 32]), ("small", [1, 1, 2, 4, 8])]
)
def test_no_map_has_a_larger_stride(stem, plain):
    trunk = fresh("resnet18", width=0.125, stem=stem)
    assert strides_of(trunk) == plain
    assert strides_of(dilated(trunk)) == [min(8, stride) for stride in plain]
    assert strides_of(dilated(trunk, 16)) == [min(16, stride) for stride in plain]


def test_it_is_a_copy_with_the_same_weights():
    trunk = fresh("resnet18", width=0.125).train()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    new = dilated(trunk)
    assert new.training and list(new.state_dict()) == list(before)
    for name, value in new.state_dict().items():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        new.get_parameter("conv1.weight").zero_()
    assert torch.equal(trunk.conv1.weight, before["conv1.weight"])
    assert strides_of(trunk)[-1] == 32


def test_a_timm_model_is_built_anew_with_its_weights():
    trunk = TimmTrunk("resnet10t")
    new = dilated(trunk)
    assert strides_of(new)[-1] == 8 and new.stage_channels == trunk.stage_channels
    for name, value in trunk.state_dict().items():
        assert torch.equal(new.state_dict()[name], value)


@pytest.mark.parametrize("trunk", [nn.Linear(2, 2), TimmTrunk("vit_tiny_patch16_224")], ids=["module", "transformer"])
def test_what_cannot_be_dilated_is_refused_in_one_line(trunk):
    with pytest.raises(ConfigError, match="use segment-linear") as caught:
        dilated(trunk)
    assert "\n" not in str(caught.value)
