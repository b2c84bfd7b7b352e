"""Boxes: anchors, their coding relative to other boxes, their assignment to objects, and the random choice among them.

A box is left, top, right, bottom in continuous pixels: its width is right - left.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int8, Int64
from torch import Tensor
from torchvision.ops import box_iou

RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors
LARGEST_STEP = math.log(1000 / 16)  # of the logarithm of a width or height, when it is decoded
RPN_WEIGHTS, ROI_WEIGHTS = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)  # of coded x, y, width, height
POSITIVE, NEGATIVE, NEITHER = 1, 0, -1
Weights = tuple[float, float, float, float]


def wide(x: Tensor) -> Tensor:
    """Return x in float32, or float64 where it is that: boxes and losses are never computed in 16 bits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@functools.cache
def cell_anchors(sizes: tuple[float, ...]) -> Float[Tensor, "A 4"]:
    """Return the anchors of one cell around (0, 0), of all ratios, the smallest first. Nothing is rounded.

    Args:
        sizes: square roots of their areas [pixels].
    """
    rows = []
    for size in sizes:
        for ratio in RATIOS:
            width = math.sqrt(size * size / ratio)
            height = ratio * width
            rows.append([-width / 2, -height / 2, width / 2, height / 2])
    return torch.tensor(rows, dtype=torch.float64)


def grid_anchors(cell: Float[Tensor, "A 4"], shape: tuple[int, int], stride: int) -> Float[Tensor, "K 4"]:
    """Return a cell's anchors moved to every cell of a map, the anchors of one cell after those of another.

    Args:
        shape: height and width of the map.
        stride: of the map [pixels]; fixed, whatever the image's size divided by the map's may be.
    """
    y, x = (torch.arange(side, device=cell.device, dtype=cell.dtype) * stride for side in shape)
    top, left = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([left, top, left, top], dim=-1)
    return (shifts[:, :, None] + cell).reshape(-1, 4)


def in_image_cells(
    shapes: Sequence[tuple[int, int]], strides: Sequence[int], anchors: int, size: tuple[int, int], padding: int
) -> Bool[Tensor, " K"]:
    """Return which anchors of a batch belong to cells of one image, padded by itself.

    Args:
        shapes: height and width of each level's map.
        strides: of the levels [pixels].
        anchors: of a cell.
        size: height and width of the image.
        padding: to a multiple of this [pixels].
    """
    flags = []
    for shape, stride in zip(shapes, strides, strict=True):
        rows, columns = (math.ceil(math.ceil(side / padding) * padding / stride) for side in size)
        cells = torch.zeros(*shape, anchors, dtype=torch.bool)
        cells[:rows, :columns] = True
        flags.append(cells.flatten())
    return torch.cat(flags)


def inside(boxes: Float[Tensor, "n 4"], size: tuple[int, int]) -> Bool[Tensor, " n"]:
    """Return which boxes do not cross the border of an image of this height and width."""
    height, width = size
    left, top, right, bottom = boxes.unbind(dim=1)
    return (left >= 0) & (top >= 0) & (right < width) & (bottom < height)


def encode(boxes: Float[Tensor, "n 4"], targets: Float[Tensor, "n 4"], weights: Weights) -> Float[Tensor, "n 4"]:
    """Return the steps from boxes to targets: of the centre by the box's size, and of the logarithm of the size."""
    sizes, target_sizes = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    centres, target_centres = boxes[:, :2] + 0.5 * sizes, targets[:, :2] + 0.5 * target_sizes
    steps = torch.cat([(target_centres - centres) / sizes, torch.log(target_sizes / sizes)], dim=1)
    return steps * steps.new_tensor(weights)


def decode(
    deltas: Float[Tensor, "*n 4"], boxes: Float[Tensor, "*#n 4"], weights: Weights, *, clamp_both_ends: bool
) -> Float[Tensor, "*n 4"]:
    """Return the boxes that steps lead to, in float32 at least.

    Args:
        deltas: as `encode` gives them.
        boxes: from which they lead.
        weights: of the coding.
        clamp_both_ends: see Rules.
    """
    deltas = wide(deltas)
    deltas = deltas / deltas.new_tensor(weights)
    sizes = boxes[..., 2:] - boxes[..., :2]
    centres = boxes[..., :2] + 0.5 * sizes
    growth = deltas[..., 2:].clamp(min=-LARGEST_STEP if clamp_both_ends else None, max=LARGEST_STEP)
    centres = centres + deltas[..., :2] * sizes
    half = 0.5 * growth.exp() * sizes
    return torch.cat([centres - half, centres + half], dim=-1)


def overlaps(objects: Float[Tensor, "m 4"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "m n"]:
    """Return intersection over union; 0 for boxes without area."""
    found: Tensor = box_iou(objects, boxes)
    return found.nan_to_num_(0.0)


def match(
    iou: Float[Tensor, "m n"],
    low: float,
    high: float,
    *,
    best: float | None = None,
    best_moves: bool = False,
) -> tuple[Int8[Tensor, " n"], Int64[Tensor, " n"]]:
    """Assign boxes to objects by their overlap.

    Args:
        iou: of each object with each box.
        low: boxes with less overlap are negative.
        high: from here on they are positive; in between they are neither.
        best: the boxes that an object overlaps most, all of them if there are several, are positive too if it is this
            much at least (and not 0); None: they are not.
        best_moves: these belong to that object (of several to the last), not to the one they overlap most.

    Returns:
        Whether each box is POSITIVE, NEGATIVE or NEITHER, and its object (0 where there are none).
    """
    count = iou.shape[1]
    if not len(iou):
        return iou.new_full((count,), NEGATIVE, dtype=torch.int8), iou.new_zeros(count, dtype=torch.int64)
    most, index = iou.max(dim=0)
    labels = torch.full_like(most, NEITHER, dtype=torch.int8)
    labels[most < low] = NEGATIVE
    labels[most >= high] = POSITIVE
    if best is not None and count:
        peak = iou.amax(dim=1, keepdim=True)
        is_best = (iou == peak) & (peak >= best) & (peak > 0)
        labels[is_best.any(dim=0)] = POSITIVE
        if best_moves:
            numbers = torch.arange(1, len(iou) + 1, device=iou.device, dtype=torch.int32)[:, None]
            last = (is_best * numbers).amax(dim=0)
            index = torch.where(last > 0, last.long() - 1, index)
    return labels, index


def draws(seed: int, purpose: Literal["anchors", "rois"]) -> np.random.Generator:
    """Return random numbers that depend on nothing but these two."""
    return np.random.Generator(np.random.Philox(key=[seed, ("anchors", "rois").index(purpose)]))


def sample(
    labels: Int8[Tensor, " n"], count: int, positive: float, draw: np.random.Generator
) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " q"]]:
    """Choose boxes at random.

    Args:
        labels: as `match` gives them.
        count: how many to choose; all, where there are less.
        positive: largest share of the count that may be positive.
        draw: on the CPU, so a device makes no difference.

    Returns:
        Indices of positive and of negative boxes, each ascending.
    """
    chosen = []
    left = int(count * positive)
    for label in (POSITIVE, NEGATIVE):
        places = torch.nonzero(labels == label)[:, 0]
        if len(places) > left:
            order = np.sort(draw.choice(len(places), size=left, replace=False, shuffle=False))
            places = places[torch.from_numpy(order).to(places.device)]
        chosen.append(places)
        left = count - len(places)
    return chosen[0], chosen[1]
