"""VOC12aug segmentation: an FCN on the whole backbone, trained on PASCAL VOC 2012 with SBD's masks.

Data        PASCAL VOC 2012: train.txt (1,464 images, SegmentationClass) and aug.txt (9,118, SegmentationClassAug or SBD's .mat)
            to learn from, 10,582 in all; val.txt (1,449) to score; 21 classes with the background, 255 (void) counts nowhere.
Transform   training: within 2048 x 512 keeping the shape, times U(.5, 2); crop of 512 in which no class has more than 75 %
            (after the tenth try the next is taken as it is); flip p .5; brightness +-32, contrast and saturation .5-1.5, hue +-18
            of 180, each p .5; smaller crops are filled up with the mean, and void. Scoring: within 2048 x 512, the whole image,
            logits resized to its own size.
Layer       the backbone at stride 8 (dilations 1, 1, 2, 4), all of it trained, BatchNorm synchronised over processes; FCN head: two
            3x3 convolutions of 512 with BatchNorm and ReLU, joined with their input, a third, dropout .1, 1x1. In training
            an auxiliary head on layer3: one convolution of 256, weight .4.
Optimiser   SGD on the cross-entropy divided by all pixels, void ones too; learning rate .01, momentum .9, weight decay 5e-4
            on all parameters, batch 16.
Schedule    20,000 iterations, polynomial decay of power .9 to 1e-4. No warm-up.
Metric      mIoU [%] over the pixels of all images together, of the last iteration.
Seeds       one, for fresh weights, order and augmentation.
Source      MMSelfSup 0.x fcn_r50-d8_512x512_20k_voc12aug, MMSegmentation 0.30. Of which iteration the published number is
            is not documented.
Where we differ: images follow each other in endless permutations, none is left out at the end of one; at another batch learning
            rate and iterations change in proportion.
Smoke       size 96, scale (384, 96), batch 8, 150 iterations, heads of 64 channels, at most 100 images scored; any images of
            VOC 2012 that have masks, and a list that is missing is forgiven.
"""

from swav.evaluation.dense_settings import SegmentVocSettings
from swav.evaluation.segmentation import training
from swav.evaluation.segmentation.training import estimate_resources
from swav.evaluation.task import Score, Task

__all__ = ["check", "estimate_resources", "run"]

BENCH = "segment-voc"


def check(task: Task[SegmentVocSettings]) -> None:
    """Validate settings and data before any computation: see segmentation.training.check."""
    training.check(task, BENCH)


def run(task: Task[SegmentVocSettings]) -> list[Score]:
    """Train and score the FCN: see segmentation.training.run_fcn."""
    return training.run_fcn(task, BENCH)
