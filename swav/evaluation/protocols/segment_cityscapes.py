"""Cityscapes segmentation: an FCN on the whole backbone, trained on street scenes.

Data        Cityscapes: leftImg8bit and gtFine of train (2,975 images) to learn from, of val (500) to score; 19 classes, 255
            (void) counts nowhere.
Transform   training: within 2049 x 1025 keeping the shape; crop of 769; the rest as in segment_voc.py. Scoring: within 2049 x
            1025, in windows of 769 with stride 513, whose logits are averaged and resized to the image's own size.
Layer       as in segment_voc.py; logits are resized with aligned corners.
Optimiser   SGD as in segment_voc.py, batch 8.
Schedule    40,000 iterations, polynomial decay as in segment_voc.py. No warm-up.
Metric      mIoU [%] over the pixels of all images together, of the last iteration.
Seeds       one, for fresh weights, order and augmentation.
Source      MMSelfSup 0.x fcn_r50-d8_769x769_40k_cityscapes, MMSegmentation 0.30. No number of SwAV was ever published.
Where we differ: as segment_voc.py.
Smoke       size 96, scale (256, 128), batch 8, 150 iterations, heads of 64 channels, at most 60 images scored.
"""

from swav.evaluation.dense_settings import SegmentCityscapesSettings
from swav.evaluation.segmentation import training
from swav.evaluation.segmentation.training import estimate_resources
from swav.evaluation.task import Score, Task

__all__ = ["check", "estimate_resources", "run"]

BENCH = "segment-cityscapes"


def check(task: Task[SegmentCityscapesSettings]) -> None:
    """Validate settings and data before any computation: see segmentation.training.check."""
    training.check(task, BENCH)


def run(task: Task[SegmentCityscapesSettings]) -> list[Score]:
    """Train and score the FCN: see segmentation.training.run_fcn."""
    return training.run_fcn(task, BENCH)
