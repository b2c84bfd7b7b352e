"""The trunk is torchvision's ResNet, at every width and stem: same names, same numbers, right maps.

Run: pytest tests/network/test_trunk.py
"""

import pytest
import torch
import torchvision

from swav.network.trunk import BACKBONES, ResNet, count_parameters


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


@pytest.mark.parametrize("width", [1.0, 2.0, 4.0, 5.0])
def test_width_multiplies_all_channels(width):
    with torch.device("meta"):
        trunk = BACKBONES["resnet50"](width=width)
    assert trunk.stage_channels == [64 * width, 256 * width, 512 * width, 1024 * width, 2048 * width]
    # the paper and the original's README: 24 M (trunk alone: 23.5), 94 M, 375 M, 586 M
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
