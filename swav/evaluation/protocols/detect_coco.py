"""COCO detection: Mask R-CNN with a feature pyramid on the whole backbone, trained on COCO 2017.

Data        train2017 (117,266 images with objects) to learn from, val2017 (5,000) to score; 80 classes. Crowds are not learned.
            Images with a side below 32 pixels are left out.
Transform   training: short side of 640 to 800 in steps of 32, long side at most 1333; flip p .5. Scoring: short side 800, long
            side at most 1333. Bilinear without antialiasing.
Layer       the backbone and a feature pyramid of 256 channels with BatchNorm; on each of its five levels a proposal network
            with 3 anchors a place (sides 32, 64, 128, 256, 512 by level, shapes .5, 1, 2); aligned adaptive RoIAlign of 7x7,
            box head of four convolutions of 256 with BatchNorm and one layer of 1,024; RoIAlign of 14x14, mask head of four
            convolutions of 256 with BatchNorm, masks of 28x28. All is trained, BatchNorm synchronised over processes.
            Of 256 anchors of each image at most half are positive (IoU from .7, negative below .3); of 512 RoIs at most a
            quarter (from .5). Proposals: the best 2,000 (1,000 in scoring) of each level before, 1,000 (1,000) after
            suppression at .7. Class-specific boxes, L1 losses. Scored: above .05, suppression at .5, at most 100 of each image.
Optimiser   SGD, learning rate .02, momentum .9, weight decay 1e-4 on all parameters, batch 16.
Schedule    12 epochs, learning rate x .1 after 8 and 11; linear warm-up of 1,000 iterations from .001 of it.
Metric      AP, AP50, AP75 [%] of boxes and of masks, as COCOeval has them, of the last iteration.
Seeds       one, for fresh weights, order, augmentation, and what is sampled of each image.
Source      MMSelfSup 0.x mask_rcnn_r50_fpn_mstrain_1x_coco, MMDetection 2.28.
Where we differ: at another batch learning rate and warm-up change in proportion; a batch holds wide images or high ones. All
            images of a process are filled up to one size, which BatchNorm sees; published are two images on each of eight GPUs.
            Images are normalised as for the weights.
Smoke       size 160, sides 128 and 160, long 256, batch 4, 100 iterations, 16 RoIs, 100 + 50 proposals, at most 40 images
            scored; listed images may be missing.
"""

from swav.data.targets import ObjectSets
from swav.errors import DataError, printable
from swav.evaluation import dense
from swav.evaluation.dense_settings import DetectCocoSettings
from swav.evaluation.detection import training
from swav.evaluation.detection.coco_eval import coco_metrics
from swav.evaluation.detection.models import Detector, fpn_detector
from swav.evaluation.detection.structures import FPN_COUNTS
from swav.evaluation.samples import GroupedOrder
from swav.evaluation.task import NoScore, ResourceEstimate, Score, Task

BENCH = "detect-coco"
METRICS = tuple(f"{kind} {name}" for kind in ("box", "mask") for name in ("AP", "AP50", "AP75"))


def check(task: Task[DetectCocoSettings]) -> None:
    """Validate settings and data before any computation.

    Raises:
        ConfigError: the backbone has no maps at strides 4, 8, 16 and 32, or the batch is too small.
        DataError: there is no image with objects, or no object to score, or objects have no masks.
    """
    training.check(task, BENCH)
    for images in (task.train, task.val):
        assert isinstance(images.targets, ObjectSets)
        if not images.targets.has_masks:
            raise DataError(
                f"{printable(str(images.root))}: expected a mask of each object (segmentation) in {images.note}, found boxes only; "
                "add polygons or run-length codes to the annotations"
            )
    _detector(task)


def run(task: Task[DetectCocoSettings]) -> list[Score | NoScore]:
    """Train and score the detector, resuming an interrupted training.

    Raises:
        DataError: no image of a split can be read.
        NumericsError: the loss is not finite.
        CheckpointError: there is saved state, and none of it verifies.
    """
    settings = task.settings
    images = training.trained_on(task)
    assert isinstance(images.targets, ObjectSets)
    order = GroupedOrder(settings.seed, images.targets.sizes, settings.batch)
    steps = settings.iterations if settings.iterations != "auto" else settings.epochs * order.steps_per_epoch
    result = training.train(
        task,
        BENCH,
        _detector(task),
        images=images,
        order=order,
        steps=steps,
        drops=settings.drops,
        shift=training.NO_SHIFT,
        masks=True,
        score=coco_metrics,
        headline="box AP",
    )
    return training.scores(task, result, METRICS)


def _detector(task: Task[DetectCocoSettings]) -> Detector:
    settings = task.settings
    counts = FPN_COUNTS._replace(after_nms=settings.proposals, rois=settings.rois)
    return fpn_detector(
        dense.trunk_of(task), task.num_classes, training.RULES[settings.rules], settings.seed, counts=counts
    )


def estimate_resources(task: Task[DetectCocoSettings]) -> ResourceEstimate:
    """Estimate resources."""
    settings = task.settings
    steps = (
        settings.epochs * -(-len(task.train) // settings.batch)
        if settings.iterations == "auto"
        else settings.iterations
    )
    return training.estimate_resources(task, steps, cost=5, of_a_roi=1e6)
