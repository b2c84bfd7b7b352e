"""VOC07+12 detection: Faster R-CNN on the whole backbone, trained on PASCAL VOC 2007 and 2012.

Data        trainval of 2007 and of 2012 (16,551 images) to learn from, test of 2007 (4,952) to score; 20 classes. Difficult
            objects are not learned: what overlaps them is background. Images with a side below 32 pixels are left out.
Transform   training: short side of 480 to 800 in steps of 32, long side at most 1333; flip p .5; all four coordinates - 1.
            Scoring: short side 800, long side at most 1333. Bilinear without antialiasing.
Layer       C4: stem to layer3; on its map a proposal network (3x3 convolution of as many channels, 15 anchors: sides 32, 64,
            128, 256, 512, shapes .5, 1, 2); aligned adaptive RoIAlign of 14x14; layer4 and one more BatchNorm, averaged, as the
            head. All is trained, BatchNorm synchronised over processes. Anchors that cross the border are not trained on.
            Of 256 anchors of each image at most half are positive (IoU from .7, negative below .3); of 512 RoIs at most a
            quarter (from .5). Proposals: the best 12,000 (6,000 in scoring) before, 2,000 (1,000) after suppression at .7.
            Class-specific boxes, L1 losses. Scored: above .05, suppression at .5, at most 100 of each image.
Optimiser   SGD, learning rate .02, momentum .9, weight decay 1e-4 on all parameters, batch 16.
Schedule    24,000 iterations, learning rate x .1 after 18,000 and 22,000; linear warm-up of 100 iterations from .001 of it.
Metric      AP50 [%]: 11-point average precision at IoU .5 (widths count the last pixel), mean over classes, difficult objects
            ignored; AP75, and AP over IoU .5 to .95 in steps of .05; of the last iteration.
Seeds       one, for fresh weights, order, augmentation, and what is sampled of each image.
Source      MMSelfSup 0.x faster_rcnn_r50_c4_mstrain_24k_voc0712, MMDetection 2.28.
Where we differ: at another batch learning rate, iterations and warm-up change in proportion; a batch holds wide images or high
            ones. All images of a process are filled up to one size, which BatchNorm sees; published are two images on each of
            eight GPUs. Images are normalised as for the weights.
Moco        protocol=moco, as published by He et al. 2020, by detectron2's rules: difficult objects are learned, left and top - 1
            only, resized by Pillow, anchors that cross the border take part, norms do not decay, BatchNorm's statistics are
            computed anew from 200 batches before scoring ("precise BN"), a match needs more than the threshold, boxes and
            scores are rounded as its files have them. What changes in the network: Rules in detection/structures.py.
Swav        protocol=swav: as moco, with learning rate .1 and a warm-up of 1,000 iterations from a third of it, as VISSL has it
            for SwAV.
Smoke       size 160, sides 128 and 160, long 256, batch 4, 100 iterations, 16 RoIs, 100 + 50 proposals, at most 40 images
            scored; the later year and listed images may be missing.
"""

from swav.data.targets import ObjectSets
from swav.evaluation import dense
from swav.evaluation.dense_settings import DetectVocSettings
from swav.evaluation.detection import training
from swav.evaluation.detection.detections import Detections
from swav.evaluation.detection.models import Detector, c4_detector
from swav.evaluation.detection.structures import C4_COUNTS
from swav.evaluation.detection.voc_ap import voc_metrics
from swav.evaluation.samples import GroupedOrder
from swav.evaluation.task import NoScore, ResourceEstimate, Score, Task

BENCH = "detect-voc"
METRICS = ("AP50", "AP", "AP75")


def check(task: Task[DetectVocSettings]) -> None:
    """Validate settings and data before any computation.

    Raises:
        ConfigError: the backbone cannot be split into body and head, or the batch is too small.
        DataError: there is no image with objects, or no object to score.
    """
    training.check(task, BENCH)
    _detector(task)


def run(task: Task[DetectVocSettings]) -> list[Score | NoScore]:
    """Train and score the detector, resuming an interrupted training.

    Raises:
        DataError: no image of a split can be read.
        NumericsError: the loss is not finite.
        CheckpointError: there is saved state, and none of it verifies.
    """
    settings = task.settings
    mmdet = settings.rules == "mmdet"
    images = training.trained_on(task)
    assert isinstance(images.targets, ObjectSets)

    def score(truth: ObjectSets, found: Detections) -> dict[str, float]:
        return voc_metrics(truth, found, match_at_threshold=mmdet, as_text=not mmdet)

    result = training.train(
        task,
        BENCH,
        _detector(task),
        images=images,
        order=GroupedOrder(settings.seed, images.targets.sizes, settings.batch),
        steps=settings.steps,
        drops=settings.drops,
        shift=training.SHIFTS[settings.rules],
        masks=False,
        score=score,
        headline="AP50",
        precise_norms=settings.precise_norms,
    )
    return training.scores(task, result, METRICS)


def _detector(task: Task[DetectVocSettings]) -> Detector:
    settings = task.settings
    counts = C4_COUNTS._replace(after_nms=settings.proposals, rois=settings.rois)
    return c4_detector(dense.trunk_of(task), task.num_classes, training.RULES[settings.rules], settings.seed, counts)


def estimate_resources(task: Task[DetectVocSettings]) -> ResourceEstimate:
    """Estimate resources: the head sees 512 maps of 14x14 of each image."""
    return training.estimate_resources(task, task.settings.steps, cost=6, of_a_roi=8e6)
