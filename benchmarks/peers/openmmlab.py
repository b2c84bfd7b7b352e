"""Compare the benchmarks of detection and segmentation with MMSelfSup's own settings, on MMDetection's and MMSegmentation's code.

Run: PYTHONPATH=PEERS python benchmarks/peers/openmmlab.py [settings] [transforms] [metrics] [segment-voc] [segment-cityscapes]
         [detect-voc] [detect-coco]

PEERS is a folder that swav doesn't share: `echo "setuptools<81" > old.txt`, and with PIP_CONSTRAINT=old.txt

    pip install --target PEERS --no-deps mmcv==1.7.2 mmdet==2.28.2 mmsegmentation==0.30.0 mmselfsup==0.11.0 addict contourpy cycler
        fonttools kiwisolver matplotlib platformdirs prettytable pyparsing python-dateutil six terminaltables wcwidth yapf

Nothing is compiled: of MMCV's operators only suppression and aligned RoIAlign are needed, and torchvision's stand in for them.

settings    each number of MMSelfSup's four configurations beside ours, and the learning rates of all steps
transforms  images, boxes, masks and maps after the augmentation, both with the same random numbers
metrics     mIoU and 11-point AP of random predictions
NAME        the whole network of that benchmark, with random weights that both are given: losses, gradients, outputs. In float64
            for segmentation, in float32 for detection, as MMDetection's anchors and coded boxes are always. All anchors and
            regions are trained on, since the random choice is each one's own; dropout is off.

Prints the largest difference of each. One thread takes four minutes for all of it.
"""

import sys
import types
from collections.abc import Iterator
from typing import Any

# before the others: it readies MMCV
from openmmlab_networks import DETECT, EPOCH, GPUS, SEGMENT, config, detector, segmenter, step

# isort: split
import mmcv.runner.hooks.lr_updater as mmcv_rates
import mmdet.datasets.pipelines as mmdet_pipelines
import mmseg.datasets.pipelines as mmseg_pipelines
import numpy as np
import torch
from mmdet.core import BitmapMasks, eval_map
from mmseg.core.evaluation import mean_iou as mmseg_miou

from swav.data.targets import LabelMaps, Objects, ObjectSets
from swav.evaluation.detection import augment as detection_augment
from swav.evaluation.detection.coco_eval import encode_mask
from swav.evaluation.detection.detections import Detections
from swav.evaluation.detection.structures import C4_COUNTS, FPN_COUNTS, MMDET
from swav.evaluation.detection.training import warmed_up
from swav.evaluation.detection.voc_ap import voc_ap
from swav.evaluation.samples import Scale
from swav.evaluation.segmentation import augment as segmentation_augment
from swav.evaluation.segmentation.fcn import AUXILIARY, DROPOUT
from swav.evaluation.segmentation.miou import areas, confusion, mean_iou
from swav.evaluation.segmentation.training import poly

# --- settings and learning rates --------------------------------------------------------------------------------------


def settings() -> Iterator[tuple[str, Any, Any]]:
    """Yield name, their value and ours."""
    for name, (ours, path) in (DETECT | SEGMENT).items():
        theirs = config(path)
        optimizer, pipeline = theirs.optimizer, theirs.data.train.pipeline
        yield f"{name}: batch", theirs.data.samples_per_gpu * GPUS[name], ours.batch
        yield f"{name}: lr", optimizer.lr, ours.rate
        yield f"{name}: momentum", optimizer.momentum, ours.momentum
        yield f"{name}: weight decay", optimizer.weight_decay, ours.weight_decay
        yield (
            f"{name}: norms without weight decay",
            "paramwise_cfg" in optimizer,
            name in DETECT and not ours.decay_norms,
        )
        yield f"{name}: steps", theirs.runner.get("max_iters") or theirs.runner.max_epochs * EPOCH, ours.steps
        flip = step(pipeline, "RandomFlip")
        yield f"{name}: flip", flip.get("flip_ratio", flip.get("prob")), ours.flip
    for name, (ours, path) in DETECT.items():
        theirs = config(path)
        model, resize = theirs.model, step(theirs.data.train.pipeline, "Resize")
        counts = C4_COUNTS if name == "detect-voc" else FPN_COUNTS
        train, test = model.train_cfg, model.test_cfg
        yield f"{name}: sides", [tuple(each) for each in resize.img_scale], [(ours.long, side) for side in ours.sides]
        yield (
            f"{name}: scored side",
            tuple(step(theirs.data.test.pipeline, "MultiScaleFlipAug").img_scale),
            (
                ours.long,
                ours.size,
            ),
        )
        yield f"{name}: padding", step(theirs.data.train.pipeline, "Pad").size_divisor, MMDET.padding[0]
        yield f"{name}: before suppression", (train.rpn_proposal.nms_pre, test.rpn.nms_pre), counts.before_nms
        yield f"{name}: proposals", (train.rpn_proposal.max_per_img, test.rpn.max_per_img), ours.proposals
        yield (
            f"{name}: suppression",
            {train.rpn_proposal.nms.iou_threshold, test.rpn.nms.iou_threshold},
            {counts.proposal_nms},
        )
        yield (
            f"{name}: anchors",
            (train.rpn.sampler.num, train.rpn.sampler.pos_fraction),
            (
                counts.anchors,
                counts.positive_anchors,
            ),
        )
        yield (
            f"{name}: regions",
            (train.rcnn.sampler.num, train.rcnn.sampler.pos_fraction),
            (
                ours.rois,
                counts.positive_rois,
            ),
        )
        yield f"{name}: best anchor", train.rpn.assigner.min_pos_iou, MMDET.best_anchor_iou
        yield f"{name}: border", train.rpn.allowed_border == 0, MMDET.inside_only_c4 and name == "detect-voc"
        yield (
            f"{name}: score, suppression, detections",
            (
                test.rcnn.score_thr,
                test.rcnn.nms.iou_threshold,
                test.rcnn.max_per_img,
            ),
            (counts.score, counts.detection_nms, counts.detections),
        )
    for name, (ours, path) in SEGMENT.items():
        theirs = config(path)
        model, pipeline = theirs.model, theirs.data.train.pipeline
        resize, crop = step(pipeline, "Resize"), step(pipeline, "RandomCrop")
        tested = theirs.model.test_cfg
        yield f"{name}: scale", (tuple(resize.img_scale), tuple(resize.ratio_range)), (ours.scale, ours.ratios)
        yield f"{name}: crop", (*crop.crop_size, crop.cat_max_ratio), (ours.size, ours.size, ours.most_of_one_class)
        yield f"{name}: scored scale", tuple(step(theirs.data.test.pipeline, "MultiScaleFlipAug").img_scale), ours.scale
        yield (
            f"{name}: windows",
            (tested.get("crop_size", [0])[0], tested.get("stride", [0])[0]),
            (
                ours.size if ours.windows else 0,
                round(ours.windows * ours.size),
            ),
        )
        yield (
            f"{name}: corners",
            {model.decode_head.align_corners, model.auxiliary_head.align_corners},
            {ours.align_corners},
        )
        yield (
            f"{name}: channels",
            (model.decode_head.channels, model.auxiliary_head.channels),
            (
                ours.channels,
                ours.channels // 2,
            ),
        )
        yield f"{name}: auxiliary loss", model.auxiliary_head.loss_decode.loss_weight, AUXILIARY
        yield f"{name}: dropout", {model.decode_head.dropout_ratio, model.auxiliary_head.dropout_ratio}, {DROPOUT}


def rates() -> Iterator[tuple[str, float]]:
    """Yield name and the largest difference of learning rates over all steps, relative to the first one's."""
    for name, (ours, path) in (DETECT | SEGMENT).items():
        options = dict(config(path).lr_config)
        kind = {"poly": mmcv_rates.PolyLrUpdaterHook, "step": mmcv_rates.StepLrUpdaterHook}[options.pop("policy")]
        if name == "detect-coco":
            options["step"] = [EPOCH * epoch for epoch in options["step"]]
        hook = kind(**options | {"by_epoch": False})
        runner = types.SimpleNamespace(
            optimizer=torch.optim.SGD([torch.zeros(1)], lr=ours.rate), iter=0, max_iters=ours.steps
        )
        hook.before_run(runner)
        own = warmed_up(ours, ours.steps, ours.drops) if name in DETECT else poly(ours.rate, ours.steps)
        worst = 0.0
        for runner.iter in range(ours.steps):
            hook.before_train_iter(runner)
            worst = max(worst, abs(runner.optimizer.param_groups[0]["lr"] - own(runner.iter)[0]))
        yield f"{name}: learning rates of {ours.steps} steps", worst / ours.rate


# --- augmentation -----------------------------------------------------------------------------------------------------


class Legacy:
    """The random numbers that MMDetection and MMSegmentation draw; a coin is `randint(2)` there."""

    uniform, integers = staticmethod(np.random.uniform), staticmethod(np.random.randint)

    @staticmethod
    def random() -> float:
        return 0.0 if np.random.randint(2) else 1.0


def transforms() -> Iterator[tuple[str, float]]:
    """Yield name and the largest difference over some images."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((375, 500, 3), (500, 334, 3), (90, 700, 3))]
    for name, (ours, path) in SEGMENT.items():
        pipeline, worst = config(path).data.train.pipeline, [0, 0, 0]
        chain = [
            getattr(mmseg_pipelines, kind)(
                **{key: value for key, value in step(pipeline, kind).items() if key != "type"}
            )
            for kind in ("Resize", "RandomCrop", "Pad")
        ]
        chain[-1].pad_val = 0
        for seed in range(12):
            image = pixels[seed % 3]
            blocks = rng.integers(0, 4, (6, 6)).repeat(90, 0).repeat(120, 1)[: image.shape[0], : image.shape[1]]
            labels = np.where(blocks == 3, 255, blocks).astype(np.uint8)
            maps = LabelMaps(["0"], list("abc"), lambda _, labels=labels: labels, [b""])
            np.random.seed(seed)
            results = {"img": image[..., ::-1], "gt_semantic_seg": labels, "seg_fields": ["gt_semantic_seg"]}
            for each in chain:
                results = each(results)
            np.random.seed(seed)
            made = segmentation_augment.Augmentation(
                maps, Scale(*ours.scale), ours.ratios, ours.size, ours.most_of_one_class, 0.0, False
            )(0, image, Legacy())
            height, width = made.pixels.shape[:2]
            there = results["img"][..., ::-1].astype(int)
            worst[0] = max(worst[0], np.abs(there[:height, :width] - made.pixels).max())
            worst[1] = max(worst[1], int((results["gt_semantic_seg"] != made.target).sum()))
            np.random.seed(seed)
            distorted = mmseg_pipelines.PhotoMetricDistortion()({"img": image[..., ::-1].copy()})["img"]
            np.random.seed(seed)
            own = segmentation_augment.distort_colours(image, Legacy())
            worst[2] = max(worst[2], np.abs(distorted[..., ::-1].astype(int) - own).max())
        yield f"{name}: pixels after resizing and cropping", worst[0]
        yield f"{name}: pixels of maps that differ", worst[1]
        yield f"{name}: pixels after changing colours", worst[2]
    for name, (ours, path) in DETECT.items():
        masks, differ = name == "detect-coco", [0.0, 0.0, 0]
        options = {
            key: value for key, value in step(config(path).data.train.pipeline, "Resize").items() if key != "type"
        }
        options["img_scale"] = [tuple(each) for each in options["img_scale"]]
        for seed in range(12):
            image, flip = pixels[seed % 3], float(seed % 2)
            height, width = image.shape[:2]
            corners = rng.uniform(0, [width - 9, height - 9], (4, 2))
            sides = rng.uniform(2, [width, height], (4, 2))
            boxes = np.concatenate([corners, corners + sides], axis=1).clip(0, [width, height] * 2).astype(np.float32)
            bits = np.zeros((4, height, width), np.uint8)
            for mask, (left, top, right, bottom) in zip(bits, boxes.astype(int), strict=True):
                mask[top : bottom + 1, left : right + 1] = 1
            objects = Objects(
                boxes,
                np.arange(4),
                np.zeros(4, np.bool_),
                np.zeros(4, np.bool_),
                np.full(4, 100, np.float32),
                np.arange(1, 5),
                [encode_mask(mask.astype(np.bool_)) for mask in bits] if masks else [],
            )
            sets = ObjectSets([objects], list("abcd"), sizes=np.array([[height, width]]), ids=np.array([1]))
            results = {
                "img": image[..., ::-1],
                "img_fields": ["img"],
                "gt_bboxes": boxes.copy(),
                "bbox_fields": ["gt_bboxes"],
            }
            if masks:
                results |= {"gt_masks": BitmapMasks(bits, height, width), "mask_fields": ["gt_masks"]}
            np.random.seed(seed)
            for each in (mmdet_pipelines.Resize(**options), mmdet_pipelines.RandomFlip(flip_ratio=flip)):
                results = each(results)
            np.random.seed(seed)
            drawn = types.SimpleNamespace(integers=np.random.randint, random=lambda: 0.5)
            made = detection_augment.Augmentation(sets, "mmdet", ours.sides, ours.long, flip, (0, 0, 0, 0), masks)(
                0, image, drawn
            )
            differ[0] = max(differ[0], np.abs(results["img"][..., ::-1].astype(int) - made.pixels).max())
            differ[1] = max(differ[1], np.abs(results["gt_bboxes"] - made.target.boxes).max())
            if masks:
                own = np.unpackbits(made.target.masks, axis=2, count=made.pixels.shape[1])
                differ[2] = max(differ[2], int((results["gt_masks"].masks != own).sum()))
        yield f"{name}: pixels after resizing and flipping", differ[0]
        yield f"{name}: boxes [pixels]", differ[1]
        if masks:
            yield f"{name}: pixels of masks that differ", differ[2]


# --- metrics ----------------------------------------------------------------------------------------------------------


def metrics() -> Iterator[tuple[str, float]]:
    """Yield name and the largest difference [%]."""
    rng, worst = np.random.default_rng(0), 0.0
    for _ in range(20):
        truths = rng.integers(0, 9, (4, 30, 40), dtype=np.uint8)  # of 12 classes, some never there
        found = np.where(rng.random(truths.shape) < 0.6, truths, rng.integers(0, 10, truths.shape)).astype(np.uint8)
        truths[rng.random(truths.shape) < 0.1] = 255
        theirs = mmseg_miou([*found], [*truths], 12, 255)["IoU"]
        ours = mean_iou(sum(areas(confusion(a, b, 12)) for a, b in zip(found, truths, strict=True)))
        worst = max(worst, abs(100 * np.nanmean(theirs) - float(ours)))
    yield "mIoU", worst
    worst = 0.0
    for _ in range(20):
        objects, found, annotations, results = [], [], [], []
        for i in range(8):
            boxes = rng.integers(1, 60, (5, 4)).astype(np.float32)
            boxes[:, 2:] += boxes[:, :2]
            labels, difficult = rng.integers(0, 3, 5), rng.random(5) < 0.3
            no = np.zeros(5, np.bool_)
            objects.append(Objects(boxes, labels, difficult, no, np.ones(5, np.float32), np.arange(1, 6), []))
            annotations.append(
                {
                    "bboxes": boxes[~difficult],
                    "labels": labels[~difficult],
                    "bboxes_ignore": boxes[difficult],
                    "labels_ignore": labels[difficult],
                }
            )
            guess = (boxes[rng.integers(0, 5, 12)] + rng.normal(0, 4, (12, 4))).astype(np.float32)
            kinds, scores = rng.integers(0, 3, 12), rng.random(12).astype(np.float32)
            found.append(Detections(np.full(12, i), kinds, scores, guess))
            rows = np.concatenate([guess, scores[:, None]], axis=1)
            results.append([rows[kinds == k] for k in range(3)])
        joined = Detections(
            *(
                np.concatenate([getattr(each, name) for each in found])
                for name in Detections.__annotations__
                if name != "masks"
            )
        )
        sets = ObjectSets(objects, list("abc"), sizes=np.full((8, 2), 130), ids=np.arange(1, 9))
        theirs, _ = eval_map(
            results, annotations, dataset="voc07", use_legacy_coordinate=True, logger="silent", nproc=1
        )
        worst = max(worst, abs(100 * float(theirs) - float(voc_ap(sets, joined).mean[0])))
    yield "11-point AP", worst


def main() -> None:
    parts = sys.argv[1:] or ["settings", "transforms", "metrics", *SEGMENT, *DETECT]
    torch.set_num_threads(1)
    for part in parts:
        if part == "settings":
            for name, theirs, ours in settings():
                print(
                    f"{name:60s} {'equal' if theirs == ours else 'DIFFERS'}  {theirs}"
                    + ("" if theirs == ours else f"  ours {ours}")
                )
        work = {"settings": rates, "transforms": transforms, "metrics": metrics}
        run = work[part]() if part in work else (segmenter if part in SEGMENT else detector)(part)
        for name, difference in run:
            print(f"{name:60s} {difference:.1e}", flush=True)


if __name__ == "__main__":
    main()
