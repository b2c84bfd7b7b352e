"""Phrases of the benchmarks of detection and segmentation, made of their settings and of the constants of their networks: what
test_protocol_texts.py looks for in the docstrings and on the page."""

import inspect
from collections.abc import Sequence
from typing import Any

from swav.data.targets import VOID
from swav.evaluation.catalog import CATALOG
from swav.evaluation.dense_settings import DenseSettings, DetectSettings, DetectVocSettings, SegmentSettings
from swav.evaluation.detection import boxes, models, roi, rpn
from swav.evaluation.detection.augment import with_objects
from swav.evaluation.detection.masks import SIDE
from swav.evaluation.detection.structures import C4_COUNTS, FPN_COUNTS
from swav.evaluation.detection.training import SHIFTS
from swav.evaluation.protocols import segment_linear
from swav.evaluation.segmentation import augment, fcn, training

# Fields that have no setting of their own below, or that others tell.
UNSAID = {"score_every", "pictures"}
UNSAID_OF = {
    "detect-voc": {"precise_norms"},  # of moco and swav
    "detect-coco": {"iterations"},  # auto: those of the epochs
    "segment-cityscapes": {
        *("lr", "momentum", "weight_decay", "flip", "ratios", "most_of_one_class", "channels")
    },  # "as in segment_voc.py", see test_protocol_texts.py
}
MADE_OF = {
    "sides_range": "sides",
    "drops_at": "drops",
    "kept": "proposals",
    "kept_scored": "proposals",
    "one_class": "most_of_one_class",
    "half_channels": "channels",
    "scale_long": "scale",
    "scale_short": "scale",
    "after": "rules",
    "all_parameters": "decay_norms",
}

_SAMPLED = [
    "Of {anchors} anchors of each image at most {positive_anchors} are positive (IoU from {anchor_high}, negative below {anchor_low})",
    "of {rois} RoIs at most a {positive_rois} (from {roi_overlap})",
]
_TRAINED_AND_SCORED = [
    "a side below {smallest} pixels",
    "short side of {sides_range}, long side at most {long}; flip p {flip}",
    "short side {size}, long side at most {long}",
    "above {score}, suppression at {detection_nms}, at most {detections} of each image",
    "sides {anchor_sizes}",
    "shapes {shapes}",
    *_SAMPLED,
    "L1 losses",
]
_SGD = "learning rate {lr}, momentum {momentum}, weight decay {weight_decay} {all_parameters}, batch {batch}"
DOCSTRING = {
    "detect-voc": [
        "trainval of 2007 and of 2012 ({trained} images)",
        "test of 2007 ({scored})",
        "{classes} classes",
        *_TRAINED_AND_SCORED,
        "all four coordinates - {shift}",
        "C4: stem to layer3; ",
        "(3x3 convolution of as many channels, {c4_anchors} anchors: ",
        "RoIAlign of 14x14",
        "the best {before} ({before_scored} in scoring) before, {kept} ({kept_scored}) after suppression at {proposal_nms}",
        _SGD,
        "{iterations} iterations, learning rate x .1 after {drops_at}; linear warm-up of {warmup} iterations from {warmup_factor}",
        "{after}",
        "He et al. 2020",
        "anew from {moco_norms} batches before scoring",
        "left and top - {shift} only",
        "with learning rate {swav_lr} and a warm-up of {swav_warmup} iterations from {swav_factor} of it",
    ],
    "detect-coco": [
        "train2017 ({trained} images with objects)",
        "val2017 ({scored})",
        "{classes} classes",
        *_TRAINED_AND_SCORED,
        "a feature pyramid of {pyramid} channels",
        "{fpn_anchors} anchors a place",
        "RoIAlign of 7x7, box head of four convolutions of {pyramid} with BatchNorm and one layer of {features}",
        "RoIAlign of 14x14, mask head of four convolutions of {pyramid} with BatchNorm, masks of {mask_side}x{mask_side}",
        "the best {before} ({before_scored} in scoring) of each level before, {kept} ({kept_scored}) after suppression at "
        "{proposal_nms}",
        _SGD,
        "{epochs} epochs, learning rate x .1 after {drops_at}; linear warm-up of {warmup} iterations from {warmup_factor}",
        "{after}",
    ],
    "segment-voc": [
        "train.txt (1,464 images, SegmentationClass) and aug.txt (9,118, ",
        "{trained} in all",
        "PASCAL VOC 2012",
        "val.txt ({scored})",
        "{classes} classes with the background, {void} (void)",
        "within {scale_long} x {scale_short} keeping the shape, times U({ratios}); crop of {size}",
        "no class has more than {one_class}",
        "Scoring: within {scale_long} x {scale_short}, the whole image",
        "(after the {tries} try the next is taken as it is); flip p {flip}",
        "brightness +-{brightness}, contrast and saturation {contrast}, hue +-{hue} of 180, each p .5",
        "at stride 8 (dilations 1, 1, 2, 4)",
        "two 3x3 convolutions of {channels} with BatchNorm and ReLU",
        "dropout {dropout}, 1x1",
        "one convolution of {half_channels}, weight {auxiliary}",
        "learning rate {lr}, momentum {momentum}, weight decay {weight_decay} on all parameters, batch {batch}",
        "{iterations} iterations, polynomial decay of power {power} to {least}",
    ],
    "segment-cityscapes": [
        "of train ({trained} images)",
        "of val ({scored})",
        "{classes} classes, {void} (void)",
        "within {scale_long} x {scale_short} keeping the shape; crop of {size}",
        "Scoring: within {scale_long} x {scale_short}, in windows of {size} with stride {stride}",
        "batch {batch}",
        "{iterations} iterations",
    ],
    "segment-linear": [
        "VOC12aug, or a folder",
        "{void}: void",
        "short side to {size}, times U({ratios}); crop of {size}; flip p {flip}",
        "Scoring: short side to {size}, the whole image, filled up to multiples of {multiple} pixels",
        "at most {longest} times the short one",
        "a 1x1 convolution",
        "strides beyond {most_stride} become dilations",
        "learning rate {lr}, momentum {momentum}, weight decay {weight_decay} on all that is trained, batch {batch}",
        "{iterations} iterations, polynomial decay of power {power} to a {hundredth}",
    ],
}
SECTION = {
    "detect-voc": [
        "trainval of 2007 and 2012 ({trained})",
        "test of 2007 ({scored}), {classes} classes",
        "short side {sides_range}, long side at most {long}, flip {flip}",
        "short side {size}",
        "{c4_anchors} anchors",
        "{before} / {before_scored}",
        "{kept} / {kept_scored}",
        "{rois} of each image",
        "learning rate {lr}, momentum {momentum}, weight decay {weight_decay} {all_parameters}, batch {batch}",
        "{iterations} iterations, x .1 after {drops_at}, warm-up of {warmup} from {warmup_factor}",
        "{moco_norms} batches",
        "learning rate {swav_lr}, warm-up of {swav_warmup} iterations from {swav_factor} of it",
        "above {score}, suppression at {detection_nms}, at most {detections}",
    ],
    "detect-coco": [
        "train2017, images with objects ({trained})",
        "val2017 ({scored}), {classes} classes",
        "short side {sides_range}, long side at most {long}, flip {flip}",
        "short side {size}",
        "of {pyramid} channels",
        "{before} / {before_scored}",
        "{kept} / {kept_scored}",
        "{rois} of each image",
        "learning rate {lr}, momentum {momentum}, weight decay {weight_decay} {all_parameters}, batch {batch}",
        "{epochs} epochs, x .1 after {drops_at}, warm-up of {warmup} iterations from {warmup_factor}",
    ],
    "segment-voc": [
        "({trained})",
        "`val.txt` ({scored}), {classes} classes with the background",
        "within {scale_long} x {scale_short}, times U({ratios})",
        "crop of {size}",
        "no class has more than {one_class}",
        "flip {flip}",
        "brightness ±{brightness}, contrast and saturation {contrast}, hue ±{hue} of 180",
        "convolutions of {channels}",
        "convolution of {half_channels}, weight {auxiliary}",
        "learning rate {lr}, momentum {momentum}, weight decay {weight_decay} on all parameters, batch {batch}",
        "{iterations} iterations, polynomial decay of power {power} to {least}",
    ],
    "segment-cityscapes": [
        "train ({trained})",
        "val ({scored}), {classes} classes",
        "within {scale_long} x {scale_short}",
        "crop of {size}",
        "windows of {size} with stride {stride}",
        "batch {batch}",
        "{iterations} iterations",
    ],
    "segment-linear": [
        "short side to {size}, times U({ratios}), crop of {size}, flip {flip}",
        "strides beyond {most_stride} become dilations",
        "multiples of {multiple} pixels",
        "at most {longest} times the short one",
        "learning rate {lr}, momentum {momentum}, weight decay {weight_decay}, batch {batch}",
        "{iterations} iterations, polynomial decay of power {power} to a {hundredth}",
    ],
}


def values_of(bench: str) -> dict[str, Any]:
    """What phrases are made of, beside the settings: numbers, tuples and texts."""
    settings = CATALOG[bench].settings()
    if not isinstance(settings, DenseSettings):
        return {}
    found: dict[str, Any] = {"iterations": settings.steps, "lr": settings.rate, "void": VOID}
    if isinstance(settings, DetectSettings):
        return found | _of_detection(bench, settings)
    found |= {
        "power": training.POWER,
        "least": training.LEAST * settings.rate,
        "hundredth": {0.01: "hundredth"}[training.LEAST],
        "ratios": ", ".join(f"{ratio:g}".removeprefix("0") for ratio in settings.model_dump()["ratios"]),
        "multiple": segment_linear.MULTIPLE,
        "longest": segment_linear.LONGEST,
        "most_stride": segment_linear.STRIDE,
    }
    if isinstance(settings, SegmentSettings):
        found |= {
            "scale_long": f"{settings.scale[0]}",
            "scale_short": f"{settings.scale[1]}",
            "one_class": f"{100 * settings.most_of_one_class:g} %",
            "stride": round(settings.windows * settings.size),
            "tries": {10: "tenth"}[augment.CROP_TRIES],
            "brightness": augment.BRIGHTNESS,
            "contrast": "-".join(f"{factor:g}".removeprefix("0") for factor in augment.CONTRAST),
            "hue": augment.HUE,
            "dropout": fcn.DROPOUT,
            "auxiliary": fcn.AUXILIARY,
            "half_channels": settings.channels // 2,
        }
    return found


def _of_detection(bench: str, settings: DetectSettings) -> dict[str, Any]:
    counts = {"detect-voc": C4_COUNTS, "detect-coco": FPN_COUNTS}[bench]
    sizes: Sequence[Sequence[float]] = models.C4_SIZES if bench == "detect-voc" else models.FPN_SIZES
    fpn = inspect.signature(models.fpn_detector).parameters
    steps = {b - a for a, b in zip(settings.sides, settings.sides[1:], strict=False)}
    length = getattr(settings, "epochs", settings.steps)
    drops = [f"{round(part * length):,}" for part in settings.model_dump()["drops"]]
    found: dict[str, Any] = {
        "sides_range": f"{settings.sides[0]} to {settings.sides[-1]} in steps of {steps.pop()}",
        "long": f"{settings.long}",
        "drops_at": " and ".join(drops),
        "warmup": settings.warmup_steps,
        "before": counts.before_nms[0],
        "before_scored": counts.before_nms[1],
        "kept": settings.proposals[0],
        "kept_scored": settings.proposals[1],
        "after": {"mmdet": "MMDetection 2.28"}[settings.rules],
        "all_parameters": {True: "on all parameters"}[settings.decay_norms],
        "smallest": inspect.signature(with_objects).parameters["smallest"].default,
        "anchor_sizes": ", ".join(f"{size:g}" for level in sizes for size in level),
        "shapes": ", ".join(f"{ratio:g}".removeprefix("0") for ratio in boxes.RATIOS),
        "c4_anchors": len(models.C4_SIZES[0]) * len(boxes.RATIOS),
        "fpn_anchors": len(models.FPN_SIZES[0]) * len(boxes.RATIOS),
        "anchors": counts.anchors,
        "positive_anchors": {0.5: "half"}[counts.positive_anchors],
        "anchor_low": rpn.LOW,
        "anchor_high": rpn.HIGH,
        "positive_rois": {0.25: "quarter"}[counts.positive_rois],
        "roi_overlap": roi.OVERLAP,
        "proposal_nms": counts.proposal_nms,
        "detection_nms": counts.detection_nms,
        "detections": counts.detections,
        "score": counts.score,
        "pyramid": fpn["channels"].default,
        "features": fpn["features"].default,
        "mask_side": SIDE,
        "shift": {SHIFTS["mmdet"]: SHIFTS["mmdet"][0]}[(1, 1, 1, 1)],
    }
    if CATALOG[bench].variants:
        moco, swav = (CATALOG[bench].variants[name]() for name in ("moco", "swav"))
        assert isinstance(moco, DetectVocSettings) and isinstance(swav, DetectVocSettings)
        assert moco.precise_norms == swav.precise_norms and SHIFTS[moco.rules] == (1, 1, 0, 0)
        found |= {
            "moco_norms": moco.precise_norms,
            "swav_lr": swav.rate,
            "swav_warmup": swav.warmup_steps,
            "swav_factor": {round(1 / 3, 9): "a third"}[round(swav.warmup_factor, 9)],
        }
    return found
