"""What detectors compute, once more: NumPy in float64, in plain loops, from the papers and from the two code bases' rules."""

import math

import numpy as np


def boxes_of_cell(sizes, ratios=(0.5, 1.0, 2.0)):
    """Anchors around (0, 0): area size^2, height / width = ratio, sizes outermost."""
    found = []
    for size in sizes:
        for ratio in ratios:
            height = size * math.sqrt(ratio)
            width = size / math.sqrt(ratio)
            found.append([-width / 2, -height / 2, width / 2, height / 2])
    return np.array(found)


def iou(a, b):
    found = np.zeros((len(a), len(b)))
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            width = min(p[2], q[2]) - max(p[0], q[0])
            height = min(p[3], q[3]) - max(p[1], q[1])
            if width > 0 and height > 0:
                shared = width * height
                total = (p[2] - p[0]) * (p[3] - p[1]) + (q[2] - q[0]) * (q[3] - q[1])
                found[i, j] = shared / (total - shared)
    return found


def anchor_labels(objects, anchors, moves, minimum):
    """1, 0 or -1 of each anchor, and its object: Faster R-CNN section 3.1.2, ties to the first object.

    moves, minimum: MMDetection gives an object's best anchors to it from .3 on; detectron2 leaves them where they overlap most.
    """
    overlap = iou(objects, anchors)
    labels, of = [], []
    for j in range(len(anchors)):
        best = max(range(len(objects)), key=lambda i: overlap[i, j], default=0)
        value = overlap[best, j] if len(objects) else 0.0
        labels.append(1 if value >= 0.7 else 0 if value < 0.3 else -1)
        of.append(best)
    for i in range(len(objects)):
        peak = overlap[i].max()
        for j in range(len(anchors)):
            if overlap[i, j] == peak and peak >= minimum and peak > 0:
                labels[j] = 1
                if moves:
                    of[j] = i
    return np.array(labels), np.array(of)


def steps(boxes, targets, weights=(1, 1, 1, 1)):
    found = []
    for b, t in zip(boxes, targets, strict=True):
        w, h, tw, th = b[2] - b[0], b[3] - b[1], t[2] - t[0], t[3] - t[1]
        dx = ((t[0] + t[2]) / 2 - (b[0] + b[2]) / 2) / w
        dy = ((t[1] + t[3]) / 2 - (b[1] + b[3]) / 2) / h
        found.append([dx * weights[0], dy * weights[1], math.log(tw / w) * weights[2], math.log(th / h) * weights[3]])
    return np.array(found).reshape(-1, 4)


def binary_cross_entropy(logits, targets):
    return np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))


def cross_entropy(logits, labels):
    top = logits.max(axis=1, keepdims=True)
    log = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return log - logits[np.arange(len(labels)), labels]


def roi_align(x, box, side, scale):
    """Aligned and adaptive RoIAlign of one box of a map [C, H, W]: mean of bilinear samples of each cell."""
    left, top, right, bottom = (edge * scale - 0.5 for edge in box)  # pixel i's centre lies at i
    cell = (bottom - top) / side, (right - left) / side
    count = [math.ceil(length) for length in cell]
    found = np.zeros((len(x), side, side))
    for row in range(side):
        for column in range(side):
            for i in range(count[0]):
                for j in range(count[1]):
                    y = top + (row + (i + 0.5) / count[0]) * cell[0]
                    z = left + (column + (j + 0.5) / count[1]) * cell[1]
                    found[:, row, column] += _bilinear(x, y, z) / (count[0] * count[1])
    return found


def _bilinear(x, row, column):
    height, width = x.shape[1:]
    if row < -1 or row > height or column < -1 or column > width:
        return np.zeros(len(x))
    row, column = min(max(row, 0.0), height - 1.0), min(max(column, 0.0), width - 1.0)
    r, c = int(row), int(column)
    r2, c2 = min(r + 1, height - 1), min(c + 1, width - 1)
    a, b = row - r, column - c
    upper = (1 - b) * x[:, r, c] + b * x[:, r, c2]
    lower = (1 - b) * x[:, r2, c] + b * x[:, r2, c2]
    return (1 - a) * upper + a * lower


def suppressed(boxes, scores, groups, threshold):
    """Indices of the boxes that stay, the best first."""
    kept: list[int] = []
    for i in np.argsort(-np.asarray(scores), kind="stable"):
        if all(groups[i] != groups[j] or iou(boxes[[i]], boxes[[j]])[0, 0] <= threshold for j in kept):
            kept.append(i)
    return kept


def pasted(mask, box, height, width):
    """A mask over its box in an image: bilinear, zero around it, pixels' centres at half numbers, .5 is inside."""
    side = len(mask)
    framed = np.pad(mask, 1)
    found = np.zeros((height, width), bool)
    for y in range(height):
        for x in range(width):
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * side - 0.5 + 1
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * side - 0.5 + 1
            if 0 <= u < side + 1 and 0 <= v < side + 1:
                r, c = int(v), int(u)
                a, b = v - r, u - c
                value = (1 - a) * ((1 - b) * framed[r, c] + b * framed[r, c + 1])
                value += a * ((1 - b) * framed[r + 1, c] + b * framed[r + 1, c + 1])
                found[y, x] = value >= 0.5
    return found
