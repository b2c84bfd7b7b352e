"""Places205 per stage: recognising places by a linear layer on every stage of a backbone that was trained on something else.

Data        Places205, by its lists train_places205.csv (2,448,873) and val_places205.csv (20,500); 205 classes.
Transform   training: short side to 256/224 of the size (224), centre square of that side, random crop of the size in it,
            flip p .5. Scoring: the same resizing, centre crop of the size.
Layer       as in linear_stages.py: five heads (pooled map, BatchNorm without affine, Linear) on a frozen trunk.
Optimiser   SGD on the sum of the heads' losses, learning rate .01, momentum .9, Nesterov, weight decay 1e-4, batch 256.
Schedule    28 epochs, learning rate x .1 after 7, 14 and 21. No warm-up.
Metric      top-1 and top-5 [%] of every head, and of the one whose top-1 is best, at the last epoch, not the best epoch.
Seeds       one, for initial weights, order and crops: they are a pure function of (seed, epoch, sample).
Source      MMSelfSup 0.x resnet50_mhead_8xb32-steplr-28e_places205; from which epoch its numbers are is not documented.
Smoke       size 64, 4 epochs (steps 2, 3), batch 64, at most 2,000 + 1,000 images; listed images may be missing.
"""

from swav.data.augment.spec import RandomWindowCrop, ViewSpec
from swav.evaluation.settings import Places205Settings
from swav.evaluation.stage_heads import check_heads, estimate_resources, train_heads
from swav.evaluation.task import Score, Task

__all__ = ["check", "estimate_resources", "run"]

BENCH = "places205"


def check(task: Task[Places205Settings]) -> None:
    """Validate settings and data before any computation: see stage_heads.check_heads."""
    check_heads(task, BENCH)


def run(task: Task[Places205Settings]) -> list[Score]:
    """Train and score all heads at once: see stage_heads.train_heads."""
    return train_heads(task, BENCH, views_of(task.settings))


def views_of(settings: Places205Settings) -> ViewSpec:
    """Return the views to train on: a window of the size in the central square of 256/224 of it, and a flip."""
    crop = RandomWindowCrop(1, settings.size)
    return ViewSpec((crop,), settings.seed, square=round(settings.size * 256 / 224), flip=settings.flip)
