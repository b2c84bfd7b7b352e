"""Linear layers on every stage of a frozen backbone, trained at once: what linear-stages, places205 and inat18 share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swav.data.augment.spec import ViewSpec
from swav.errors import ConfigError
from swav.evaluation import classification, supervised
from swav.evaluation.settings import StageTraining
from swav.evaluation.stages import pooling, stage_name
from swav.evaluation.task import ResourceEstimate, Score, Task
from swav.features import stage_features_of


class StageHeads(nn.Module):
    """BatchNorm without affine and a linear layer for each stage.

    Args:
        channels, values: of each stage, before and after it is pooled and flattened, channel by channel.
        num_classes: outputs of each layer.
        seed: of the layers' weights.
    """

    def __init__(self, channels: Sequence[int], values: Sequence[int], num_classes: int, seed: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(count, affine=False, momentum=0.1) for count in channels)
        self.layers = nn.ModuleList(nn.Linear(count, num_classes) for count in values)
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.01, generator=generator)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Take pooled stages [N, D], return logits [N, classes] of each."""
        logits = []
        for norm, layer, x in zip(self.norms, self.layers, stages, strict=True):
            by_channel = torch.unflatten(x, 1, (norm.num_features, -1))  # type: ignore[arg-type]  # of no images, too
            logits.append(layer(norm(by_channel).flatten(1)))
        return logits


def check_heads(task: Task[Any], bench: str) -> None:
    """Validate settings and data before any computation.

    Raises:
        ConfigError: the backbone has no stages, the batch cannot be parted among the processes, or the last
            one of an epoch cannot be normalised.
    """
    if not task.encoder.stage_channels:
        raise ConfigError(
            f"{task.encoder.name}: expected a backbone with stages for {bench}, found {task.encoder.settings['backbone']}, "
            "which has none; use another, or linear"
        )
    classification.check_batch(task, bench)
    classification.check_last_batch(task, bench, len(task.train))


def estimate_resources(task: Task[Any]) -> ResourceEstimate:
    """Estimate resources: every augmented image once through the backbone, for all heads together."""
    settings: StageTraining = task.settings
    values = sum(task.stage_values())
    layers = 4 * task.num_classes * values
    scores = classification.num_evaluations(settings) * len(task.val)
    return ResourceEstimate(
        settings.epochs * len(task.train) + scores,
        memory=3 * layers + 2 * 4 * values * settings.batch,
        disk=supervised.KEPT * 2 * layers,
    )


def train_heads(task: Task[Any], bench: str, views: ViewSpec) -> list[Score]:
    """Train and score all heads at once, continuing from the state of an interrupted training.

    Args:
        bench: its name.
        views: of the images to train on.

    Returns:
        Top-1 and top-5 of each head, and of the one whose top-1 is best.

    Raises:
        ConfigError: the backbone has no stages.
        DataError: no image of a split can be read.
        NumericsError: the loss is not finite.
        CheckpointError: there is saved state, and none of it verifies.
    """
    settings: StageTraining = task.settings

    def inputs(views: Tensor, light: Tensor | None) -> list[Tensor]:
        return stage_features_of(task.encoder, views, task.device, settings.precision, lighting=light)

    heads = fresh_heads(task)
    names = tuple(stage_name(task.encoder, i) for i in range(len(heads.layers)))
    objective = classification.Classification(
        label=bench,
        images=task.train,
        views=views,
        model=heads,
        optimizer=optimizer_of(heads, settings),
        inputs=inputs,
        scored=classification.evaluation_batches(task, inputs),
        heads=names,
    )
    result = classification.train(
        task,
        objective,
        bench=bench,
        folder=classification.state_folder(task, bench, task.train),
        rates=lambda epoch: [learning_rate(settings, epoch)],
    )
    deviations = task.deviations(result.trained, result.scored, *filter(None, [pooling(task)]))
    best = max(names, key=lambda name: float(result.last[f"top1 {name}"]))
    return [
        Score(f"top-{k} {shown}", result.last[f"top{k} {name}"], result.scored, deviations, result.log)
        for shown, name in [*((name, name) for name in names), ("best layer", best)]
        for k in (1, 5)
    ]


def fresh_heads(task: Task[Any]) -> StageHeads:
    """On the task's device, of the values that its views are pooled to."""
    heads = StageHeads(task.encoder.stage_channels, task.stage_values(), task.num_classes, task.settings.seed)
    return classification.to_device(heads, task.device)


def optimizer_of(heads: nn.Module, settings: StageTraining) -> torch.optim.SGD:
    return torch.optim.SGD(
        heads.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


def learning_rate(settings: StageTraining, epoch: int) -> float:
    return settings.lr * 0.1 ** classification.lr_drops_before(settings.steps, epoch)
