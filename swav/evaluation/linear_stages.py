"""Linear per stage: a linear layer on every stage of a frozen trunk, all of them trained at once.

Data        ImageNet-1k, labelled: train (1,281,167) to learn from, val (50,000) to score. Any labelled set will do.
Transform   training: random resized crop of the size (224; area .08-1, aspect 3/4-4/3), flip p .5, brightness, contrast and
            saturation by factors of .6-1.4 in random order, and lighting: a change of colour along the principal axes of
            ImageNet's RGB (eigenvalues .2175 .0188 .0045), weights from N(0, .1). Scoring: short side to 256/224 of the
            size, centre crop of the size.
Layer       trunk in eval mode, frozen; feature1 (stem, before max-pool) to feature5 (layer4), pooled to grids of 12, 6, 4,
            3, 2 (of a ResNet-50 at 224: 9216, 9216, 8192, 9216, 8192 values; see features.pool_stages). Each head:
            BatchNorm without affine (momentum .1) over the pooled map, Linear, weights N(0, .01), bias 0.
Optimiser   SGD on the sum of the heads' losses, learning rate .01, momentum .9, Nesterov, weight decay 1e-4, batch 256.
Schedule    90 epochs, learning rate x .1 after 30 and 60. No warm-up.
Metric      top-1 and top-5 [%] of every head, and of the one whose top-1 is best, at the last epoch, not the best epoch.
Seeds       one, for initial weights, order, crops and colours: they are a pure function of (seed, epoch, sample).
Source      target page: 16.98 34.96 49.26 65.98 70.74 (SwAV ResNet-50, 200 epochs, batch 256). MMSelfSup 0.x
            resnet50_mhead_linear-8xb32-steplr-90e_in1k.
Where we differ: the last partial batch of an epoch is dropped. Below 224 pixels maps are pooled adaptively to the same
            grids. Of a trunk that is no ResNet the stages are its own, and grids have at most 9,216 values.
Smoke       size 64, 6 epochs (steps 3, 5), batch 64, at most 2,000 + 1,000 images.

The trunk sees every augmented image once per epoch, for all heads. (Together their features of one image are 44,032
values: kept, those of ImageNet would fill 226 GB, and they are of other crops in every epoch.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from swav.config import Recipe
from swav.errors import ConfigError
from swav.evaluation import finetune
from swav.evaluation.settings import StagesSettings
from swav.evaluation.stages import stage_name
from swav.evaluation.task import Score, Task
from swav.features import stage_features_of

BENCH = "linear-stages"


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
        """Takes pooled stages [N, D], returns logits [N, classes] of each."""
        logits = []
        for norm, layer, x in zip(self.norms, self.layers, stages, strict=True):
            by_channel = x.view(len(x), norm.num_features, -1)  # type: ignore[call-overload]
            logits.append(layer(norm(by_channel).flatten(1)))
        return logits


def check(task: Task[StagesSettings]) -> None:
    """Complains of what can be known without any work.

    Raises:
        ConfigError: the trunk has no stages.
        DataError: there are fewer images than a batch.
    """
    if not task.encoder.stage_channels:
        raise ConfigError(
            f"{task.encoder.name}: expected a trunk with stages for {BENCH}, found {task.encoder.settings['backbone']}, "
            "which has none; use another, or linear"
        )
    _recipe(task)


def run(task: Task[StagesSettings]) -> list[Score]:
    """Trains and scores all heads at once, going on from the last finished epoch of an earlier sitting.

    Raises:
        ConfigError: the trunk has no stages.
        DataError: no image of a half can be read, or there are fewer than a batch.
        NumericsError: the loss is not finite.
        CheckpointError: there is saved state, and none of it verifies.
    """
    check(task)
    settings, recipe = task.settings, _recipe(task)

    def inputs(views: Tensor, lighting: Tensor | None) -> list[Tensor]:
        return stage_features_of(task.encoder, views, task.device, settings.precision, lighting=lighting)

    heads = _start(task)
    names = tuple(stage_name(task.encoder, i) for i in range(len(heads.layers)))
    course = finetune.Course(
        bench=BENCH,
        label=BENCH,
        folder=finetune.state_folder(task, BENCH, task.train),
        heads=names,
        model=heads,
        optimizer=_optimizer(heads, settings),
        rates=lambda epoch: [_learning_rate(settings, epoch)],
        inputs=inputs,
        scored=finetune.evaluation_batches(task, inputs),
        recipe=recipe,
        lighting=settings.lighting,
    )
    outcome = finetune.train(task, task.train, course)
    difference = task.difference(outcome.trained, outcome.scored)
    best = max(names, key=lambda name: float(outcome.last[f"top1 {name}"]))
    return [
        Score(f"top-{k} {shown}", outcome.last[f"top{k} {name}"], outcome.scored, difference, outcome.log)
        for shown, name in [*((name, name) for name in names), ("best layer", best)]
        for k in (1, 5)
    ]


def _start(task: Task[StagesSettings]) -> StageHeads:
    size = task.settings.size
    view = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    values = [part.shape[1] for part in stage_features_of(task.encoder, view, task.device)]
    heads = StageHeads(task.encoder.stage_channels, values, task.num_classes, task.settings.seed)
    return finetune.placed(heads, task.device)


def _optimizer(heads: nn.Module, settings: StagesSettings) -> torch.optim.SGD:
    return torch.optim.SGD(
        heads.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.momentum > 0,
    )


def _recipe(task: Task[StagesSettings]) -> Recipe:
    strength = task.settings.jitter
    return finetune.view_recipe(
        task,
        BENCH,
        len(task.train),
        jitter=(strength, strength, strength, 0.0),
        jitter_probability=1.0 if strength else 0.0,
    )


def _learning_rate(settings: StagesSettings, epoch: int) -> float:
    return settings.lr * 0.1 ** finetune.steps_passed(settings.steps, epoch)
