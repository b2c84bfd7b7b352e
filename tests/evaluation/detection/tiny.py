"""Detectors so small that they take milliseconds, with images and objects for them."""

from typing import Any

import torch

from swav.evaluation.detection.models import c4_detector, fpn_detector
from swav.evaluation.detection.structures import C4_COUNTS, FPN_COUNTS, MMDET, Truth
from swav.network.resnet import ResNet

CLASSES = 4
SIZES = [(64, 96), (60, 90), (50, 96), (64, 70)]  # height, width
_FEW: dict[str, Any] = {"anchors": 40, "rois": 12, "before_nms": (200, 100), "after_nms": (60, 40)}
BUILD = {
    "c4": lambda trunk, rules, counts: c4_detector(trunk, CLASSES, rules, 0, counts=counts),
    "fpn": lambda trunk, rules, counts: fpn_detector(trunk, CLASSES, rules, 0, counts=counts, channels=8, features=16),
}


def resnet(block="bottleneck", **options):
    torch.manual_seed(1)
    return ResNet(block, (1, 1, 1, 1), width=1 / 16, **options)


def detector(kind, rules=MMDET, **counts):
    base = C4_COUNTS if kind == "c4" else FPN_COUNTS
    return BUILD[kind](resnet(), rules, base._replace(**(_FEW | counts)))


def images(count=2, dtype=torch.float32):
    torch.manual_seed(2)
    padded = torch.zeros(count, 3, 64, 96, dtype=dtype)
    for image, (height, width) in zip(padded, SIZES[:count], strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, dtype=dtype)
    return padded


def truths(count=2, empty=()):
    """Two overlapping objects in each image, and none in those that are named."""
    found = []
    for i, (height, width) in enumerate(SIZES[:count]):
        boxes = torch.tensor([[5.5, 8.0, 40.0, 45.5], [20.0, 10.0, 62.5, 48.0]]) + i
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.round().int().tolist(), strict=True):
            mask[top + 3 : bottom, left : right - 5] = 1
        truth = Truth(boxes, torch.tensor([i % CLASSES, 3]), masks)
        found.append(Truth(*(part[:0] for part in truth if part is not None)) if i in empty else truth)
    return found


def loss(terms):
    return sum(term.total / term.count.clamp(min=1) for term in terms.values())
