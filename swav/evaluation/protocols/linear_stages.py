"""Linear per stage: a linear layer on every stage of a frozen backbone, all of them trained at once.

Data        ImageNet-1k, labelled: train (1,281,167) to learn from, val (50,000) to score. Any labelled set will do.
Transform   training: random resized crop of the size (224; area .08-1, aspect 3/4-4/3), flip p .5, brightness, contrast and
            saturation by factors of .6-1.4 in random order, and lighting: a change of colour along the principal axes of
            ImageNet's RGB (eigenvalues .2175 .0188 .0045), weights from N(0, .1). Scoring: short side to 256/224 of the
            size, centre crop of the size.
Layer       backbone in eval mode, frozen; feature1 (stem, before max-pool) to feature5 (layer4), pooled to grids of 12, 6, 4,
            3, 2 (of a ResNet-50 at 224: 9216, 9216, 8192, 9216, 8192 values; see features.pool_stages). Each head:
            BatchNorm without affine (momentum .1) over the pooled map, Linear, weights N(0, .01), bias 0.
Optimiser   SGD on the sum of the heads' losses, learning rate .01, momentum .9, Nesterov, weight decay 1e-4, batch 256.
Schedule    90 epochs, learning rate x .1 after 30 and 60. No warm-up.
Metric      top-1 and top-5 [%] of every head, and of the one whose top-1 is best, at the last epoch, not the best epoch.
Seeds       one, for initial weights, order, crops and colours: they are a pure function of (seed, epoch, sample).
Source      MMSelfSup 0.x resnet50_mhead_linear-8xb32-steplr-90e_in1k.
Where we differ: below 224 pixels maps are pooled adaptively to the same grids. Of a backbone that is no ResNet the stages are
            its own, and grids have at most 9,216 values.
Smoke       size 64, 6 epochs (steps 3, 5), batch 64, at most 2,000 + 1,000 images.
Time        smoke, ResNet-50, Imagenette: 197 s of CPU, 99 s of two cores.

The backbone sees every augmented image once per epoch, for all heads. (Together their features of one image are 44,032
values: kept, those of ImageNet would fill 226 GB, and they are of other crops in every epoch.)
"""

import dataclasses

from swav.data.augment.spec import ViewSpec
from swav.evaluation.classification import training_views
from swav.evaluation.settings import StagesSettings
from swav.evaluation.stage_heads import check_heads, estimate_resources, train_heads
from swav.evaluation.task import Score, Task

__all__ = ["check", "estimate_resources", "run"]

BENCH = "linear-stages"


def check(task: Task[StagesSettings]) -> None:
    """Validate settings and data before any computation: see stage_heads.check_heads."""
    check_heads(task, BENCH)


def run(task: Task[StagesSettings]) -> list[Score]:
    """Train and score all heads at once: see stage_heads.train_heads."""
    return train_heads(task, BENCH, views_of(task))


def views_of(task: Task[StagesSettings]) -> ViewSpec:
    """Return the views to train on: those of most protocols, with jitter and lighting."""
    strength = task.settings.jitter
    return dataclasses.replace(
        training_views(task),
        jitter=(strength, strength, strength, 0.0),
        jitter_probability=1.0 if strength else 0.0,
        lighting=task.settings.lighting,
    )
