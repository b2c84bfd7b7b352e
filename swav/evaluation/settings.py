"""Every setting of a benchmark: its type, unit and published value.

The defaults are protocol `published`, to the letter; the catalogue holds what protocol `smoke` changes. Protocol `own` has
settings of its own (KnnOwnSettings, LinearOwnSettings). No torch here: every error about settings is reported at once.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from swav.config import WHITE_LEVEL, Alpha, Auto, Count, Fraction, NonNegative, Positive, Settings, Steps, WhiteLevel

Share = Annotated[float, Field(gt=0, le=1)]
Protocol = Literal["published", "own", "smoke", "moco", "swav"]
PROTOCOLS: tuple[Protocol, ...] = ("published", "own", "smoke", "moco", "swav")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def _as_names(value: Any) -> Any:
    """One, or a list, of which YAML may have taken `2024` for a number."""
    if isinstance(value, list | tuple):
        return [f"{name}" if isinstance(name, int | float) else name for name in value]
    return [value] if isinstance(value, str) else value


class SuiteSettings(Settings):
    """What is said once, of all benchmarks together."""

    protocol: Protocol | Auto = Field(
        "auto",
        description="published: exactly the published one; own: for labels of one's own; smoke: a few minutes; moco, swav: other "
        "published ones of detect-voc; auto: own of knn, linear and segment-linear where the number of classes is not the "
        "published one, else published",
    )
    seeds: Count = Field(1, description="runs of each benchmark that draws something: seed, seed + 1, ...")
    name: Annotated[tuple[str, ...], BeforeValidator(_as_names)] = Field(
        (), description="what tables call the weights, one name per --weights; none: as they are given"
    )


class BenchSettings(Settings):
    """What all benchmarks of classification share.

    `data`: the name of its data set in swav.data.sources.catalog.DATASETS. `published`: how many images and classes the published
    numbers are of.
    """

    data: ClassVar[str] = "labelled"
    published: ClassVar[Mapping[str, int]] = {"training images": 1_281_167, "scored images": 50_000, "classes": 1000}

    size: Annotated[Count, Field(ge=8)] = Field(224, description="side of the view [pixels], from 256/224 of it")
    train_images: Steps = Field(0, description="images to learn labels from, drawn by the seed; 0: all")
    score_images: Steps = Field(0, description="images to score, drawn by the seed; 0: all")
    seed: Steps = Field(0, description="of what is drawn")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of the backbone; features are float32 in any case")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    workers: Steps | Auto = Field("auto", description="loader processes")
    white_level: WhiteLevel = WHITE_LEVEL
    alpha: Alpha = "blend"

    @property
    def is_drawn(self) -> bool:
        """Whether a seed makes a difference, beside which images take part."""
        return True

    def published_value(self, key: str) -> Any:
        """Return the published value of a setting."""
        return getattr(type(self)(), key)


class KnnSettings(BenchSettings):
    """Of the kNN vote."""

    k: Annotated[tuple[Count, ...], BeforeValidator(_as_list)] = Field(
        (10, 20, 100, 200), description="numbers of neighbours"
    )
    temperature: Positive = Field(0.07, description="of the vote's weights")

    @property
    def is_drawn(self) -> bool:
        return False

    @field_validator("k")
    @classmethod
    def _some_and_different(cls, k: tuple[int, ...]) -> tuple[int, ...]:
        if not k or len(set(k)) < len(k):
            raise ValueError("expected one or more different numbers")
        return k


class KnnOwnSettings(KnnSettings):
    """Of the kNN vote under protocol own."""

    k: Annotated[tuple[Count, ...], BeforeValidator(_as_list)] = Field(
        (1, 5, 10, 20, 100, 200), description="numbers of neighbours; those above the bank are left out"
    )


class LinearOwnSettings(BenchSettings):
    """Of the logistic regression that protocol own makes of `linear`."""

    costs: tuple[Positive, ...] = Field(
        (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0),
        min_length=1,
        description="C, of which one is chosen: weight of the summed loss against |w|^2 / 2",
    )

    @property
    def is_drawn(self) -> bool:
        return False


class TrainSettings(BenchSettings):
    """What the benchmarks share that train."""

    epochs: Count = Field(description="passes over the training images")
    batch: Count = Field(256, description="images per step, of all processes")
    momentum: Fraction = Field(0.9, description="of SGD")
    weight_decay: NonNegative = Field(description="on all that is trained")
    crop_scale: tuple[Fraction, Fraction] = Field(
        (0.08, 1.0), description="share of the image's area that a crop covers"
    )
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")
    score_every_epochs: Steps = Field(
        0, description="epochs between scores on the way; the last is always scored; 0: only it"
    )

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> "TrainSettings":
        if not 0 < self.crop_scale[0] <= self.crop_scale[1]:
            raise ValueError(f"crop_scale: expected 0 < min <= max <= 1, found {list(self.crop_scale)}")
        return self


class LinearSettings(TrainSettings):
    """Of the linear layer on a frozen trunk."""

    epochs: Count = Field(100, description="passes over the training images")
    lr: Positive = Field(0.3, description="learning rate of the first epoch; cosine to 0, constant within an epoch")
    weight_decay: NonNegative = Field(1e-6, description="on weights and bias")
    score_every_epochs: Steps = Field(
        1, description="epochs between scores; these features are kept, a score costs nothing"
    )


class StageTraining(TrainSettings):
    """What the benchmarks share that train a linear layer on every stage of a frozen trunk."""

    lr: Positive = Field(0.01, description="learning rate of the first epoch")
    steps: tuple[Count, ...] = Field(description="epochs after which the learning rate is a tenth")
    weight_decay: NonNegative = Field(1e-4, description="on weights and bias")
    score_every_epochs: Steps = Field(10, description="epochs between scores on the way; the last is always scored")


class StagesSettings(StageTraining):
    """Of linear layers on every stage, on ImageNet."""

    epochs: Count = Field(90, description="passes over the training images")
    steps: tuple[Count, ...] = Field((30, 60), description="epochs after which the learning rate is a tenth")
    jitter: Fraction = Field(0.4, description="strength of brightness, contrast and saturation, in random order")
    lighting: NonNegative = Field(0.1, description="standard deviation of the noise along ImageNet's axes of colour")


class Places205Settings(StageTraining):
    """Of linear layers on every stage, on Places205."""

    data: ClassVar[str] = "places205"
    published: ClassVar[Mapping[str, int]] = {"training images": 2_448_873, "scored images": 20_500, "classes": 205}

    epochs: Count = Field(28, description="passes over the training images")
    steps: tuple[Count, ...] = Field((7, 14, 21), description="epochs after which the learning rate is a tenth")
    crop_scale: tuple[Fraction, Fraction] = Field((1.0, 1.0), description="of no meaning: crops are of one scale")

    @field_validator("crop_scale")
    @classmethod
    def _of_one_scale(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale != (1.0, 1.0):
            raise ValueError("expected nothing else: this protocol's crops are of one scale")
        return scale


class Inat18Settings(StageTraining):
    """Of linear layers on every stage, on iNaturalist 2018."""

    data: ClassVar[str] = "inat18"
    published: ClassVar[Mapping[str, int]] = {"training images": 437_513, "scored images": 24_426, "classes": 8142}

    epochs: Count = Field(84, description="passes over the training images")
    steps: tuple[Count, ...] = Field((24, 48, 72), description="epochs after which the learning rate is a tenth")


class SemisupSettings(TrainSettings):
    """Of fine-tuning on a fraction of the labels."""

    fraction: Annotated[tuple[Share, ...], BeforeValidator(_as_list)] = Field(
        (0.01, 0.1), min_length=1, description="shares of the training images; 1: all, a recipe of ours"
    )
    list: str | None = Field(None, description="file that names the images of the one fraction; none: drawn per class")
    epochs: Count = Field(20, description="passes over the training images")
    lr_trunk: Positive | Auto = Field(
        "auto", description="learning rate of the backbone: .02 below 5 %, else .01, times batch / 256"
    )
    lr_head: Positive | Auto = Field("auto", description="of the layer on it: 5 below 5 %, else .2, times batch / 256")
    steps: tuple[Count, ...] = Field((12, 16), description="epochs after which learning rates are a fifth")
    weight_decay: NonNegative = Field(0.0, description="on all parameters")

    @model_validator(mode="after")
    def _a_list_is_of_one_fraction(self) -> "SemisupSettings":
        if self.list is not None and len(self.fraction) > 1:
            raise ValueError(
                f"list: expected one fraction with it, as semisup.fraction=0.01, found {list(self.fraction)}"
            )
        return self


class SvmSettings(BenchSettings):
    """Of the linear SVMs on VOC 2007."""

    data: ClassVar[str] = "voc07"
    published: ClassVar[Mapping[str, int]] = {"training images": 5011, "scored images": 4952, "classes": 20}

    costs: tuple[Positive, ...] = Field(
        (1.0, 10.0, 100.0, *(0.5**i for i in range(4, 20))), min_length=1, description="C, of which one is chosen"
    )
    positive_weight: Positive = Field(2.0, description="of a positive's cost; a negative's is 1")
    folds: Annotated[Count, Field(ge=2)] = Field(3, description="of the cross-validation that chooses the cost")
    tolerance: Positive = Field(1e-5, description="|w - w*| / |w| at which a machine is done")

    @property
    def is_drawn(self) -> bool:
        return False


class LowshotSettings(BenchSettings):
    """Of the linear SVMs on a few images of VOC 2007."""

    data: ClassVar[str] = "voc07"
    published: ClassVar[Mapping[str, int]] = SvmSettings.published

    k: Annotated[tuple[Count, ...], BeforeValidator(_as_list)] = Field(
        (1, 2, 4, 8, 16, 32, 64, 96), min_length=1, description="positives per class; with 19 negatives for each"
    )
    draws: Count = Field(5, description="samples per k")
    samples: str | None = Field(None, description="folder of train_targets_sampleS_kK.npy; none: drawn by the seed")
    layers: Literal["last", "all"] = Field("last", description="stages whose features are used")
    costs: tuple[Positive, ...] = Field(
        (1.0, 10.0, 100.0, *(0.5**i for i in range(4, 20))), min_length=1, description="C, of which one is chosen"
    )
    positive_weight: Positive = Field(2.0, description="of a positive's cost; a negative's is 1")
    tolerance: Positive = Field(1e-5, description="|w - w*| / |w| at which a machine is done")

    @property
    def is_drawn(self) -> bool:
        return self.samples is None


# What may change without a word: it leaves the number as it is, or is a field of the result.
_NO_DEVIATIONS = frozenset({"device", "workers", "seed"})


def one_per_seed(settings: BenchSettings, seeds: int, train: int, score: int) -> list[BenchSettings]:
    """The settings of each run: one per seed, or a single one, of seed 0, where the benchmark draws nothing: the same number
    under several seeds would look like one without spread.

    Args:
        train, score: images that there are to learn from and to score.
    """
    part = 0 < settings.train_images < train or 0 < settings.score_images < score
    if not settings.is_drawn and not part:
        return [settings.model_copy(update={"seed": 0})]
    return [settings.model_copy(update={"seed": settings.seed + i}) for i in range(seeds)]


def deviations_of(settings: BenchSettings) -> list[str]:
    """Name the settings that differ from the published protocol, with both values."""
    page = type(settings)()
    changed = [key for key in type(settings).model_fields if getattr(settings, key) != getattr(page, key)]
    # a k is a row of its own; images are counted elsewhere
    names = "k samples fraction list score_every_epochs score_every pictures train_images score_images"
    quiet = _NO_DEVIATIONS.union(names.split())
    return [
        f"{key} {_text(getattr(settings, key))} instead of {_text(settings.published_value(key), key == 'iterations')}"
        for key in changed
        if key not in quiet and getattr(settings, key) != settings.published_value(key)
    ]


def _text(value: Any, in_thousands: bool = False) -> str:
    if in_thousands:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(list(value) if isinstance(value, tuple) else value)
