"""What goes into a detector and comes out of it, and the numbers that its protocol fixes."""

from typing import NamedTuple

from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor


class Truth(NamedTuple):
    """The objects in one image, in pixels of the network's input.

    Attributes:
        boxes: left, top, right, bottom, each of some area.
        labels: indices into the C classes.
        masks: 1 where the object is, of the image without padding; None: masks are not trained.
    """

    boxes: Float32[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    masks: UInt8[Tensor, "n H W"] | None = None


class ImageDetections(NamedTuple):
    """What was found in one image, in pixels of the network's input, by falling score.

    Attributes:
        boxes: left, top, right, bottom, within the image without padding.
        scores: probability of the class.
        labels: indices into the C classes.
        masks: probability that a pixel of the box is the object's; None: the network gives no masks.
    """

    boxes: Float[Tensor, "n 4"]
    scores: Float[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    masks: Float[Tensor, "n 28 28"] | None = None


class Term(NamedTuple):
    """One part of the loss, which is total / count. Several processes add up both first.

    Attributes:
        total: with a gradient, also where nothing counts.
        count: without.
    """

    total: Float[Tensor, ""]
    count: Float[Tensor, ""]  # type: ignore[assignment]  # it hides tuple.count, which nobody needs


class Rules(NamedTuple):
    """What MMDetection 2.28 and detectron2 do differently in the network.

    Attributes:
        best_anchor_iou: an object's best anchors are positive from this overlap on (0: from any).
        best_anchor_moves: an object's best anchor belongs to it, even where it overlaps another object more.
        best_roi_iou_fpn: the same of proposals, which move, in a feature pyramid; None: an object has no claim to its best.
        inside_only_c4: C4 is not trained on anchors that cross the image's border.
        image_padding: not trained on are anchors of cells beyond the image padded to a multiple of this [pixels], and masks
            are padded so; None: anchors of all cells are used, masks are the image's.
        count_sampled: the proposal network's losses are divided by the number of sampled anchors (and at least 1 positive
            and 1 negative an image), not by the number that should be sampled.
        truths_match_themselves: a true box added to the proposals belongs to its own object, not to the first that it
            overlaps most.
        clamp_both_ends: the smallest decoded width and height is limited, as is the largest.
        padding: sides of a batch are padded to a multiple of this [pixels]: C4, feature pyramid.
        xavier: initialise the pyramid and the fully connected layer from both fans, not from the inputs only.
        mask_std: of the mask predictor's initial weights; None: as a convolution in front of a ReLU.
    """

    best_anchor_iou: float
    best_anchor_moves: bool
    best_roi_iou_fpn: float | None
    inside_only_c4: bool
    image_padding: int | None
    count_sampled: bool
    truths_match_themselves: bool
    clamp_both_ends: bool
    padding: tuple[int, int]
    xavier: bool
    mask_std: float | None


MMDET = Rules(
    best_anchor_iou=0.3,
    best_anchor_moves=True,
    best_roi_iou_fpn=0.5,  # mask_rcnn_r50_fpn.py: match_low_quality=True, min_pos_iou=0.5
    inside_only_c4=True,
    image_padding=32,
    count_sampled=True,
    truths_match_themselves=True,
    clamp_both_ends=True,
    padding=(32, 32),
    xavier=True,
    mask_std=None,
)
DETECTRON2 = Rules(
    best_anchor_iou=0.0,
    best_anchor_moves=False,
    best_roi_iou_fpn=None,
    inside_only_c4=False,
    image_padding=None,
    count_sampled=False,
    truths_match_themselves=False,
    clamp_both_ends=False,
    padding=(1, 32),
    xavier=False,
    mask_std=0.001,
)


class Counts(NamedTuple):
    """How many boxes are kept at each place, and the limits that decide which.

    Attributes:
        before_nms: proposals of each level and image before suppression, in training and in detection.
        after_nms: of each image behind it, in training and in detection.
        anchors: sampled of each image.
        positive_anchors: largest share of them that are positive.
        rois: proposals sampled of each image.
        positive_rois: largest share of them that are positive.
        detections: of each image.
        proposal_nms: proposals of one level that overlap a better one more are dropped [IoU].
        detection_nms: the same of detections of one class.
        score: detections must have a higher one.
    """

    before_nms: tuple[int, int]
    after_nms: tuple[int, int]
    anchors: int = 256
    positive_anchors: float = 0.5
    rois: int = 512
    positive_rois: float = 0.25
    detections: int = 100
    proposal_nms: float = 0.7
    detection_nms: float = 0.5
    score: float = 0.05


C4_COUNTS = Counts(before_nms=(12000, 6000), after_nms=(2000, 1000))
FPN_COUNTS = Counts(before_nms=(2000, 1000), after_nms=(1000, 1000))
