"""What the benchmarks of detection and segmentation share: their schedule, where their state lies, how they are trained."""

import copy
import operator
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from swav import dist
from swav.data.images import Images
from swav.errors import ConfigError, DataError, NumericsError
from swav.evaluation import supervised
from swav.evaluation.dense_settings import DenseSettings, DetectSettings
from swav.evaluation.pictures import Picture, write_picture
from swav.evaluation.supervised import AnyBatch, Objective, TrainingPlan, TrainingResult
from swav.evaluation.task import Task
from swav.files import PREDICTIONS, not_essential
from swav.network.backbone import in_channels_last
from swav.network.sync_batch_norm import synchronised
from swav.output import say

T = TypeVar("T")

# Part of a state's name, so that a state of another version of the training is not resumed.
VERSION = 1
LINES = 20  # of the log, with a checkpoint each, where no scores on the way are asked for
STEPS_OF_A_LINE = 500  # at most
PROBE = 64  # side of the image that shows which parameters are reached [pixels]
DRAWN_OF = 200  # images to score, of which telling ones are drawn


class DrawnObjective(Objective[Any], Protocol):
    """An objective whose predictions can be drawn."""

    def picture(self, count: int) -> Picture | None:
        """Draw truth and predictions of the best, the median and the worst of the first images to score.

        Args:
            count: images drawn.

        Returns:
            None where no image can be read.
        """
        ...


def train(
    task: Task[Any],
    objective: DrawnObjective,
    batches: Callable[[int], Iterator[AnyBatch]],
    *,
    bench: str,
    rates: Callable[[int], list[float]],
    steps: int,
    images: Images | None = None,
) -> TrainingResult:
    """Train and score a model by its task's settings; see supervised.fit, also for the errors.

    Args:
        batches: this process's shares of the batches from a step on.
        rates: learning rate of each of the optimiser's groups at a step, counted from 0.
        images: of the task's, those that are trained on; None: all.
    """
    settings: DenseSettings = task.settings
    folder = task.out / bench / task.identity(VERSION)[1]
    plan = TrainingPlan(
        bench=bench,
        label=bench,
        folder=folder,
        steps=steps,
        epoch=settings.score_every or max(1, min(STEPS_OF_A_LINE, -(-steps // LINES))),
        evaluate_every=1 if settings.score_every else 0,
        rates=rates,
        seed=settings.seed,
    )
    learned = task.train if images is None else images
    result = supervised.fit(objective, plan, batches, train=learned, val=task.val, device=task.device, out=task.out)
    dist.on_rank0(lambda: _draw(objective, folder / PREDICTIONS, settings.pictures))
    return result


def _draw(objective: DrawnObjective, path: Path, count: int) -> None:
    """Draw predictions beside the truth, where they are not there from an earlier command."""
    if not count or path.exists():
        return
    with not_essential(f"{path}"), dist.single_process(), torch.no_grad():
        objective.model.eval()
        picture = objective.picture(count)
        if picture is not None:
            write_picture(path, picture)
            say(f"predictions are drawn in {path}")


def gathered(label: str, images: int, found: Callable[[range], Iterable[tuple[int, T]]]) -> dict[int, T]:
    """Return what all processes together find in the images to score, by the image's index, in their order.

    Args:
        label: for messages.
        images: how many there are.
        found: from indices to what is found in them; what cannot be read is left out.

    Raises:
        DataError: no image can be read.
        NumericsError: an output is not finite, on any process.
    """
    own, sound = dict[int, T](), True
    try:
        own |= found(range(dist.rank(), images, dist.world_size()))
    except NumericsError:
        sound = False
    shares = dist.gather_objects((own, sound))
    if not all(fine for _, fine in shares):
        raise NumericsError(f"{label}: expected finite outputs to score by, found others; use a smaller lr")
    of_all = dict(sorted((pair for part, _ in shares for pair in part.items()), key=operator.itemgetter(0)))
    if not of_all:
        raise DataError(f"{label}: expected readable images to score, found none; check the files")
    return of_all


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to the device, channels last; under several processes its BatchNorm takes the statistics of all."""
    if dist.is_active():
        model = synchronised(model, device)
    return in_channels_last(model.to(device))


def check_batch(task: Task[Any], bench: str) -> None:
    """Refuse a batch that leaves a process without an image.

    Raises:
        ConfigError: it is smaller than the number of processes.
    """
    if task.settings.batch < dist.world_size():
        raise ConfigError(
            f"{bench}.batch: expected at least one image for each of the {dist.world_size()} processes, found "
            f"{task.settings.batch}"
        )


def sgd(model: nn.Module, settings: DenseSettings) -> torch.optim.SGD:
    """Return SGD on all that is trained, with weight decay on all of it, norms and biases too."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, lr=settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay)


def scaled(settings: DenseSettings) -> list[str]:
    """Name what follows from another batch than the published one."""
    if settings.share == 1:
        return []
    rules = [f"lr {settings.rate:g}"] if settings.lr == "auto" else []
    rules += [f"{settings.steps} iterations"] if settings.iterations == "auto" and not settings.in_epochs else []
    if isinstance(settings, DetectSettings) and settings.warmup == "auto":
        rules.append(f"a warm-up of {settings.warmup_steps}")
    return [f"{', '.join(rules)} by the linear rule"] if rules else []


def trunk_of(task: Task[Any]) -> nn.Module:
    """Return a copy of the backbone, to be trained: other benchmarks want it as it is."""
    trunk = copy.deepcopy(task.encoder.trunk).cpu().requires_grad_(True)
    freeze_unreached(trunk)
    return trunk


def freeze_unreached(trunk: nn.Module) -> None:
    """Freeze parameters that no map depends on, as those of a layer behind the last one: several processes would wait for their
    gradients."""
    image = torch.zeros(1, next(trunk.parameters()).shape[1], PROBE, PROBE)
    training = trunk.training
    maps: list[torch.Tensor] = trunk.eval().stages(image)  # type: ignore[operator]
    trunk.train(training)
    trained = [parameter for parameter in trunk.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(sum(one.sum() for one in maps), trained, allow_unused=True)  # type: ignore[arg-type]
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
