"""Linear segmentation: one 1x1 convolution on the last map of a frozen backbone says the class of every pixel. Protocol own.

Data        VOC12aug, or a folder of images/ and masks/ (an index per pixel, 255: void), with train/ and val/ or without: then a
            fifth of the images is scored.
Transform   training: short side to 224, times U(1, 2); crop of 224; flip p .5. Scoring: short side to 224, the whole image,
            filled up to multiples of 32 pixels (of a plain transformer's patch), logits resized to its own size. The long side is
            at most 8 times the short one.
Layer       BatchNorm and a 1x1 convolution on the last stage's map (of a transformer its patch tokens); the backbone is frozen,
            in eval mode; a ResNet's strides beyond 8 become dilations, other models have their own.
Optimiser   SGD on the cross-entropy divided by all pixels, learning rate .1, momentum .9, weight decay 1e-4 on all that is
            trained, batch 16.
Schedule    2,000 iterations, polynomial decay of power .9 to a hundredth. No warm-up.
Metric      mIoU [%] over the pixels of all images together, with its 95 % interval over images drawn with replacement.
Seeds       one, for fresh weights, order and augmentation; give several for the spread.
Source      the linear probe of DINOv2 (Oquab et al. 2023, section 7.4), with rates and schedule of ours.
Where we differ: at another batch learning rate and iterations change in proportion.
Smoke       size 96, 100 iterations, at most 100 images scored.
"""

import torch
from torch import nn

from swav.data.sources.decode import reason_of
from swav.data.targets import LabelMaps
from swav.errors import ConfigError
from swav.evaluation import dense
from swav.evaluation.dense_settings import SegmentLinearSettings
from swav.evaluation.samples import Scale
from swav.evaluation.segmentation import training
from swav.evaluation.segmentation.augment import Augmentation
from swav.evaluation.segmentation.fcn import LinearSegmenter
from swav.evaluation.segmentation.objective import Inference
from swav.evaluation.task import ResourceEstimate, Score, Task
from swav.network.dilated import dilated
from swav.network.resnet import ResNet

BENCH = "segment-linear"
LONGEST = 8  # times the short side: the longest side that images are scored at
MULTIPLE = 32  # of pixels: what backbones can take but plain transformers
STRIDE = 8  # of a ResNet's maps [pixels]


def check(task: Task[SegmentLinearSettings]) -> None:
    """Validate settings and data before any computation.

    Raises:
        ConfigError: the backbone has no stages, or takes no images that are not square; or the batch is too small.
    """
    training.check(task, BENCH, stages=1)
    encoder = task.encoder
    multiple = _patch(encoder.trunk) or MULTIPLE
    high = -(-task.settings.size // multiple) * multiple
    image = torch.zeros(1, encoder.in_channels, high, high + multiple, device=next(encoder.parameters()).device)
    try:
        with torch.no_grad():
            encoder.stages(image)
    except Exception as error:  # a model may raise anything at a size that it was not made for
        raise ConfigError(
            f"{encoder.name}: expected a backbone that takes images of any shape, found one that does not take {high} x "
            f"{high + multiple} pixels ({reason_of(error)}); use a ResNet or a plain transformer"
        ) from None


def run(task: Task[SegmentLinearSettings]) -> list[Score]:
    """Train and score the layer, resuming an interrupted training.

    Raises:
        DataError: no image of a split can be read.
        NumericsError: the loss is not finite.
        CheckpointError: there is saved state, and none of it verifies.
    """
    settings, encoder = task.settings, task.encoder
    scale = Scale(LONGEST * settings.size, settings.size)
    assert isinstance(task.train.targets, LabelMaps)
    augmentation = Augmentation(
        task.train.targets,
        scale,
        settings.ratios,
        settings.size,
        most_of_one_class=1.0,
        flip=settings.flip,
        colour=False,
    )
    trunk = encoder.trunk
    model = LinearSegmenter(
        dilated(trunk, STRIDE) if isinstance(trunk, ResNet) else trunk,
        encoder.stage_channels[-1],
        task.num_classes,
        seed=settings.seed,
        precision=settings.precision,
    )
    inference = Inference(scale, multiple=_patch(trunk) or MULTIPLE)
    result = training.train(task, BENCH, model, augmentation, inference, training.poly(settings.rate, settings.steps))
    deviations = task.deviations(result.trained, result.scored, *dense.scaled(settings))
    interval = (result.last["miou_low"], result.last["miou_high"])
    return [Score("mIoU", result.last["miou"], result.scored, deviations, result.log, interval=interval)]


def _patch(trunk: nn.Module) -> int | None:
    """Side of the patches of a plain transformer [pixels]; None of other backbones."""
    model = getattr(trunk, "model", None)
    if model is None or not hasattr(model, "blocks") or not hasattr(model, "patch_embed"):
        return None
    sides: tuple[int, ...] | int | None = getattr(model.patch_embed, "patch_size", None)
    return sides[0] if isinstance(sides, tuple) else sides


def estimate_resources(task: Task[SegmentLinearSettings]) -> ResourceEstimate:
    """Estimate resources: images through the frozen backbone, to learn from and to score."""
    settings = task.settings
    return ResourceEstimate(
        2 * len(task.val) + settings.steps * settings.batch, memory=settings.batch * 10**7, disk=10**7
    )
