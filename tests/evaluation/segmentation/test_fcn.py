"""Attacks: another network than MMSegmentation's; void pixels left out of the denominator; a linear probe that trains more.

Run: pytest tests/evaluation/segmentation/test_fcn.py
"""

import numpy as np
import pytest
import torch
from torch import nn

from swav.evaluation.segmentation.fcn import Fcn, FcnHead, LinearSegmenter, pixel_loss, resized
from swav.network.backbone import BACKBONES


def tiny(**options):
    return BACKBONES["resnet18"](width=0.125, stem="imagenet", **options)


def test_parameters_and_norms_of_the_published_network():
    with torch.device("meta"):
        trunk = BACKBONES["resnet50"]()
        head = FcnHead(2048, 512, 21, convolutions=2, concatenate=True)
        auxiliary = FcnHead(1024, 256, 21, convolutions=1, concatenate=False)
    parts = [trunk, head, auxiliary]
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    # 3x3 convolutions and norms, and the 1x1 with its bias, by hand; MMSegmentation states 49.48 M
    assert counts[1] == 9 * 512 * (2048 + 512 + 2560) + 3 * 2 * 512 + 21 * 513
    assert counts[2] == 9 * 256 * 1024 + 2 * 256 + 21 * 257
    assert round(sum(counts) / 1e6, 2) == 49.48
    norms = [sum(isinstance(module, nn.BatchNorm2d) for module in part.modules()) for part in parts]
    assert norms == [53, 3, 1]


def test_the_head_joins_its_input_and_drops_whole_channels():
    head = FcnHead(4, 3, 2, convolutions=2, concatenate=True).eval()
    x = torch.randn(2, 4, 5, 6)
    y = head.convs(x)
    assert head.conv_cat is not None
    expected = head.classifier(head.conv_cat(torch.cat([x, y], 1)))
    torch.testing.assert_close(head(x), expected)
    assert isinstance(head.dropout, nn.Dropout2d) and head.dropout.p == 0.1
    assert head.get_submodule("conv_cat.0").in_channels == 7


def test_training_has_the_auxiliary_loss_on_the_map_before_with_weight_two_fifths():
    model = Fcn(tiny(), tiny().stage_channels, 5, channels=8)
    images = torch.randn(2, 3, 64, 48)
    outputs = model.train()(images)
    assert [weight for weight, _ in outputs] == [1.0, 0.4]
    assert [list(logits.shape) for _, logits in outputs] == [[2, 5, 8, 6]] * 2
    assert model.get_submodule("auxiliary.convs.0.0").in_channels == tiny().stage_channels[-2]
    assert model.get_submodule("auxiliary.convs.0.0").out_channels == 4
    assert len(model.eval()(images)) == 1


def test_logits_are_float32_under_bf16():
    model = Fcn(tiny(), tiny().stage_channels, 3, channels=8, precision="bf16")
    assert all(logits.dtype == torch.float32 for _, logits in model(torch.randn(2, 3, 32, 32)))


def test_fresh_weights_depend_on_the_seed_alone():
    trunk = tiny()

    def heads(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(np.random.default_rng().integers(1000))
        model = Fcn(trunk, trunk.stage_channels, 3, channels=8, seed=seed)
        return [*model.head.parameters(), *model.auxiliary.parameters()]

    assert all(map(torch.equal, heads(1), heads(1)))
    assert not all(map(torch.equal, heads(1), heads(2)))


def test_the_loss_is_divided_by_all_pixels():
    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(2, 4, 3, 5)), rng.integers(0, 4, (2, 3, 5))
    truth[0, :2] = 255
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    right = np.take_along_axis(log_probability, np.where(truth == 255, 0, truth)[:, None], axis=1)[:, 0]
    expected = -right[truth != 255].sum() / truth.size
    found = pixel_loss(torch.tensor(logits), torch.tensor(truth, dtype=torch.uint8))
    assert float(found) == pytest.approx(expected, abs=1e-12)
    assert float(pixel_loss(torch.tensor(logits), torch.full((2, 3, 5), 255))) == 0


def test_corners_are_aligned_where_that_is_asked_for():
    logits = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert resized(logits, (3, 3), True)[0, 0, 1].tolist() == [1.0, 1.5, 2.0]
    assert resized(logits, (4, 4), False)[0, 0, 0].tolist() == [0.0, 0.25, 0.75, 1.0]


def test_the_probe_trains_a_norm_and_a_layer_and_leaves_the_backbone():
    trunk = tiny().eval()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    model = LinearSegmenter(trunk, trunk.stage_channels[-1], 3).train()
    ((weight, logits),) = model(torch.randn(4, 3, 64, 64))
    logits.square().mean().backward()
    assert weight == 1.0 and list(logits.shape) == [4, 3, 2, 2]
    assert sorted(name for name, _ in model.named_parameters()) == [
        "classifier.bias",
        "classifier.weight",
        "norm.bias",
        "norm.weight",
    ]
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items()) and not trunk.training
    assert all(parameter.grad is None for parameter in trunk.parameters())
