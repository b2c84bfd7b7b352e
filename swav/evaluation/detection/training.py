"""From a task to its average precision: what detect-voc and detect-coco share."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from swav.data.images import Images
from swav.data.targets import ObjectSets
from swav.errors import DataError
from swav.evaluation import dense
from swav.evaluation.dense_settings import DetectSettings
from swav.evaluation.detection.augment import SMALLEST, Augmentation, Learned, with_objects
from swav.evaluation.detection.detections import Detections
from swav.evaluation.detection.models import Detector
from swav.evaluation.detection.objective import Detection
from swav.evaluation.detection.structures import DETECTRON2, MMDET, Rules
from swav.evaluation.samples import GroupedOrder, SampleBatch, Scale, sample_batches
from swav.evaluation.supervised import TrainingResult
from swav.evaluation.task import NoScore, ResourceEstimate, Score, Task

RULES: Mapping[str, Rules] = {"mmdet": MMDET, "detectron2": DETECTRON2}
# What is subtracted from VOC's left, top, right, bottom, which count pixels from 1.
SHIFTS: Mapping[str, tuple[int, int, int, int]] = {"mmdet": (1, 1, 1, 1), "detectron2": (1, 1, 0, 0)}
NO_SHIFT = (0, 0, 0, 0)
COUNTING = "images with objects that are neither crowds nor difficult"


def warmed_up(settings: DetectSettings, steps: int, drops: tuple[float, ...]) -> Callable[[int], list[float]]:
    """Return step -> learning rates of both groups: a linear warm-up, then a tenth after each of `drops` of the steps."""
    warmup, first = min(settings.warmup_steps, steps), settings.warmup_factor

    def rates(step: int) -> list[float]:
        factor = first + (1 - first) * step / warmup if step < warmup else 1.0
        drop = 0.1 ** sum(step >= round(part * steps) for part in drops)
        return [settings.rate * factor * drop] * 2

    return rates


def optimizer(model: nn.Module, settings: DetectSettings) -> torch.optim.SGD:
    """Return SGD of two groups: norms, which decay where that is asked for, and all else."""
    norms = [
        parameter
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for parameter in module.parameters(recurse=False)
    ]
    of_norms = {id(parameter) for parameter in norms}
    others = [parameter for parameter in model.parameters() if id(parameter) not in of_norms]
    decay = settings.weight_decay if settings.decay_norms else 0.0
    groups: list[dict[str, Any]] = [{"params": others}, {"params": norms, "weight_decay": decay}]
    return torch.optim.SGD(groups, lr=settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay)


def trained_on(task: Task[Any]) -> Images:
    """Return the images to train on: those with objects.

    Raises:
        DataError: there are none.
    """
    assert isinstance(task.train.targets, ObjectSets)
    chosen = with_objects(task.train.targets, task.settings.rules)
    if not len(chosen):
        small = task.train.targets.num_counting(difficult=True).any()
        why = f"all have a side below {SMALLEST} pixels" if small else "crowds are not learned"
        raise DataError(
            f"{task.train.root}: expected images with objects to learn from, found none ({why}); "
            + ("use larger images" if small else "check the annotations")
        )
    return task.train if len(chosen) == len(task.train) else task.train.select(chosen)


def check(task: Task[Any], bench: str) -> None:
    """Validate settings and data before any computation.

    Raises:
        ConfigError: the batch is too small.
        DataError: there is no image with objects to learn from, or no object to score.
    """
    dense.check_batch(task, bench)
    trained_on(task)
    assert isinstance(task.val.targets, ObjectSets)
    if not task.val.targets.num_counting().sum():
        raise DataError(
            f"{task.val.root}: expected objects to score in {task.val.note}, found none that counts; use {COUNTING}"
        )


def train(
    task: Task[Any],
    bench: str,
    model: Detector,
    *,
    images: Images,
    order: GroupedOrder,
    steps: int,
    drops: tuple[float, ...],
    shift: tuple[int, int, int, int],
    masks: bool,
    score: Callable[[ObjectSets, Detections], Mapping[str, float]],
    headline: str,
    precise_norms: int = 0,
) -> TrainingResult:
    """Train and score a detector, continuing an interrupted training.

    Args:
        images: to train on.
        order: of them.
        drops: parts of the steps after which the learning rate is a tenth.
        shift: of the data set's boxes.
        masks: whether masks are learned.
        score: objects and detections to metrics, of which `headline` is shown.
        precise_norms: batches by which BatchNorm's statistics are computed anew before a score.
    """
    settings: DetectSettings = task.settings
    trained = dense.to_device(model, task.device)
    assert isinstance(images.targets, ObjectSets)
    augmentation = Augmentation(
        images.targets, settings.rules, settings.sides, settings.long, settings.flip, shift, masks
    )

    def batches(start: int, end: int = steps) -> Iterator[SampleBatch[Learned]]:
        return sample_batches(
            images,
            augmentation,
            order,
            batch=settings.batch,
            steps=range(start, end),
            seed=settings.seed,
            workers=task.workers,
        )

    objective = Detection(
        label=bench,
        encoder=task.encoder,
        model=trained,
        optimizer=optimizer(trained, settings),
        val=task.val,
        scale=Scale(settings.long, settings.size),
        rules=settings.rules,
        shift=shift,
        score=score,
        headline=headline,
        precision=settings.precision,
        seed=settings.seed,
        workers=task.workers,
        precise=(lambda: batches(0, precise_norms)) if precise_norms else None,
    )
    rates = warmed_up(settings, steps, drops)
    return dense.train(task, objective, batches, bench=bench, rates=rates, steps=steps, images=images)


def scores(task: Task[Any], result: TrainingResult, metrics: tuple[str, ...], *more: str) -> list[Score | NoScore]:
    """Return the results of a training; of a metric for which no object counts, why there is none."""
    deviations = task.deviations(result.trained, result.scored, *dense.scaled(task.settings), *more)
    return [
        Score(name, result.last[name], result.scored, deviations, result.log)
        if name in result.last
        else NoScore(name, f"expected objects to score in {task.val.note}, found none that counts", COUNTING)
        for name in metrics
    ]


def estimate_resources(task: Task[Any], steps: int, cost: float, of_a_roi: float) -> ResourceEstimate:
    """Estimate resources.

    Args:
        cost: forwards of the plain backbone, of a square image of the size, that one of the detector takes.
        of_a_roi: memory of a region that is trained on [bytes].
    """
    settings = task.settings
    weights = 4 * sum(parameter.numel() for parameter in task.encoder.trunk.parameters())
    return ResourceEstimate(
        forwards=round(cost * len(task.val)),
        trained=round(cost * steps * settings.batch),
        memory=round(
            6 * weights + settings.batch * (1800 * 4 * settings.size * settings.long + settings.rois * of_a_roi)
        ),
        disk=8 * weights,
    )
