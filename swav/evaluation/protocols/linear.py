"""Linear: one linear layer, trained on the features of a frozen trunk.

Data        ImageNet-1k, labelled: train (1,281,167) to learn from, val (50,000) to score. Any labelled set will do.
Transform   training: random resized crop of the size (224; area .08-1, aspect 3/4-4/3), flip p .5. Scoring: short side to
            256/224 of the size, centre crop of the size.
Layer       backbone in eval mode, frozen; global average of the last stage; Linear, weights N(0, .01), bias 0.
Optimiser   SGD, learning rate .3, momentum .9, no Nesterov, weight decay 1e-6, batch 256.
Schedule    100 epochs, cosine to 0, constant within an epoch: lr(e) = .3 (1 + cos(pi e / 100)) / 2. No warm-up.
Metric      top-1 and top-5 [%] at the last epoch, not the best.
Seeds       one, for initial weights, order and crops: they are a pure function of (seed, epoch, sample).
Source      MMSelfSup 0.x resnet50_linear-8xb32-coslr-100e_in1k ("SwAV linear evaluation setting"); the paper, section A.4.
            The last, partial batch of an epoch (143 images of ImageNet) is trained on, as there.
Where we differ: one process, so one batch of 256 instead of 8 of 32: the same sums, as the backbone's BatchNorm is frozen.
Smoke       size 64, 8 epochs, at most 2,000 + 1,000 images. The crops are drawn anew in every epoch there, too.
Time        smoke, ResNet-50, Imagenette: 193 s of CPU, 97 s of two cores.

The backbone sees every crop once per epoch and its features are never kept: they are of other crops in every epoch. The
state is a verified checkpoint, so an interrupted benchmark resumes and ends with the same bits.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from swav import dist
from swav.errors import DataError
from swav.evaluation import classification, supervised
from swav.evaluation.settings import LinearSettings
from swav.evaluation.task import ResourceEstimate, Score, Task
from swav.features import features_of
from swav.progress import Progress


class Head(nn.Linear):
    """The layer, as a model of one head."""

    def forward(self, input: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (super().forward(input),)


def check(task: Task[LinearSettings]) -> None:
    """Validate settings and data before any computation.

    Raises:
        ConfigError: the batch cannot be parted among the processes.
    """
    classification.check_batch(task, "linear")


def estimate_resources(task: Task[LinearSettings]) -> ResourceEstimate:
    """Estimate resources: the features of the scored images are kept in memory, those of training never."""
    scored, width = len(task.val), task.encoder.num_features
    layer = 4 * task.num_classes * (width + 1)
    return ResourceEstimate(
        task.settings.epochs * len(task.train) + scored, memory=4 * width * scored, disk=supervised.KEPT * 2 * layer
    )


def run(task: Task[LinearSettings]) -> list[Score]:
    """Train and score one layer, continuing from the state of an interrupted training.

    Raises:
        DataError: no image of a split can be read.
        NumericsError: the loss is not finite.
        CheckpointError: there is saved state, and none of it verifies.
    """
    settings = task.settings
    head, optimizer = _start(task)

    def inputs(views: Tensor, _: Tensor | None) -> Tensor:
        return features_of(task.encoder, views, task.device, settings.precision)

    known: list[tuple[Tensor, Tensor]] = []  # of this process's share of the images to score
    share = len(range(dist.rank(), len(task.val), dist.world_size()))
    with Progress("linear: features", share, quiet=dist.rank() > 0) as progress:
        for features, labels in classification.evaluation_batches(task, inputs)():
            known.append((features.cpu(), labels))
            progress.update(progress.done + len(labels))
    if not any(dist.gather_objects(len(known))):
        raise DataError(f"{task.val.root}: expected readable images to score, found none; check the files")

    def scored() -> Iterable[tuple[Any, Tensor]]:
        return ((features.to(task.device), labels) for features, labels in known)

    objective = classification.Classification(
        label="linear",
        images=task.train,
        views=classification.training_views(task),
        model=head,
        optimizer=optimizer,
        inputs=inputs,
        scored=scored,
    )
    result = classification.train(
        task,
        objective,
        bench="linear",
        folder=classification.state_folder(task, "linear", task.train),
        rates=lambda epoch: [_learning_rate(settings, epoch)],
    )
    deviations = task.deviations(result.trained, result.scored)
    return [Score(f"top-{k}", result.last[f"top{k}"], result.scored, deviations, result.log) for k in (1, 5)]


def _start(task: Task[LinearSettings]) -> tuple[Head, torch.optim.SGD]:
    """A fresh layer and its optimiser."""
    settings = task.settings
    head = Head(task.encoder.num_features, task.num_classes)
    nn.init.normal_(head.weight, std=0.01, generator=torch.Generator().manual_seed(settings.seed))
    nn.init.zeros_(head.bias)
    head.to(task.device)
    optimizer = torch.optim.SGD(
        head.parameters(), lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )
    return head, optimizer


def _learning_rate(settings: LinearSettings, epoch: int) -> float:
    return 0.5 * settings.lr * (1 + math.cos(math.pi * epoch / settings.epochs))
