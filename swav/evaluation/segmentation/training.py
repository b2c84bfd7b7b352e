"""From a task to its mIoU: what segment-voc, segment-cityscapes and segment-linear share."""

from collections.abc import Callable
from typing import Any

from torch import nn

from swav import dist
from swav.data.images import Images
from swav.data.targets import LabelMaps
from swav.errors import ConfigError
from swav.evaluation import dense
from swav.evaluation.samples import Scale, endless_order, sample_batches
from swav.evaluation.segmentation.augment import Augmentation
from swav.evaluation.segmentation.fcn import Fcn
from swav.evaluation.segmentation.objective import Inference, Segmentation
from swav.evaluation.supervised import TrainingResult
from swav.evaluation.task import ResourceEstimate, Score, Task
from swav.network.dilated import dilated

POWER, LEAST = 0.9, 0.01  # of the polynomial schedule: exponent, and the last rate as a share of the first


def poly(lr: float, steps: int) -> Callable[[int], list[float]]:
    """Return step -> learning rate: (lr - least) (1 - step / steps)^.9 + least, where least is lr / 100."""
    least = LEAST * lr
    return lambda step: [(lr - least) * (1 - step / steps) ** POWER + least]


def check(task: Task[Any], bench: str, stages: int = 2) -> None:
    """Validate settings and data before any computation.

    Args:
        stages: of the backbone, whose maps are needed.

    Raises:
        ConfigError: the backbone has too few stages or, where two are needed, its strides cannot become dilations; or the batch
            is too small.
    """
    dense.check_batch(task, bench)
    if len(task.encoder.stage_channels) < stages:
        raise ConfigError(
            f"{task.encoder.name}: expected a backbone with stages, found {task.encoder.settings['backbone']}; "
            f"{bench} needs the maps of its last {'two' if stages == 2 else 'one'}"
        )
    if stages == 2:
        dilated(task.encoder.trunk)
    assert isinstance(task.train.targets, LabelMaps)


def fcn(task: Task[Any]) -> nn.Module:
    """Return the FCN of a task, ready to be trained."""
    settings, encoder = task.settings, task.encoder
    model = Fcn(
        encoder.trunk,
        encoder.stage_channels,
        task.num_classes,
        channels=settings.channels,
        seed=settings.seed,
        precision=settings.precision,
    )
    model.cpu().requires_grad_(True)
    dense.freeze_unreached(model.trunk)
    return model


def run_fcn(task: Task[Any], bench: str) -> list[Score]:
    """Train and score the FCN, resuming an interrupted training.

    Raises:
        DataError: no image of a split can be read.
        NumericsError: the loss is not finite.
        CheckpointError: there is saved state, and none of it verifies.
    """
    settings = task.settings
    inference = Inference(
        Scale(*settings.scale),
        side=settings.size if settings.windows else 0,
        stride=round(settings.windows * settings.size),
        align_corners=settings.align_corners,
    )
    assert isinstance(task.train.targets, LabelMaps)
    augmentation = Augmentation(
        task.train.targets,
        Scale(*settings.scale),
        settings.ratios,
        settings.size,
        settings.most_of_one_class,
        settings.flip,
        colour=True,
    )
    rates = poly(settings.rate, settings.steps)
    result = train(task, bench, fcn(task), augmentation, inference, rates)
    deviations = task.deviations(result.trained, result.scored, *dense.scaled(settings))
    return [Score("mIoU", result.last["miou"], result.scored, deviations, result.log)]


def train(
    task: Task[Any],
    bench: str,
    model: nn.Module,
    augmentation: Augmentation,
    inference: Inference,
    rates: Callable[[int], list[float]],
) -> TrainingResult:
    """Train and score a model, and draw what it predicts.

    Raises:
        DataError: a map to score cannot be read. It is said before the training: with another map, it would begin anew.
    """
    settings = task.settings
    dist.on_rank0(lambda: _read_all(task.val))
    model = dense.to_device(model, task.device)
    objective = Segmentation(
        bench, task.encoder, model, dense.sgd(model, settings), task.val, inference, workers=task.workers
    )
    order = endless_order(settings.seed, len(task.train), settings.batch)
    return dense.train(
        task,
        objective,
        lambda start: sample_batches(
            task.train,
            augmentation,
            order,
            batch=settings.batch,
            steps=range(start, settings.steps),
            seed=settings.seed,
            workers=task.workers,
        ),
        bench=bench,
        rates=rates,
        steps=settings.steps,
    )


def _read_all(images: Images) -> None:
    """Read every map: 2 s for VOC's 1,449."""
    assert isinstance(images.targets, LabelMaps)
    for i in range(len(images.targets)):
        images.targets[i]


def estimate_resources(task: Task[Any]) -> ResourceEstimate:
    """Estimate resources: dilation makes a ResNet's last maps 4 and 16 times as large, and the heads as much again."""
    settings = task.settings
    weights = 4 * sum(parameter.numel() for parameter in task.encoder.trunk.parameters())
    scored = settings.scale[0] * settings.scale[1] / settings.size**2 / 2  # images to score, in crops of the training
    return ResourceEstimate(
        forwards=round(COST * scored * len(task.val)),
        trained=round(COST * settings.steps * settings.batch),
        memory=round(6 * weights + settings.batch * 600 * settings.size**2 * 4),
        disk=4 * weights,
    )


COST = 4  # forwards of the plain backbone that one of the FCN takes, of the same image
