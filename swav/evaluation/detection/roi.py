"""Regions of interest: which are trained on, their features, their class and box, and what is detected in the end.

Source: Ren et al. 2015 (arXiv 1506.01497) and He et al. 2017 (arXiv 1703.06870), as in detectron2 and MMDetection 2.28.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image, roi_align

from swav.evaluation.detection.boxes import ROI_WEIGHTS, decode, draws, encode, match, overlaps, sample, wide
from swav.evaluation.detection.structures import Counts, ImageDetections, Rules, Term, Truth

OVERLAP = 0.5  # with an object, from which on a region is positive; below it is background
SIDE = 56  # the smallest square region of the second level [pixels] is twice this


class Rois(NamedTuple):
    """The regions of one image that are trained on, the positive ones first.

    Attributes:
        boxes: of all.
        labels: index of the class; C is background.
        objects: index of the object of each positive one.
    """

    boxes: Float[Tensor, "r 4"]
    labels: Int64[Tensor, " r"]
    objects: Int64[Tensor, " p"]

    @property
    def positives(self) -> Float[Tensor, "p 4"]:
        return self.boxes[: len(self.objects)]


@torch.no_grad()
def sample_rois(
    proposals: Float[Tensor, "k 4"],
    truth: Truth,
    seed: int,
    *,
    num_classes: int,
    rules: Rules,
    counts: Counts,
    best: float | None,
) -> Rois:
    """Choose the regions of one image that are trained on, among its proposals and its true boxes.

    Args:
        proposals: boxes.
        truth: of the image.
        seed: of the choice.
        num_classes: C.
        rules: whose.
        counts: of boxes.
        best: from which overlap on an object's best proposals belong to it (see `match`); None: they need not.
    """
    objects = truth.boxes.to(proposals)
    boxes = torch.cat([proposals, objects])
    labels, index = match(
        overlaps(objects, proposals if rules.truths_match_themselves else boxes),
        OVERLAP,
        OVERLAP,
        best=best,
        best_moves=True,
    )
    if rules.truths_match_themselves:
        labels = torch.cat([labels, labels.new_ones(len(objects))])
        index = torch.cat([index, torch.arange(len(objects), device=index.device)])
    positive, negative = sample(labels, counts.rois, counts.positive_rois, draws(seed, "rois"))
    classes = truth.labels[index[positive]]
    return Rois(
        boxes[torch.cat([positive, negative])],
        torch.cat([classes, classes.new_full((len(negative),), num_classes)]),
        index[positive],
    )


def level_of(boxes: Float[Tensor, "n 4"], levels: int) -> Int64[Tensor, " n"]:
    """Return the level of a pyramid that each region's features come from: 224x224 pixels are of the third."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return torch.floor(torch.log2(area.sqrt() / SIDE + 1e-6)).clamp(0, levels - 1).long()


def pool(
    maps: Sequence[Float[Tensor, "N C _h _w"]],
    strides: Sequence[int],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    side: int,
) -> Float[Tensor, "r C {side} {side}"]:
    """Return the features of regions, each from the level of its size.

    Aligned RoIAlign with as many samples as a cell has pixels of the map. torchvision's MultiScaleRoIAlign is the older one,
    half a pixel off.

    Args:
        maps: of the images, one per level.
        strides: of the levels [pixels].
        boxes: of each image.
        side: of the features.
    """
    images = torch.cat([torch.full_like(its[:, :1], i) for i, its in enumerate(boxes)])
    all_boxes = torch.cat(list(boxes))
    regions = torch.cat([images, all_boxes], dim=1)
    if len(maps) == 1:
        return _aligned(maps[0], strides[0], regions, side)
    level = level_of(all_boxes, len(maps))
    pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], side, side)
    for i, (x, stride) in enumerate(zip(maps, strides, strict=True)):
        places = torch.nonzero(level == i)[:, 0]
        pooled.index_copy_(0, places, _aligned(x, stride, regions[places], side))
    return pooled


def _aligned(
    x: Float[Tensor, "N C h w"], stride: int, regions: Float[Tensor, "r 5"], side: int
) -> Float[Tensor, "r C {side} {side}"]:
    """RoIAlign in float32 at least, returned in the type of x. Regions are an image's number and a box."""
    x32 = wide(x)
    found: Tensor = roi_align(
        x32, regions.to(x32.dtype), side, spatial_scale=1 / stride, sampling_ratio=0, aligned=True
    )
    return found.to(x.dtype)


class BoxPredictor(nn.Module):
    """A linear classifier, its last class background, and for each other class a linear box.

    Args:
        features: F of a region.
        num_classes: C.
    """

    def __init__(self, features: int, num_classes: int):
        super().__init__()
        self.classes = nn.Linear(features, num_classes + 1)
        self.boxes = nn.Linear(features, num_classes * 4)
        for layer, std in ((self.classes, 0.01), (self.boxes, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Float[Tensor, "r F"]) -> tuple[Float[Tensor, "r C1"], Float[Tensor, "r C 4"]]:
        """Return logits and steps, in float32 at least."""
        return wide(self.classes(features)), wide(self.boxes(features)).view(len(features), -1, 4)


def roi_losses(
    logits: Float[Tensor, "r C1"], deltas: Float[Tensor, "r C 4"], rois: Sequence[Rois], truths: Sequence[Truth]
) -> dict[str, Term]:
    """Return cross-entropy and L1 loss of the regions of some images, both divided by the number of all regions."""
    labels = torch.cat([each.labels for each in rois])
    boxes = torch.cat([each.boxes for each in rois])
    targets = torch.cat([truth.boxes[each.objects] for each, truth in zip(rois, truths, strict=True)]).to(boxes)
    positive = torch.nonzero(labels < deltas.shape[1])[:, 0]  # in the order of targets
    classifier = nn.functional.cross_entropy(logits, labels, reduction="sum")
    box = (deltas[positive, labels[positive]] - encode(boxes[positive], targets, ROI_WEIGHTS)).abs().sum()
    counts = logits.new_tensor(float(len(labels)))
    return {"classifier": Term(classifier, counts), "box": Term(box, counts)}


def detect(
    logits: Float[Tensor, "r C1"],
    deltas: Float[Tensor, "r C 4"],
    proposals: Float[Tensor, "r 4"],
    size: tuple[int, int],
    rules: Rules,
    counts: Counts,
) -> ImageDetections:
    """Return what is detected in one image: of each class the boxes that overlap no surer one much.

    Args:
        logits: of the proposals.
        deltas: their steps, per class.
        size: height and width of the image.
    """
    boxes = decode(deltas, proposals[:, None], ROI_WEIGHTS, clamp_both_ends=rules.clamp_both_ends)
    scores = logits.softmax(dim=1)
    finite = boxes.isfinite().flatten(1).all(dim=1) & scores.isfinite().all(dim=1)
    likely = (scores[:, :-1] > counts.score) & finite[:, None]
    labels = torch.nonzero(likely)[:, 1]
    found, scores = clip_boxes_to_image(boxes[likely], size), scores[:, :-1][likely]
    order = batched_nms(found, scores, labels, counts.detection_nms)[: counts.detections]
    return ImageDetections(found[order], scores[order], labels[order])
