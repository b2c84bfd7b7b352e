"""The backbone is torchvision's ResNet, at every width and stem: same names, same numbers, right maps; or timm's model, with
its own features, and refused in words where there is none or where it can't take the crops.

Run: pytest tests/network/test_backbone.py
"""

import subprocess
import sys

import pytest
import torch
import torchvision

from swav.config import RESNETS
from swav.errors import ConfigError
from swav.network.backbone import BACKBONES, ResNet, TimmTrunk, build_trunk, check_backbone, count_parameters


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_names_and_shapes_are_torchvisions_but_for_the_classifier(name):
    with torch.device("meta"):
        ours = BACKBONES[name]().state_dict()
        theirs = torchvision.models.get_model(name).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {
        key: value.shape for key, value in theirs.items() if not key.startswith("fc.")
    }


def test_features_equal_torchvisions_with_the_same_weights():
    theirs = torchvision.models.resnet18()
    ours = BACKBONES["resnet18"]()
    ours.load_state_dict({key: value for key, value in theirs.state_dict().items() if not key.startswith("fc.")})
    theirs.fc = torch.nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_the_names_are_those_that_the_settings_allow():
    assert tuple(BACKBONES) == RESNETS


@pytest.mark.parametrize("stem", ["imagenet", "half", "small"])
def test_a_trunk_for_grey_images_takes_one_channel_and_differs_nowhere_else(stem):
    grey, colour = (ResNet("basic", (1, 1, 1, 1), width=0.25, stem=stem, in_channels=c) for c in (1, 3))
    assert grey(torch.randn(2, 1, 32, 32)).shape == (2, 128)
    shapes = [{key: value.shape for key, value in trunk.state_dict().items()} for trunk in (grey, colour)]
    assert {key for key in shapes[0] if shapes[0][key] != shapes[1][key]} == {"conv1.weight"}


@pytest.mark.parametrize("width", [1.0, 2.0, 4.0, 5.0])
def test_width_multiplies_all_channels(width):
    with torch.device("meta"):
        trunk = BACKBONES["resnet50"](width=width)
    assert trunk.stage_channels == [64 * width, 256 * width, 512 * width, 1024 * width, 2048 * width]
    # the paper and the original's README: 24 M (backbone alone: 23.5), 94 M, 375 M, 586 M
    published = {1.0: 23.5e6, 2.0: 94e6, 4.0: 375e6, 5.0: 586e6}[width]
    assert count_parameters(trunk) == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize(
    ("stem", "sides"), [("imagenet", [32, 16, 8, 4, 2]), ("half", [32, 16, 8, 4, 2]), ("small", [64, 64, 32, 16, 8])]
)
def test_stages_have_the_sides_and_channels_that_they_announce(stem, sides):
    trunk = ResNet("basic", (1, 1, 1, 1), width=0.25, stem=stem)
    maps = trunk.stages(torch.randn(1, 3, 64, 64))
    assert [m.shape[-1] for m in maps] == sides
    assert [m.shape[1] for m in maps] == trunk.stage_channels


def test_forward_is_the_average_of_the_last_stage():
    trunk = ResNet("bottleneck", (1, 1, 1, 1), width=0.25).eval()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(trunk(images), trunk.stages(images)[-1].mean(dim=(2, 3)))


@pytest.mark.parametrize(("block", "last"), [("basic", "bn2"), ("bottleneck", "bn3")])
def test_zero_init_makes_each_branch_start_at_zero(block, last):
    with_zero = ResNet(block, (1, 1, 1, 1), width=0.25, zero_init_residual=True)
    without = ResNet(block, (1, 1, 1, 1), width=0.25)
    assert not getattr(with_zero.layer1[0], last).weight.any()
    assert getattr(without.layer1[0], last).weight.all()


# -- timm


@pytest.mark.parametrize(
    ("name", "features", "stages", "first"),
    [
        ("resnet18", 512, 5, "act1"),
        ("mobilenetv3_small_050", 1024, 5, "bn1"),  # its last layer is wider than its last map
        ("vit_tiny_patch16_224", 192, 12, "blocks.0"),
        ("convnext_atto", 320, 4, "stages.0"),
    ],
)
def test_a_timm_model_gives_its_own_features_and_stages_at_every_size_of_crop(name, features, stages, first):
    trunk = TimmTrunk(name).eval()
    assert (trunk.num_features, len(trunk.stage_names), trunk.stage_names[0]) == (features, stages, first)
    for size in (64, 32):
        images = torch.randn(2, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(trunk(images), trunk.model(images))
            assert trunk(images).shape == (2, features)
            maps = trunk.stages(images)
        assert [m.shape[1] for m in maps] == trunk.stage_channels and all(m.ndim == 4 for m in maps)


def test_a_timm_model_takes_grey_images():
    trunk = build_trunk("timm:resnet18", width=1, stem="imagenet", zero_init_residual=False, in_channels=1)
    assert trunk.eval()(torch.randn(2, 1, 32, 32)).shape == (2, 512)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (
            "vit_tiny_patch16_244",
            r"expected one of timm's \d+ models, without a tag \(did you mean 'vit_tiny_patch16_224'\?\)",
        ),
        (
            "resnet18.a1_in1k",
            r"without a tag \(did you mean 'resnet18'\?\)",
        ),  # which names weights, and none are fetched
        ("hf-hub:someone/something", "expected one of timm's"),
        ("local-dir:/etc", "expected one of timm's"),
        ("", "expected one of timm's"),
    ],
)
def test_what_timm_does_not_have_is_refused_with_a_suggestion(name, complaint):
    with pytest.raises(ConfigError, match=complaint):
        check_backbone(f"timm:{name}", [])


def test_nothing_is_ever_downloaded(monkeypatch):
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("went to the network"))
    TimmTrunk("resnet18")


def test_a_model_of_fixed_size_is_refused_for_other_crops_and_welcome_at_its_own():
    check_backbone("timm:xcit_nano_12_p16_224", [224, 96])
    check_backbone("timm:mixer_s32_224", [224])
    with pytest.raises(ConfigError, match=r"mixer_s32_224: does not take crops of 96 pixels \(.+\); use other crops"):
        check_backbone("timm:mixer_s32_224", [224, 96])
    with pytest.raises(ConfigError, match="does not take crops of 100 pixels"):
        check_backbone("timm:vit_tiny_patch16_224", [100])


def test_timm_is_imported_only_where_it_is_asked_for():
    code = "import sys, swav.training.loop; print('timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
