"""Detectors: Faster R-CNN R50-C4 and Mask R-CNN R50-FPN, equal to detectron2's and MMDetection 2.28's for the same weights.

    images -> maps -> scores and boxes of anchors -> proposals -> features of regions -> classes, boxes, masks

Everything that is decoded, compared or summed up is in float32, also where the convolutions are in bf16.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from swav import dist
from swav.evaluation.detection.boxes import wide
from swav.evaluation.detection.heads import C4, Pyramid
from swav.evaluation.detection.masks import MaskHead, mask_loss
from swav.evaluation.detection.roi import BoxPredictor, Rois, detect, roi_losses, sample_rois
from swav.evaluation.detection.rpn import AnchorPredictions, ProposalNetwork
from swav.evaluation.detection.structures import (
    C4_COUNTS,
    FPN_COUNTS,
    Counts,
    ImageDetections,
    Rules,
    Term,
    Truth,
)

C4_SIZES, FPN_SIZES = [(32.0, 64.0, 128.0, 256.0, 512.0)], [(32.0,), (64.0,), (128.0,), (256.0,), (512.0,)]
Sizes = Sequence[tuple[int, int]]


class Detector(nn.Module):
    """A detector in two stages, all of whose parameters train.

    Args:
        body: makes maps of images, and features of their regions.
        rpn: proposes regions.
        num_classes: C.
        rules: whose.
        counts: of boxes.
        mask_head: None: no masks.

    Attributes:
        padding: sides of a batch of images should be multiples of it [pixels].
        best_roi_iou: see Rules.best_roi_iou_fpn.
    """

    def __init__(
        self,
        body: C4 | Pyramid,
        rpn: ProposalNetwork,
        num_classes: int,
        rules: Rules,
        counts: Counts,
        mask_head: MaskHead | None = None,
    ):
        super().__init__()
        self.body, self.rpn, self.mask_head = body, rpn, mask_head
        self.predictor = BoxPredictor(body.features, num_classes)
        self.num_classes, self.rules, self.counts = num_classes, rules, counts
        pyramid = isinstance(body, Pyramid)
        self.padding = rules.padding[1 if pyramid else 0]
        self.best_roi_iou = rules.best_roi_iou_fpn if pyramid else None

    def forward(
        self,
        images: Float[Tensor, "N C H W"],
        sizes: Sizes,
        truths: Sequence[Truth] | None = None,
        seeds: Sequence[int] | None = None,
    ) -> dict[str, Term] | list[ImageDetections]:
        """Return the loss of images, or what is detected in them.

        Args:
            images: normalised, with zeros at the right and below to have one size.
            sizes: height and width of each without these.
            truths: of each; None: detect.
            seeds: of each, of the choice of anchors and regions that are trained on; not negative.

        Returns:
            With truths the parts of the loss: rpn_objectness, rpn_box, classifier, box and, with a mask head, mask. Their sum
            is the loss. Without, per image its detections.
        """
        maps = self.body(images)
        anchors = self.rpn(maps)
        if truths is None:
            return self._detected(maps, self.rpn.proposals(anchors, sizes, training=False), sizes)
        if seeds is None:
            raise ValueError("seeds: expected one for each image, found none; give them with truths")
        return self._losses(maps, anchors, sizes, truths, seeds)

    def _losses(
        self,
        maps: list[Tensor],
        anchors: AnchorPredictions,
        sizes: Sizes,
        truths: Sequence[Truth],
        seeds: Sequence[int],
    ) -> dict[str, Term]:
        terms = self.rpn.losses(anchors, sizes, truths, seeds)
        proposals = self.rpn.proposals(anchors, sizes, training=True)
        rois = [
            sample_rois(
                boxes,
                truth,
                seed,
                num_classes=self.num_classes,
                rules=self.rules,
                counts=self.counts,
                best=self.best_roi_iou,
            )
            for boxes, truth, seed in zip(proposals, truths, seeds, strict=True)
        ]
        logits, deltas = self.predictor(self.body.regions(maps, [each.boxes for each in rois]))
        terms |= roi_losses(logits, deltas, rois, truths)
        if self.mask_head is not None:
            terms["mask"] = self._mask_loss(self.mask_head, maps, rois, truths)
        return terms

    def _mask_loss(self, head: MaskHead, maps: list[Tensor], rois: Sequence[Rois], truths: Sequence[Truth]) -> Term:
        if not self._anywhere(sum(len(each.objects) for each in rois), maps[0].device):
            nothing = torch.stack([wide(parameter.sum()) for parameter in head.parameters()]).sum() * 0
            return Term(nothing, nothing.detach())
        logits = head(self._mask_features(maps, [each.positives for each in rois]))
        return mask_loss(logits, rois, truths, self.rules.image_padding)

    def _anywhere(self, count: int, device: torch.device) -> bool:
        """True where a process counts something. Synchronised BatchNorm needs all in it then, and is spoilt by none at all."""
        return bool(dist.all_reduce_max(torch.tensor(float(count), device=device)) > 0) if self.training else count > 0

    def _mask_features(self, maps: list[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        assert isinstance(self.body, Pyramid)
        return self.body.pooled(maps, boxes, 14)

    def _detected(self, maps: list[Tensor], proposals: Sequence[Tensor], sizes: Sizes) -> list[ImageDetections]:
        logits, deltas = self.predictor(self.body.regions(maps, proposals))
        counts = [len(boxes) for boxes in proposals]
        found = [
            detect(*parts, self.rules, self.counts)
            for parts in zip(logits.split(counts), deltas.split(counts), proposals, sizes, strict=True)
        ]
        if self.mask_head is None:
            return found
        probabilities = self.mask_head(self._mask_features(maps, [each.boxes for each in found])).sigmoid()
        labels = torch.cat([each.labels for each in found])
        masks = probabilities[torch.arange(len(labels), device=labels.device), labels]
        parts = masks.split([len(each.labels) for each in found])
        return [each._replace(masks=its) for each, its in zip(found, parts, strict=True)]


def c4_detector(trunk: nn.Module, num_classes: int, rules: Rules, seed: int, counts: Counts = C4_COUNTS) -> Detector:
    """Return a Faster R-CNN whose head is the ResNet's last layer, with a BatchNorm behind it.

    Args:
        trunk: taken over as it is: a ResNet of ours, or one of timm's.
        num_classes: without background.
        rules: MMDET or DETECTRON2.
        seed: of the fresh weights.
        counts: of boxes.

    Raises:
        ConfigError: another backbone, or one whose third layer's map is not of stride 16.
    """

    def build() -> Detector:
        body = C4(trunk)
        rpn = ProposalNetwork(body.channels, C4_SIZES, body.strides, rules, counts, inside_only=rules.inside_only_c4)
        return Detector(body, rpn, num_classes, rules, counts)

    return _seeded(build, seed)


def fpn_detector(
    trunk: nn.Module,
    num_classes: int,
    rules: Rules,
    seed: int,
    masks: bool = True,
    counts: Counts = FPN_COUNTS,
    channels: int = 256,
    features: int = 1024,
) -> Detector:
    """Return a Mask R-CNN on a feature pyramid, with BatchNorm in the pyramid and in both heads.

    Args:
        trunk: taken over as it is: any with maps of strides 4, 8, 16 and 32.
        num_classes: without background.
        rules: MMDET or DETECTRON2.
        seed: of the fresh weights.
        masks: False: a Faster R-CNN.
        counts: of boxes.
        channels: of the pyramid and the heads.
        features: of a region.

    Raises:
        ConfigError: the backbone lacks such a map, or takes no images of any size.
    """

    def build() -> Detector:
        body = Pyramid(trunk, channels, features, rules)
        rpn = ProposalNetwork(channels, FPN_SIZES, body.strides, rules, counts, inside_only=False)
        mask_head = MaskHead(channels, channels, num_classes, rules) if masks else None
        return Detector(body, rpn, num_classes, rules, counts, mask_head)

    return _seeded(build, seed)


def _seeded(build: Callable[[], Detector], seed: int) -> Detector:
    """Build with random numbers of this seed, and leave the CPU's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
