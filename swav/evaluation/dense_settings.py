"""Every setting of the benchmarks of detection and segmentation: its type, unit and published value; see settings.py. No torch."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from swav.config import Auto, Count, Fraction, NonNegative, Positive, Steps
from swav.evaluation.settings import BenchSettings, Share

DetectRules = Literal["mmdet", "detectron2"]


class DenseSettings(BenchSettings):
    """What the benchmarks of detection and segmentation share."""

    batch: Count = Field(16, description="images per step, of all processes")
    iterations: Count | Auto = Field("auto", description="steps; auto: as published, times published batch / batch")
    lr: Positive | Auto = Field("auto", description="learning rate; auto: as published, times batch / published batch")
    momentum: Fraction = Field(0.9, description="of SGD")
    weight_decay: NonNegative = Field(description="on all parameters")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")
    score_every: Steps = Field(0, description="steps between scores on the way; the last is always scored; 0: only it")
    pictures: Steps = Field(6, description="images whose predictions are drawn: best, median and worst ones")

    in_epochs: ClassVar[bool] = False  # iterations are those of epochs, whatever the batch
    published_batch: ClassVar[int] = 16
    published_iterations: ClassVar[int]
    published_lr: ClassVar[float]

    def published_value(self, key: str) -> Any:
        """Return the published value of a setting, at the batch that is set."""
        auto = self.model_copy(update={key: "auto"})
        if key == "iterations":
            return auto.steps
        return auto.rate if key == "lr" else super().published_value(key)

    @property
    def share(self) -> float:
        """The batch, of the published one."""
        return self.batch / self.published_batch

    @property
    def steps(self) -> int:
        return max(1, round(self.published_iterations / self.share)) if self.iterations == "auto" else self.iterations

    @property
    def rate(self) -> float:
        return self.published_lr * self.share if self.lr == "auto" else self.lr


class SegmentSettings(DenseSettings):
    """What the benchmarks share that train a network for segmentation."""

    scale: tuple[Count, Count] = Field(
        (2048, 512), description="the largest long and short side that images are resized to [pixels]"
    )
    ratios: tuple[Positive, Positive] = Field((0.5, 2.0), description="of training images to that scale, uniform")
    size: Annotated[Count, Field(ge=8)] = Field(512, description="side of the training crop [pixels]")
    most_of_one_class: Share = Field(0.75, description="largest share of a crop that may be of one class, in ten tries")
    channels: Count = Field(512, description="of the head; the auxiliary head has half as many")
    weight_decay: NonNegative = Field(5e-4, description="on all parameters")

    align_corners: ClassVar[bool] = False
    windows: ClassVar[float] = (
        0.0  # an image is scored by windows of the crop's size, with this stride, of their side; 0: at once
    )
    published_lr: ClassVar[float] = 0.01

    @field_validator("scale")
    @classmethod
    def _long_before_short(cls, scale: tuple[int, int]) -> tuple[int, int]:
        if scale[0] < scale[1]:
            raise ValueError(f"expected the long side first, found {list(scale)}")
        return scale

    @field_validator("ratios")
    @classmethod
    def _a_range(cls, ratios: tuple[float, float]) -> tuple[float, float]:
        if ratios[0] > ratios[1]:
            raise ValueError(f"expected min <= max, found {list(ratios)}")
        return ratios


class SegmentVocSettings(SegmentSettings):
    """Of the FCN on PASCAL VOC 2012 with SBD's masks."""

    data: ClassVar[str] = "voc12aug"
    published: ClassVar[Mapping[str, int]] = {"training images": 10_582, "scored images": 1449, "classes": 21}
    published_iterations: ClassVar[int] = 20_000


class SegmentCityscapesSettings(SegmentSettings):
    """Of the FCN on Cityscapes."""

    data: ClassVar[str] = "cityscapes"
    published: ClassVar[Mapping[str, int]] = {"training images": 2975, "scored images": 500, "classes": 19}
    published_batch: ClassVar[int] = 8
    published_iterations: ClassVar[int] = 40_000
    align_corners: ClassVar[bool] = True
    windows: ClassVar[float] = 513 / 769

    batch: Count = Field(8, description="images per step, of all processes")
    scale: tuple[Count, Count] = Field(
        (2049, 1025), description="the largest long and short side that images are resized to [pixels]"
    )
    size: Annotated[Count, Field(ge=8)] = Field(769, description="side of the training crop and of windows [pixels]")


class SegmentLinearSettings(DenseSettings):
    """Of a linear layer on every place of a frozen backbone's last map."""

    data: ClassVar[str] = "segmented"
    published: ClassVar[Mapping[str, int]] = {}
    published_iterations: ClassVar[int] = 2000
    published_lr: ClassVar[float] = 0.1

    size: Annotated[Count, Field(ge=8)] = Field(
        224, description="short side of images, and of the training crop [pixels]"
    )
    ratios: tuple[Positive, Positive] = Field((1.0, 2.0), description="of training images to that size, uniform")
    weight_decay: NonNegative = Field(1e-4, description="on all that is trained")


class DetectSettings(DenseSettings):
    """What the benchmarks of detection share."""

    rules: DetectRules = Field(
        "mmdet", description="whose rules decide what MMDetection 2.28 and detectron2 do differently"
    )
    size: Annotated[Count, Field(ge=8)] = Field(800, description="short side of images to score [pixels]")
    sides: tuple[Count, ...] = Field(min_length=1, description="short sides of training images, one is drawn [pixels]")
    long: Count = Field(1333, description="the longest side of an image [pixels]")
    weight_decay: NonNegative = Field(1e-4, description="on all parameters")
    decay_norms: bool = Field(True, description="whether norms decay too")
    warmup: Steps | Auto = Field("auto", description="steps of linear warm-up; auto: as published, as for iterations")
    warmup_factor: Fraction = Field(0.001, description="of the learning rate, at the first step")
    rois: Count = Field(512, description="proposals of each image that the head is trained on")
    proposals: tuple[Count, Count] = Field(description="of each image, kept in training and in scoring")

    published_lr: ClassVar[float] = 0.02
    published_warmup: ClassVar[int]

    def published_value(self, key: str) -> Any:
        """Return the published value of a setting, at the batch that is set."""
        return self.model_copy(update={key: "auto"}).warmup_steps if key == "warmup" else super().published_value(key)

    @property
    def warmup_steps(self) -> int:
        return round(self.published_warmup / self.share) if self.warmup == "auto" else self.warmup


class DetectVocSettings(DetectSettings):
    """Of Faster R-CNN C4 on PASCAL VOC 2007 and 2012."""

    data: ClassVar[str] = "voc0712"
    published: ClassVar[Mapping[str, int]] = {"training images": 16_551, "scored images": 4952, "classes": 20}
    published_iterations: ClassVar[int] = 24_000
    published_warmup: ClassVar[int] = 100

    sides: tuple[Count, ...] = Field(
        tuple(range(480, 801, 32)), min_length=1, description="short sides of training images, one is drawn [pixels]"
    )
    drops: tuple[Fraction, ...] = Field(
        (18 / 24, 22 / 24), description="parts of the training after which the learning rate is a tenth"
    )
    proposals: tuple[Count, Count] = Field((2000, 1000), description="of each image, kept in training and in scoring")
    precise_norms: Steps = Field(
        0, description="batches by which BatchNorm's statistics are computed anew before a score"
    )


class DetectVocMocoSettings(DetectVocSettings):
    """Of the same by protocol moco."""

    rules: DetectRules = Field(
        "detectron2", description="whose rules decide what MMDetection and detectron2 do differently"
    )
    decay_norms: bool = Field(False, description="whether norms decay too")
    precise_norms: Steps = Field(
        200, description="batches by which BatchNorm's statistics are computed anew before a score"
    )


class DetectVocSwavSettings(DetectVocMocoSettings):
    """Of the same by protocol swav."""

    published_lr: ClassVar[float] = 0.1
    published_warmup: ClassVar[int] = 1000

    warmup_factor: Fraction = Field(1 / 3, description="of the learning rate, at the first step")


class DetectCocoSettings(DetectSettings):
    """Of Mask R-CNN FPN on COCO 2017."""

    data: ClassVar[str] = "coco"
    published: ClassVar[Mapping[str, int]] = {"training images": 117_266, "scored images": 5000, "classes": 80}
    in_epochs: ClassVar[bool] = True
    published_iterations: ClassVar[int] = 87_960  # 12 epochs of 7,330
    published_warmup: ClassVar[int] = 1000

    iterations: Count | Auto = Field("auto", description="steps; auto: those of the epochs")
    epochs: Count = Field(12, description="passes over the training images, where iterations is auto")
    sides: tuple[Count, ...] = Field(
        tuple(range(640, 801, 32)), min_length=1, description="short sides of training images, one is drawn [pixels]"
    )
    drops: tuple[Fraction, ...] = Field(
        (8 / 12, 11 / 12), description="parts of the training after which the learning rate is a tenth"
    )
    proposals: tuple[Count, Count] = Field((1000, 1000), description="of each image, kept in training and in scoring")
