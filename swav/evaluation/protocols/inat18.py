"""iNaturalist 2018 per stage: recognising species by a linear layer on every stage of a backbone trained on something else.

Data        iNaturalist 2018, by train2018.json (437,513) and val2018.json (24,426), or the lists made of them; 8,142 classes.
Transform   training: random resized crop of the size (224; area .08-1, aspect 3/4-4/3), flip p .5. Scoring: short side to
            256/224 of the size, centre crop of the size.
Layer       as in linear_stages.py: five heads (pooled map, BatchNorm without affine, Linear) on a frozen trunk.
Optimiser   SGD on the sum of the heads' losses, learning rate .01, momentum .9, Nesterov, weight decay 1e-4, batch 256.
Schedule    84 epochs, learning rate x .1 after 24, 48 and 72. No warm-up.
Metric      top-1 and top-5 [%] of every head, and of the one whose top-1 is best, at the last epoch, not the best epoch.
Seeds       one, for initial weights, order and crops: they are a pure function of (seed, epoch, sample).
Source      MMSelfSup 0.x resnet50_mhead_8xb32-steplr-84e_inat18. Its SwAV page names the protocol; no number for SwAV was
            ever published.
Smoke       size 64, 4 epochs (steps 2, 3), batch 64, at most 2,000 + 1,000 images; listed images may be missing.
"""

from swav.evaluation.classification import training_views
from swav.evaluation.settings import Inat18Settings
from swav.evaluation.stage_heads import check_heads, estimate_resources, train_heads
from swav.evaluation.task import Score, Task

__all__ = ["check", "estimate_resources", "run"]

BENCH = "inat18"


def check(task: Task[Inat18Settings]) -> None:
    """Validate settings and data before any computation: see stage_heads.check_heads."""
    check_heads(task, BENCH)


def run(task: Task[Inat18Settings]) -> list[Score]:
    """Train and score all heads at once: see stage_heads.train_heads."""
    return train_heads(task, BENCH, training_views(task))
