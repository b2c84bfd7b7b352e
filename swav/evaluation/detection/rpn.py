"""The region proposal network: a score and a box for every anchor, and its losses.

Source: Ren et al. 2015 (arXiv 1506.01497), as built in detectron2 and MMDetection 2.28.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torchvision.ops import batched_nms, clip_boxes_to_image

from swav.evaluation.detection.boxes import (
    RATIOS,
    RPN_WEIGHTS,
    cell_anchors,
    decode,
    draws,
    encode,
    grid_anchors,
    in_image_cells,
    inside,
    match,
    overlaps,
    sample,
    wide,
)
from swav.evaluation.detection.structures import Counts, Rules, Term, Truth

LOW, HIGH = 0.3, 0.7  # overlap with objects below which an anchor is negative, and from which on it is positive


class AnchorPredictions(NamedTuple):
    """What the network says of all anchors, level after level, in float32 at least.

    Attributes:
        anchors: boxes, the same for each image.
        logits: the higher, the surer that there is an object.
        deltas: steps from the anchor to the object's box.
        shapes: height and width of each level's map.
    """

    anchors: Float[Tensor, "K 4"]
    logits: Float[Tensor, "N K"]
    deltas: Float[Tensor, "N K 4"]
    shapes: list[tuple[int, int]]

    def per_level(self, anchors: int) -> list[int]:
        """Return the number of anchors of each level."""
        return [height * width * anchors for height, width in self.shapes]


class ProposalNetwork(nn.Module):
    """One convolution of 3x3 with ReLU and two of 1x1, shared by all levels.

    Args:
        channels: of the maps, and of the convolution.
        sizes: of anchors on each level [pixels].
        strides: of the levels [pixels].
        rules: whose.
        counts: of boxes.
        inside_only: whether anchors that cross the image's border are left out of training.
    """

    def __init__(
        self,
        channels: int,
        sizes: Sequence[tuple[float, ...]],
        strides: Sequence[int],
        rules: Rules,
        counts: Counts,
        *,
        inside_only: bool,
    ):
        super().__init__()
        self.sizes, self.strides, self.rules, self.counts = list(sizes), list(strides), rules, counts
        self.inside_only, self.anchors = inside_only, len(sizes[0]) * len(RATIOS)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, self.anchors, 1)
        self.deltas = nn.Conv2d(channels, self.anchors * 4, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor]) -> AnchorPredictions:
        """Predict for every anchor of maps [N, C, H, W], one per level."""
        logits, deltas, anchors, shapes = [], [], [], []
        for x, sizes, stride in zip(maps, self.sizes, self.strides, strict=True):
            hidden = nn.functional.relu(self.conv(x))
            logits.append(wide(self.objectness(hidden)).permute(0, 2, 3, 1).flatten(1))  # rows, columns, anchors
            deltas.append(wide(self.deltas(hidden)).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
            shapes.append((x.shape[2], x.shape[3]))
            anchors.append(grid_anchors(cell_anchors(sizes).to(logits[-1]), shapes[-1], stride))
        return AnchorPredictions(torch.cat(anchors), torch.cat(logits, dim=1), torch.cat(deltas, dim=1), shapes)

    @torch.no_grad()
    def proposals(
        self, found: AnchorPredictions, sizes: Sequence[tuple[int, int]], *, training: bool
    ) -> list[Float[Tensor, "_ 4"]]:
        """Return each image's most likely boxes, the best first, without those that overlap a better one of their level.

        Args:
            sizes: height and width of each image, in which boxes end.
            training: how many there are (see Counts).
        """
        before, after = (numbers[0 if training else 1] for numbers in (self.counts.before_nms, self.counts.after_nms))
        starts, levels = 0, []
        places: list[Int64[Tensor, "N k"]] = []
        for level, count in enumerate(found.per_level(self.anchors)):
            top = found.logits[:, starts : starts + count].topk(min(before, count), dim=1).indices
            places.append(top + starts)
            levels.append(torch.full_like(top[0], level))
            starts += count
        best, level_of = torch.cat(places, dim=1), torch.cat(levels)
        return [
            self._of_image(found.logits[i, best[i]], found.deltas[i, best[i]], found.anchors[best[i]], level_of, size)[
                :after
            ]
            for i, size in enumerate(sizes)
        ]

    def _of_image(
        self,
        logits: Float[Tensor, " k"],
        deltas: Float[Tensor, "k 4"],
        anchors: Float[Tensor, "k 4"],
        levels: Int64[Tensor, " k"],
        size: tuple[int, int],
    ) -> Float[Tensor, "_ 4"]:
        boxes = decode(deltas, anchors, RPN_WEIGHTS, clamp_both_ends=self.rules.clamp_both_ends)
        finite = boxes.isfinite().all(dim=1) & logits.isfinite()
        boxes = clip_boxes_to_image(boxes, size)
        kept = finite & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, logits, levels = boxes[kept], logits[kept], levels[kept]
        order: Tensor = batched_nms(boxes, logits, levels, self.counts.proposal_nms)
        best: Tensor = boxes[order]
        return best

    def losses(
        self,
        found: AnchorPredictions,
        sizes: Sequence[tuple[int, int]],
        truths: Sequence[Truth],
        seeds: Sequence[int],
    ) -> dict[str, Term]:
        """Return cross-entropy and L1 loss of sampled anchors.

        Args:
            sizes: height and width of each image.
            truths: of each image.
            seeds: of the choice of anchors, of each image.
        """
        objectness, box, count = found.logits.sum() * 0, found.deltas.sum() * 0, 0
        for i, (size, truth, seed) in enumerate(zip(sizes, truths, seeds, strict=True)):
            objects = truth.boxes.to(found.anchors)
            positive, negative, index = self.assign(found, size, objects, seed)
            logits = found.logits[i, torch.cat([positive, negative])]
            targets = (torch.arange(len(logits), device=logits.device) < len(positive)).to(logits.dtype)
            objectness = objectness + nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
            steps = encode(found.anchors[positive], objects[index], RPN_WEIGHTS)
            box = box + (found.deltas[i, positive] - steps).abs().sum()
            sampled = max(len(positive), 1) + max(len(negative), 1)
            count += sampled if self.rules.count_sampled else self.counts.anchors
        counts = objectness.new_tensor(float(count))
        return {"rpn_objectness": Term(objectness, counts), "rpn_box": Term(box, counts)}

    @torch.no_grad()
    def assign(
        self, found: AnchorPredictions, size: tuple[int, int], objects: Float[Tensor, "n 4"], seed: int
    ) -> tuple[Int64[Tensor, " p"], Int64[Tensor, " q"], Int64[Tensor, " p"]]:
        """Choose the anchors of one image that are trained on.

        Args:
            size: its height and width.
            objects: their boxes.
            seed: of the choice.

        Returns:
            Indices of positive and of negative anchors, and the object of each positive one.
        """
        usable = torch.nonzero(self._usable(found, size))[:, 0]
        labels, index = match(
            overlaps(objects, found.anchors[usable]),
            LOW,
            HIGH,
            best=self.rules.best_anchor_iou,
            best_moves=self.rules.best_anchor_moves,
        )
        positive, negative = sample(labels, self.counts.anchors, self.counts.positive_anchors, draws(seed, "anchors"))
        return usable[positive], usable[negative], index[positive]

    def _usable(self, found: AnchorPredictions, size: tuple[int, int]) -> Bool[Tensor, " K"]:
        usable = torch.ones_like(found.anchors[:, 0], dtype=torch.bool)
        if self.rules.image_padding is not None:
            cells = in_image_cells(found.shapes, self.strides, self.anchors, size, self.rules.image_padding)
            usable &= cells.to(usable.device)
        if self.inside_only:
            usable &= inside(found.anchors, size)
        return usable
