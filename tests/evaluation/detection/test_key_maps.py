"""Names of detectron2 and MMDetection, as their sources build them, become ours: all of them, each once."""

import pytest
import torch

from swav.evaluation.detection.models import c4_detector, fpn_detector
from swav.evaluation.detection.structures import MMDET
from swav.network.resnet import ResNet
from tests.evaluation.detection.key_maps import from_detectron2, from_mmdet

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
BLOCKS = (3, 4, 6, 3)


def both(name):
    return [f"{name}.weight", f"{name}.bias"]


def norm(name):
    return [f"{name}.{part}" for part in NORM]


def detectron2_convolution(name):
    """detectron2.layers.Conv2d: its norm is a child."""
    return [f"{name}.weight", *norm(f"{name}.norm")]


def detectron2_stage(name, blocks):
    found = []
    for i in range(blocks):
        for layer in ("conv1", "conv2", "conv3", *(["shortcut"] if i == 0 else [])):
            found += detectron2_convolution(f"{name}.{i}.{layer}")
    return found


def detectron2_names(kind):
    trunk, head = ("backbone", "roi_heads") if kind == "c4" else ("backbone.bottom_up", "")
    found = ["pixel_mean", "pixel_std", "proposal_generator.anchor_generator.cell_anchors.0"]
    found += detectron2_convolution(f"{trunk}.stem.conv1")
    for i, blocks in enumerate(BLOCKS):
        found += detectron2_stage(f"{head if i == 3 and head else trunk}.res{i + 2}", blocks)
    for layer in ("conv", "objectness_logits", "anchor_deltas"):
        found += both(f"proposal_generator.rpn_head.{layer}")
    for layer in ("cls_score", "bbox_pred"):
        found += both(f"roi_heads.box_predictor.{layer}")
    if kind == "c4":
        return found + norm("roi_heads.res5.norm")
    for i in range(2, 6):
        found += detectron2_convolution(f"backbone.fpn_lateral{i}") + detectron2_convolution(f"backbone.fpn_output{i}")
    for i in range(1, 5):
        found += detectron2_convolution(f"roi_heads.box_head.conv{i}")
        found += detectron2_convolution(f"roi_heads.mask_head.mask_fcn{i}")
    return (
        found
        + both("roi_heads.box_head.fc1")
        + both("roi_heads.mask_head.deconv")
        + both("roi_heads.mask_head.predictor")
    )


def mmdet_module(name):
    """mmcv's ConvModule."""
    return [f"{name}.conv.weight", *norm(f"{name}.bn")]


def mmdet_names(kind):
    found = ["backbone.conv1.weight", *norm("backbone.bn1")]
    for i, blocks in enumerate(BLOCKS):
        layer = f"{'roi_head.shared_head' if kind == 'c4' and i == 3 else 'backbone'}.layer{i + 1}"
        for j in range(blocks):
            for k in (1, 2, 3):
                found += [f"{layer}.{j}.conv{k}.weight", *norm(f"{layer}.{j}.bn{k}")]
        found += [f"{layer}.0.downsample.0.weight", *norm(f"{layer}.0.downsample.1")]
    for layer in ("rpn_head.rpn_conv", "rpn_head.rpn_cls", "rpn_head.rpn_reg"):
        found += both(layer)
    found += both("roi_head.bbox_head.fc_cls") + both("roi_head.bbox_head.fc_reg")
    if kind == "c4":
        return found + norm("roi_head.shared_head.norm")
    for i in range(4):
        found += mmdet_module(f"neck.lateral_convs.{i}") + mmdet_module(f"neck.fpn_convs.{i}")
        found += mmdet_module(f"roi_head.bbox_head.shared_convs.{i}") + mmdet_module(f"roi_head.mask_head.convs.{i}")
    found += both("roi_head.bbox_head.shared_fcs.0")
    return found + both("roi_head.mask_head.upsample") + both("roi_head.mask_head.conv_logits")


def ours(kind):
    with torch.device("meta"):
        trunk = ResNet("bottleneck", BLOCKS)
        made = c4_detector(trunk, 20, MMDET, 0) if kind == "c4" else fpn_detector(trunk, 80, MMDET, 0)
        return made.state_dict()


@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_every_name_of_detectron2_becomes_one_of_ours(kind):
    names = detectron2_names(kind)
    assert len(set(names)) == len(names)
    found = from_detectron2({name: torch.empty(0) for name in names})
    assert set(found) == set(ours(kind)) and len(found) == len(names) - 3


@pytest.mark.parametrize("kind", ["c4", "fpn"])
def test_every_name_of_mmdet_becomes_one_of_ours(kind):
    names = mmdet_names(kind)
    anchors = 15 if kind == "c4" else 3
    sizes = {"rpn_head.rpn_cls": anchors, "rpn_head.rpn_reg": anchors * 4}
    found = from_mmdet({name: torch.zeros(sizes.get(name.rpartition(".")[0], 0)) for name in names})
    assert set(found) == set(ours(kind)) and len(found) == len(names)


def test_mmdets_anchors_are_put_in_the_order_of_ours():
    """Theirs: all sizes of the first ratio, then those of the second; AnchorGenerator.gen_single_level_base_anchors."""
    theirs = [(ratio, scale) for ratio in (0.5, 1.0, 2.0) for scale in (2, 4, 8, 16, 32)]
    code = torch.tensor([16 * scale * 10 + ratio for ratio, scale in theirs])
    steps = torch.stack([code, code + 0.1, code + 0.2, code + 0.3], dim=1)  # four channels of each anchor
    state = {
        f"rpn_head.{layer}.{kind}": x
        for kind in ("weight", "bias")
        for layer, x in (("rpn_cls", code), ("rpn_reg", steps.flatten()))
    }
    found = from_mmdet(state)
    expected = [16 * scale * 10 + ratio for scale in (2, 4, 8, 16, 32) for ratio in (0.5, 1.0, 2.0)]
    assert found["rpn.objectness.bias"].tolist() == expected
    torch.testing.assert_close(found["rpn.deltas.weight"].view(15, 4)[:, 3], torch.tensor(expected) + 0.3)


def test_a_tensor_without_a_place_is_refused():
    with pytest.raises(KeyError, match="keypoint_head"):
        from_detectron2({"roi_heads.keypoint_head.weight": torch.empty(0)})
