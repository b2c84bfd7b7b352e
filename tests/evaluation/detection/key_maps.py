"""Detectors of detectron2 and MMDetection 2.x as ours: names and order of their tensors.

    ours.load_state_dict(from_detectron2(torch.load("model_final.pth", weights_only=True)["model"]))
    ours.load_state_dict(from_mmdet(torch.load("latest.pth", weights_only=True)["state_dict"]))

`ours` is `c4_detector(...)` or `fpn_detector(...)` with a ResNet (imagenet stem) as its trunk and the same number of classes.
In all three the background is the last class and boxes are class after class; a fully connected layer reads channels, rows,
columns. MMDetection's anchors of one cell run over the ratios first, ours and detectron2's over the sizes first.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

# detectron2: a convolution's BatchNorm is its child `norm`; a shortcut is a convolution.
_DETECTRON2_BLOCK: list[Rule] = [
    (r"conv(\d)\.norm\.", r"bn\1."),
    (r"shortcut\.norm\.", "downsample.1."),
    (r"shortcut\.", "downsample.0."),
]
DETECTRON2: list[Rule] = [
    (r"^backbone\.(?:bottom_up\.)?stem\.conv1\.norm\.", "body.trunk.bn1."),
    (r"^backbone\.(?:bottom_up\.)?stem\.conv1\.", "body.trunk.conv1."),
    (r"^backbone\.(?:bottom_up\.)?res(\d)\.", lambda m: f"body.trunk.layer{int(m[1]) - 1}."),
    (r"^roi_heads\.res5\.norm\.", "body.norm."),
    (r"^roi_heads\.res5\.", "body.trunk.layer4."),
    (r"^backbone\.fpn_lateral(\d)\.norm\.", lambda m: f"body.fpn.inner_blocks.{int(m[1]) - 2}.1."),
    (r"^backbone\.fpn_lateral(\d)\.", lambda m: f"body.fpn.inner_blocks.{int(m[1]) - 2}.0."),
    (r"^backbone\.fpn_output(\d)\.norm\.", lambda m: f"body.fpn.layer_blocks.{int(m[1]) - 2}.1."),
    (r"^backbone\.fpn_output(\d)\.", lambda m: f"body.fpn.layer_blocks.{int(m[1]) - 2}.0."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.conv."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.objectness."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.deltas."),
    (r"^roi_heads\.box_head\.conv(\d)\.norm\.", lambda m: f"body.convs.{int(m[1]) - 1}.1."),
    (r"^roi_heads\.box_head\.conv(\d)\.", lambda m: f"body.convs.{int(m[1]) - 1}.0."),
    (r"^roi_heads\.box_head\.fc1\.", "body.fc."),
    (r"^roi_heads\.box_predictor\.cls_score\.", "predictor.classes."),
    (r"^roi_heads\.box_predictor\.bbox_pred\.", "predictor.boxes."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.norm\.", lambda m: f"mask_head.convs.{int(m[1]) - 1}.1."),
    (r"^roi_heads\.mask_head\.mask_fcn(\d)\.", lambda m: f"mask_head.convs.{int(m[1]) - 1}.0."),
    (r"^roi_heads\.mask_head\.deconv\.", "mask_head.upsample."),
    (r"^roi_heads\.mask_head\.predictor\.", "mask_head.predictor."),
]
_NOT_NETWORK = re.compile(r"^(pixel_mean|pixel_std|proposal_generator\.anchor_generator\..*)$")

MMDET: list[Rule] = [
    (r"^backbone\.", "body.trunk."),
    (r"^roi_head\.shared_head\.layer4\.", "body.trunk.layer4."),
    (r"^roi_head\.shared_head\.norm\.", "body.norm."),  # MMSelfSup's ResLayerExtraNorm
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"body.fpn.inner_blocks.\1.0."),
    (r"^neck\.lateral_convs\.(\d)\.bn\.", r"body.fpn.inner_blocks.\1.1."),
    (r"^neck\.fpn_convs\.(\d)\.conv\.", r"body.fpn.layer_blocks.\1.0."),
    (r"^neck\.fpn_convs\.(\d)\.bn\.", r"body.fpn.layer_blocks.\1.1."),
    (r"^rpn_head\.rpn_conv\.", "rpn.conv."),
    (r"^rpn_head\.rpn_cls\.", "rpn.objectness."),
    (r"^rpn_head\.rpn_reg\.", "rpn.deltas."),
    (r"^roi_head\.bbox_head\.shared_convs\.(\d)\.conv\.", r"body.convs.\1.0."),
    (r"^roi_head\.bbox_head\.shared_convs\.(\d)\.bn\.", r"body.convs.\1.1."),
    (r"^roi_head\.bbox_head\.shared_fcs\.0\.", "body.fc."),
    (r"^roi_head\.bbox_head\.fc_cls\.", "predictor.classes."),
    (r"^roi_head\.bbox_head\.fc_reg\.", "predictor.boxes."),
    (r"^roi_head\.mask_head\.convs\.(\d)\.conv\.", r"mask_head.convs.\1.0."),
    (r"^roi_head\.mask_head\.convs\.(\d)\.bn\.", r"mask_head.convs.\1.1."),
    (r"^roi_head\.mask_head\.upsample\.", "mask_head.upsample."),
    (r"^roi_head\.mask_head\.conv_logits\.", "mask_head.predictor."),
]


def from_detectron2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a whole detector of detectron2's (GeneralizedRCNN).

    Raises:
        KeyError: a tensor has no place in ours.
    """
    found = {_renamed(name, DETECTRON2): x for name, x in state.items() if not _NOT_NETWORK.match(name)}
    in_block = re.compile(r"^body\.trunk\.layer\d\.\d+\.")
    return {_replaced(name, _DETECTRON2_BLOCK) if in_block.match(name) else name: x for name, x in found.items()}


def from_mmdet(state: Mapping[str, Tensor], ratios: int = 3) -> dict[str, Tensor]:
    """Rename the tensors of a whole detector of MMDetection 2.x, and reorder its anchors.

    Args:
        ratios: how many an anchor has.

    Raises:
        KeyError: a tensor has no place in ours.
    """
    renamed = {_renamed(name, MMDET): x for name, x in state.items()}
    anchors = len(renamed["rpn.objectness.bias"])
    sizes = anchors // ratios  # on each level: 5 of C4, 1 of a pyramid
    order = torch.arange(anchors).view(ratios, sizes).T.flatten()  # ours by (size, ratio), theirs at (ratio, size)
    for kind in ("weight", "bias"):
        logits, deltas = renamed[f"rpn.objectness.{kind}"], renamed[f"rpn.deltas.{kind}"]
        renamed[f"rpn.objectness.{kind}"] = logits[order]
        renamed[f"rpn.deltas.{kind}"] = deltas.unflatten(0, (anchors, 4))[order].flatten(0, 1)
    return renamed


def _renamed(name: str, rules: Sequence[Rule]) -> str:
    for pattern, new in rules:
        renamed, count = re.subn(pattern, new, name)
        if count:
            return renamed
    raise KeyError(f"{name}: no tensor of ours")


def _replaced(name: str, rules: Sequence[Rule]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name
