"""Masks: the head that predicts them, what it is trained on, and how they are pasted back into the image.

Source: He et al. 2017 (arXiv 1703.06870), as in detectron2 and MMDetection 2.28.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torchvision.ops import roi_align

from swav.evaluation.detection.boxes import wide
from swav.evaluation.detection.heads import convolutions
from swav.evaluation.detection.roi import Rois
from swav.evaluation.detection.structures import Rules, Term, Truth

SIDE = 28  # of predicted masks


class MaskHead(nn.Module):
    """Four convolutions with BatchNorm, one that doubles the size, and a 1x1 that gives a mask of each class.

    Args:
        inputs: channels of the regions' features.
        channels: of the convolutions.
        num_classes: C.
        rules: whose initialisation.
    """

    def __init__(self, inputs: int, channels: int, num_classes: int, rules: Rules):
        super().__init__()
        self.convs = convolutions(inputs, channels, 4)
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.predictor = nn.Conv2d(channels, num_classes, 1)
        nn.init.kaiming_normal_(self.upsample.weight, mode="fan_out", nonlinearity="relu")
        if rules.mask_std is None:
            nn.init.kaiming_normal_(self.predictor.weight, mode="fan_out", nonlinearity="relu")
        else:
            nn.init.normal_(self.predictor.weight, std=rules.mask_std)
        for layer in (self.upsample, self.predictor):
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Float[Tensor, "r F 14 14"]) -> Float[Tensor, "r C 28 28"]:
        """Return logits in float32 at least."""
        return wide(self.predictor(nn.functional.relu(self.upsample(self.convs(features)))))


def mask_targets(
    masks: Float[Tensor, "n H W"], boxes: Float[Tensor, "p 4"], objects: Int64[Tensor, " p"]
) -> Float[Tensor, "p 28 28"]:
    """Return the masks of objects within boxes: 1 where a cell is the object's by half at least.

    Args:
        masks: of the objects.
        boxes: within the image.
        objects: index of each box's object.
    """
    regions = torch.cat([objects[:, None].to(boxes), boxes], dim=1)
    share: Tensor = roi_align(masks[:, None], regions, SIDE, spatial_scale=1.0, sampling_ratio=0, aligned=True)
    return (share[:, 0] >= 0.5).to(boxes.dtype)


def mask_loss(
    logits: Float[Tensor, "p C 28 28"], rois: Sequence[Rois], truths: Sequence[Truth], padding: int | None
) -> Term:
    """Return binary cross-entropy of the true class's mask, its mean over pixels and over the positive regions of all images.

    Args:
        rois: of each image.
        truths: of each image, with masks.
        padding: see Rules.image_padding.
    """
    targets, labels = [], []
    for each, truth in zip(rois, truths, strict=True):
        assert truth.masks is not None
        masks = truth.masks.to(each.boxes.dtype)
        if padding is not None:
            height, width = masks.shape[1:]
            masks = nn.functional.pad(masks, (0, -width % padding, 0, -height % padding))
        targets.append(mask_targets(masks, each.positives, each.objects))
        labels.append(each.labels[: len(each.objects)])
    label = torch.cat(labels)
    chosen = logits[torch.arange(len(label), device=label.device), label]
    total = nn.functional.binary_cross_entropy_with_logits(chosen, torch.cat(targets), reduction="sum")
    return Term(total / SIDE**2, logits.new_tensor(float(len(label))))


def paste_masks(
    masks: Float[Tensor, "n s s"], boxes: Float[Tensor, "n 4"], height: int, width: int
) -> Bool[Tensor, "n {height} {width}"]:
    """Return which pixels of an image belong to each object. One mask is computed at a time, around its box only.

    Args:
        masks: probabilities within the boxes.
        boxes: in pixels of that image, which may be another than the network's input.
        height, width: of the image.
    """
    pasted = masks.new_zeros((len(masks), height, width), dtype=torch.bool)
    for mask, box, target in zip(masks, boxes.tolist(), pasted, strict=True):
        left, top, right, bottom = box
        if not (right > left and bottom > top):
            continue
        rows = range(max(math.floor(top) - 1, 0), min(math.ceil(bottom) + 1, height))
        columns = range(max(math.floor(left) - 1, 0), min(math.ceil(right) + 1, width))
        if not rows or not columns:
            continue
        y = _in_box(rows, top, bottom, mask)
        x = _in_box(columns, left, right, mask)
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
        value = nn.functional.grid_sample(wide(mask)[None, None], grid[None], align_corners=False)
        target[rows.start : rows.stop, columns.start : columns.stop] = value[0, 0] >= 0.5
    return pasted


def _in_box(pixels: range, start: float, end: float, mask: Tensor) -> Float[Tensor, " k"]:
    """Centres of pixels, where a box goes from -1 to 1."""
    centres = torch.arange(pixels.start, pixels.stop, device=mask.device, dtype=wide(mask).dtype) + 0.5
    return (centres - start) / (end - start) * 2 - 1
