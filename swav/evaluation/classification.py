"""Training classifiers: the objective, views and checks that linear, linear-stages, places205, inat18 and semisup share."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from swav import dist, signals
from swav.data.augment.crops import lighting
from swav.data.augment.spec import RandomResizedCrop, ViewSpec
from swav.data.images import Images
from swav.data.loader import Batch, Loader
from swav.errors import ConfigError, DataError, NumericsError
from swav.evaluation import supervised
from swav.evaluation.settings import TrainSettings
from swav.evaluation.supervised import Evaluation, Metric, TrainingPlan, TrainingResult
from swav.evaluation.task import Task
from swav.features import EvaluationView, read_views
from swav.metrics import top_k_accuracy
from swav.network.sync_batch_norm import synchronised

AnyModel = TypeVar("AnyModel", bound=nn.Module)

IGNORED = -100  # label of an image that stands in for one that cannot be read
# Part of a state's name, so that a state of another version of the training is not resumed. 2: partial batches are kept.
VERSION = 2


@dataclasses.dataclass(frozen=True)
class Classification:
    """A model with one or several heads, trained by the sum of their cross-entropies: an `Objective`.

    Attributes:
        label: for messages.
        images: to train on, with one label each.
        views: of them, see `training_views`.
        model: takes what `inputs` gives, and returns logits [B, C] per head.
        optimizer: of the model.
        inputs: uint8 views [B, S, S, 3], and lighting [B, 3] or None, to what the model takes. No gradient is needed.
        scored: all images to score, as (what the model takes, labels), this process's share of them.
        heads: a name per output of the model; one empty name: the only one.
    """

    label: str
    images: Images
    views: ViewSpec
    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Callable[[Tensor, Tensor | None], Any]
    scored: Callable[[], Iterable[tuple[Any, Tensor]]]
    heads: tuple[str, ...] = ("",)

    def count(self, batch: Batch) -> int:
        """Return how many images of a batch have a label."""
        return int((self.labels(batch) != IGNORED).sum())

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum over heads of the mean cross-entropy of the images that count."""
        light = None
        if self.views.lighting:
            epoch, samples = batch.epoch, batch.indices.tolist()
            light = torch.from_numpy(lighting(self.views.seed, epoch, samples, self.views.lighting))
        labels = self.labels(batch)
        return cross_entropy(model(self.inputs(batch.views[0], light)), labels)

    def labels(self, batch: Batch) -> Tensor:
        """Return the labels of a batch; IGNORED where another image stands in for one that cannot be read."""
        assert self.images.labels is not None
        labels = torch.from_numpy(self.images.labels)[batch.indices]
        if batch.unreadable:
            missing = {name for name, _ in batch.unreadable}
            labels[torch.tensor([self.images.name(i) in missing for i in batch.indices.tolist()])] = IGNORED
        return labels

    def evaluate(self) -> Evaluation:
        """Return top-1 and top-5 [%] of each head over all images that can be read, as `top1 NAME`.

        Raises:
            DataError: no image can be read.
            NumericsError: a logit is not finite, on any process.
        """
        ranked: list[list[Tensor]] = [[] for _ in self.heads]
        truth: list[Tensor] = []
        sound = torch.ones((), dtype=torch.bool, device=next(self.model.parameters()).device)
        for inputs, labels in self.scored():
            for found, logits in zip(ranked, self.model(inputs), strict=True):
                sound &= logits.isfinite().all()
                found.append(logits.topk(min(5, logits.shape[1]), dim=1).indices.cpu())
            truth.append(labels.cpu())
        own = ([torch.cat(found) for found in ranked], torch.cat(truth)) if truth else None
        shares = dist.gather_objects((own, bool(sound)))
        if not all(fine for _, fine in shares):  # they have an order all the same, and would give a number
            raise NumericsError(
                f"{self.label}: expected finite logits to score by, found others; use a smaller learning rate"
            )
        parts = [part for part, _ in shares if part is not None]
        if not parts:
            raise DataError(f"{self.label}: expected readable images to score, found none; check the files")
        all_labels = torch.cat([labels for _, labels in parts])
        metrics = []
        for head, name in enumerate(self.heads):
            order = torch.cat([found[head] for found, _ in parts])
            metrics += [Metric(f"top{k} {name}".strip(), top_k_accuracy(order, all_labels, k)) for k in (1, 5)]
        return Evaluation(len(all_labels), metrics, f"top-1 {max(metric.value for metric in metrics[::2]):.2f}")


def cross_entropy(outputs: Iterable[Tensor], labels: Tensor) -> Tensor:
    """Return the sum over heads of the mean cross-entropy of the labelled samples; of none, a zero that has a gradient.

    Args:
        outputs: logits [B, C] of each head.
        labels: [B], IGNORED where a sample does not count.
    """
    if bool((labels == IGNORED).all()):
        losses = [0.0 * logits.float().sum() for logits in outputs]
    else:
        outputs = list(outputs)
        labels = labels.to(outputs[0].device)
        losses = [nn.functional.cross_entropy(logits.float(), labels, ignore_index=IGNORED) for logits in outputs]
    return sum(losses[1:], losses[0])


def train(
    task: Task[Any], objective: Classification, *, bench: str, folder: Path, rates: Callable[[int], list[float]]
) -> TrainingResult:
    """Train and score a classifier by its task's settings; see supervised.fit, also for the errors.

    Args:
        folder: of the state, see `state_folder`.
        rates: learning rate of each of the optimiser's groups in an epoch, counted from 0.
    """
    settings: TrainSettings = task.settings
    images = objective.images
    # Rounded up: the last, partial batch is trained on too, as in the sources.
    per_epoch = -(-len(images) // settings.batch)
    plan = TrainingPlan(
        bench=bench,
        label=objective.label,
        folder=folder,
        steps=settings.epochs * per_epoch,
        epoch=per_epoch,
        evaluate_every=settings.score_every_epochs,
        rates=lambda step: rates(step // per_epoch),
        seed=settings.seed,
    )

    def batches(start: int) -> Iterator[Batch]:
        loader = Loader(
            images,
            objective.views,
            batch=settings.batch,
            workers=task.workers,
            rank=dist.rank(),
            world_size=dist.world_size(),
            start_step=start,
            total_steps=plan.steps,
            steps_per_epoch=per_epoch,
            on_device=False,  # a crop, a flip, perhaps colours: little is left for the device
        )
        return iter(loader)

    return supervised.fit(objective, plan, batches, train=images, val=task.val, device=task.device, out=task.out)


def training_views(task: Task[Any]) -> ViewSpec:
    """Return the views that most protocols train on: one random resized crop, and a flip."""
    settings: TrainSettings = task.settings
    crop = RandomResizedCrop(1, settings.size, settings.crop_scale)
    return ViewSpec((crop,), settings.seed, flip=settings.flip)


def evaluation_batches(
    task: Task[Any], inputs: Callable[[Tensor, Tensor | None], Any]
) -> Callable[[], Iterable[tuple[Any, Tensor]]]:
    """Return this process's images to score, cut anew each time: nothing is kept of them."""

    def batches() -> Iterable[tuple[Any, Tensor]]:
        share = task.val.select(range(dist.rank(), len(task.val), dist.world_size()))
        assert share.labels is not None
        view = EvaluationView("centre", task.settings.size)
        at_a_time = 256 if task.device.type == "cuda" else 64
        for views, places in read_views(share, view, at_a_time, task.workers):
            if not dist.is_active():  # the others would wait for this process
                signals.stop_if_asked()
            if places:
                yield inputs(torch.from_numpy(views), None), torch.from_numpy(share.labels)[places]

    return batches


def state_folder(task: Task[Any], bench: str, train: Images, *more: Any) -> Path:
    """Return where the state lies, below the benchmark's own folder.

    Args:
        train: the images to learn from; some of the task's, or all.
        more: what else distinguishes this training.
    """
    return task.out / bench / task.identity(VERSION, train.fingerprint, *more)[1]


def check_batch(task: Task[Any], bench: str) -> None:
    """Refuse a batch that cannot be divided among the processes.

    Args:
        bench: for the message.

    Raises:
        ConfigError: it is no multiple of their number.
    """
    if task.settings.batch % dist.world_size():
        raise ConfigError(
            f"{bench}.batch: expected a multiple of the {dist.world_size()} processes, found {task.settings.batch}"
        )


def check_last_batch(task: Task[Any], bench: str, images: int) -> None:
    """Refuse a last batch of an epoch that BatchNorm cannot normalise: one image, of whose last map one pixel is left.

    Args:
        images: to train on.

    Raises:
        ConfigError: there is such a batch.
    """
    if images % task.settings.batch != 1 or not task.encoder.stage_channels or task.stage_maps()[-1][0, 0].numel() > 1:
        return
    raise ConfigError(
        f"{bench}.batch: expected a last batch that BatchNorm can normalise, found one image (of {images}, by "
        f"{task.settings.batch}) whose last map is one pixel; use {bench}.batch={task.settings.batch + 1}"
        f" or a larger {bench}.size"
    )


def to_device(model: AnyModel, device: torch.device) -> AnyModel:
    """Move a model to the device; under several processes its BatchNorm takes the statistics of all of them."""
    if dist.is_active():
        model = cast(AnyModel, synchronised(model, device))
    return model.to(device)


def num_evaluations(settings: TrainSettings) -> int:
    """Return how often the images to score are scored."""
    every = settings.score_every_epochs or settings.epochs
    return -(-settings.epochs // every)  # rounded up: the last epoch is always scored


def lr_drops_before(steps: Iterable[int], epoch: int) -> int:
    """Return how many drops of the learning rate lie behind an epoch, counted from 0."""
    return sum(epoch >= step for step in steps)
