"""Every knob of a pre-training run: its type, unit, default and source; and how a recipe becomes settings.

A recipe is a YAML file that holds differences from the defaults below. Precedence: defaults, recipe, `key=value`.
Any value but `data` may be given as `auto`; training/auto.py replaces it, with a reason.
No torch here: `swav recipes` and every error about settings answer at once.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from swav.errors import did_you_mean

AUTO: Any = "auto"
Auto = Literal["auto"]
RESNETS = ("resnet18", "resnet34", "resnet50")
TIMM = "timm:"  # before the name of one of timm's models
RANDOM = "random:"  # before a backbone, a recipe or a run, whose network has random weights
Stem = Literal["imagenet", "half", "small"]
OptimizerName = Literal["larc", "lars", "adam", "adamw"]

# Below this the float32 scores themselves are too coarse: the rounding of a cosine (6e-8) over epsilon no longer is
# small against 1. The codes stay finite at any epsilon (see algorithm.sinkhorn_codes).
MIN_EPSILON = 1e-3


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, not a boolean")
    return value


def _known_backbone(name: str) -> str:
    if name not in RESNETS and not name.startswith(TIMM):
        raise ValueError(f"expected {', '.join(RESNETS)} or {TIMM}NAME{did_you_mean(name, RESNETS)}")
    return name


def _decoded_channels(count: int) -> int:
    if count not in (1, 3):
        raise ValueError("expected 3 (RGB) or 1 (grey): images are decoded to RGB, no source here gives other channels")
    return count


Backbone = Annotated[str, AfterValidator(_known_backbone)]
Channels = Annotated[int, BeforeValidator(_no_bool), AfterValidator(_decoded_channels)]
Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
Steps = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]
Fraction = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)]
NonNegative = Annotated[float, BeforeValidator(_no_bool), Field(ge=0)]
WHITE_LEVEL = 65535  # of 16 bits: the default
WhiteLevel = Annotated[
    int,
    BeforeValidator(_no_bool),
    Field(
        ge=1,
        lt=2**31,
        description="value of 16-bit and 32-bit integer images that is white, as 4095 for 12 bits; of no effect on 8 bits",
    ),
]
Alpha = Annotated[
    Literal["blend", "ignore"],
    Field(description="blend: transparent pixels are laid on white; ignore: colours as stored, whatever alpha says"),
]
Positive = Annotated[float, BeforeValidator(_no_bool), Field(gt=0)]


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == AUTO


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


AnySettings = TypeVar("AnySettings", bound=Settings)


class Crop(Settings):
    """One kind of crop: how many, how large, and how much of the image's area each covers."""

    count: Count = Field(description="crops of this kind per image")
    size: Annotated[int, Field(ge=8)] = Field(description="side of the crop [pixels]")
    scale: tuple[Fraction, Fraction] = Field(description="smallest and largest share of the image's area")

    @model_validator(mode="after")
    def _scale_is_a_range(self) -> "Crop":
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale: expected 0 < min <= max <= 1, found {list(self.scale)}")
        return self


class Recipe(Settings):
    """Settings of a pre-training run. `batch` and `queue_length` count all processes together.

    The types are those of settled values. Before `derive.derive` any value but `data` may also be the word "auto".
    """

    # -- what is trained on
    data: str | None = Field(None, description="folder, list file, or CIFAR; on the command line as data=PATH")
    max_unreadable: Annotated[Fraction, Field()] = Field(
        0.01, description="share of unreadable images above which the run stops (at least 10 files)"
    )
    white_level: WhiteLevel = WHITE_LEVEL
    alpha: Alpha = "blend"

    # -- views (paper section 3.2 and appendix A.1; values of the released scripts)
    crops: tuple[Crop, ...] = Field(
        (Crop(count=2, size=224, scale=(0.14, 1.0)), Crop(count=6, size=96, scale=(0.05, 0.14))),
        description="crops of an image",
    )
    code_crops: tuple[Steps, ...] | Auto = Field(
        "auto", description="indices of the crops that give codes; auto: those of the largest size"
    )
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")
    jitter: tuple[NonNegative, NonNegative, NonNegative, Annotated[float, Field(ge=0, le=0.5)]] = Field(
        (0.8, 0.8, 0.8, 0.2), description="brightness, contrast, saturation, hue"
    )
    jitter_probability: Fraction = Field(0.8, description="probability of colour jitter")
    grayscale: Fraction = Field(0.2, description="probability of grey")
    blur: Fraction = Field(0.5, description="probability of Gaussian blur")
    blur_sigma: tuple[Positive, Positive] = Field((0.1, 2.0), description="range of the blur's sigma [pixels]")
    blur_kernel: Count = Field(
        23, description="width of the blur's kernel [pixels], odd; the released weights used OpenCV with 23"
    )
    mean: tuple[float, float, float] = Field((0.485, 0.456, 0.406), description="subtracted from RGB in 0..1")
    std: tuple[Positive, Positive, Positive] = Field(
        (0.228, 0.224, 0.225), description="divides RGB; .228 is the original's"
    )

    # -- network (appendix A.1)
    backbone: Backbone = Field("resnet50", description="trunk: resnet18, resnet34, resnet50, or timm:NAME")
    in_channels: Channels = Field(3, description="channels that the backbone takes: 3 (RGB) or 1 (luma of the image)")
    width: Positive = Field(1.0, description="factor on all channels of the backbone (released: 1, 2, 4, 5)")
    stem: Stem = Field(
        "imagenet",
        description="imagenet: 7x7/2 and max-pool; half: 3x3/2 and max-pool; small: 3x3 alone, for 32-pixel images",
    )
    zero_init_residual: bool = Field(False, description="start each residual branch at zero")
    sync_bn: bool | Auto = Field(
        "auto", description="BatchNorm statistics over all processes, not each its own; auto: yes"
    )
    sync_bn_group: Count | None = Field(
        None,
        description="BatchNorm statistics over groups of so many processes, as the original's of 8; null: over all",
    )
    head_hidden: Count = Field(2048, description="width of the projection head's hidden layer")
    head_dim: Count = Field(128, description="dimension of an embedding")
    prototypes: Count | Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        3000,
        description="number of prototypes, or of each of several sets ([3000, 1000]), each with codes of its own; "
        "auto: from the number of images",
    )

    init: str | None = Field(
        None,
        description="weights to start from: a run, a checkpoint or another project's file; on the command line a path",
    )

    # -- codes and loss (section 3.1, appendix A.1)
    temperature: Positive = Field(0.1, description="of the predictions' softmax")
    epsilon: Annotated[float, BeforeValidator(_no_bool), Field(ge=MIN_EPSILON)] = Field(
        0.05, description=f"entropy weight of the codes; at least {MIN_EPSILON}"
    )
    sinkhorn_iterations: Count = Field(3, description="iterations of Sinkhorn-Knopp")
    sinkhorn: Literal["global", "local"] = Field(
        "global", description="codes are balanced over all processes, or (local; not the method) over each one alone"
    )
    hard_codes: bool = Field(False, description="each code all on its largest entry; the original's advice on collapse")
    teacher_momentum: Annotated[float, BeforeValidator(_no_bool), Field(ge=0, lt=1)] = Field(
        0.0, description="codes from a copy of the network that follows it, t <- m t + (1 - m) s; 0: from the network"
    )
    final_teacher_momentum: Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)] | None = Field(
        None, description="m at the end of the run, to which it rises by half a cosine; null: it stays as it is"
    )
    koleo: NonNegative = Field(
        0.0, description="weight of the KoLeo term, which spreads the embeddings of the code-giving crops; 0: none"
    )
    freeze_prototypes_steps: Steps = Field(
        AUTO, description="steps without a prototype update; auto: one epoch and a step"
    )
    freeze_backbone_steps: Steps = Field(
        0,
        description="first steps in which the backbone keeps its weights and only head and prototypes learn; for init=W (BatchNorm's "
        "statistics follow the images at once)",
    )
    queue_length: Steps = Field(0, description="embeddings kept per code-giving crop, over all processes; 0: no queue")
    queue_start_epoch: Steps = Field(15, description="epoch at which the queue begins to fill")

    # -- optimisation
    epochs: Count = Field(200, description="passes over the images; auto: from their number, or from `hours`")
    hours: Positive | None = Field(
        None, description="time to spend on the whole run, with epochs=auto, which are planned anew after each"
    )
    batch: Count = Field(256, description="images per step, over all processes")
    micro_batch: Steps = Field(
        0, description="images per forward on a process, where a batch is larger than memory; 0: all of its share"
    )
    optimizer: OptimizerName = Field(
        "larc", description="larc: SGD with apex's LARC, as the paper; lars: learning rate inside the momentum"
    )
    lr: Positive = Field(0.6, description="peak learning rate, for `batch`")
    backbone_lr_factor: Positive = Field(
        1.0, description="learning rate of the backbone as a factor on `lr`; below 1 to adapt existing weights"
    )
    final_lr: NonNegative = Field(AUTO, description="last learning rate; auto: lr / 1000")
    warmup_epochs: NonNegative = Field(0.0, description="epochs of linear warm-up")
    warmup_start_lr: NonNegative = Field(0.0, description="first learning rate of the warm-up")
    lr_schedule: Literal["step", "epoch"] = Field(
        "step", description="step: the rate changes every step; epoch: constant within an epoch"
    )
    momentum: Fraction = Field(0.9, description="of SGD")
    weight_decay: NonNegative = Field(1e-6, description="on all parameters, see decay_vectors")
    final_weight_decay: NonNegative | None = Field(
        None, description="at the end of the run, to which it moves by half a cosine; null: it stays as it is"
    )
    decay_vectors: bool = Field(
        True,
        description="weight decay on biases and norms too, as the paper; false: not on them, as is usual for a ViT",
    )
    clip_gradient: NonNegative = Field(
        0.0,
        description="largest norm of all gradients together, to which longer ones are scaled; 0: none, as the paper",
    )
    trust_coefficient: Positive = Field(0.001, description="of LARC and LARS")

    # -- the run
    seed: Steps = Field(0, description="of order, views and initial weights")
    precision: Literal["bf16", "fp16", "fp32"] = Field(
        AUTO, description="auto: bf16 where the device computes in it, else fp32; fp16 scales its loss"
    )
    compile: bool = Field(False, description="compile the network, on a GPU: slow to start, then faster")
    device: Literal["cpu", "cuda"] = Field(AUTO, description="auto: a GPU if there is one")
    workers: Steps = Field(AUTO, description="loader processes per training process")
    checkpoint_every_minutes: NonNegative = Field(10.0, description="minutes between checkpoints; 0: none by time")
    checkpoint_every_steps: Steps = Field(0, description="steps between checkpoints; 0: none by step")
    keep_checkpoints: Count = Field(3, description="newest checkpoints kept, beside the best")
    log_every_steps: Count = Field(10, description="steps between lines of metrics.jsonl")
    knn_every_epochs: NonNegative = Field(
        10.0, description="epochs between kNN evaluations, where labels exist; 0: none"
    )
    knn_k: Count = Field(20, description="neighbours of the kNN during training")
    check_every_epochs: Steps = Field(
        AUTO,
        description="epochs between checks, without labels, of whether more is known than at the start (view retrieval); auto: what "
        "1 % of the time is enough for; 0: none",
    )
    stop_when_worse: bool = Field(
        False,
        description="end the run where kNN, or without labels view retrieval, stays below the start's for a fifth of it; for init=W",
    )
    eval_size: Count | Auto = Field(
        "auto", description="side of images in the kNN during training [pixels]; auto: the largest crop's"
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _auto_is_welcome(cls, value: Any, check: Callable[[Any], Any], info: Any) -> Any:
        return value if _is_auto(value) and cls.takes_auto(info.field_name) else check(value)

    @field_serializer("*", mode="wrap")
    def _auto_stays(self, value: Any, write: Callable[[Any], Any]) -> Any:
        return value if _is_auto(value) else write(value)

    @staticmethod
    def takes_auto(key: str) -> bool:
        """Whether `auto` asks for a derived value. (A folder may be called auto.)"""
        return key != "data"

    def left_at_auto(self, *keys: str) -> bool:
        """Whether any of these is still to be derived."""
        return any(self.takes_auto(key) and _is_auto(getattr(self, key)) for key in keys)

    @property
    def num_views(self) -> int:
        return sum(crop.count for crop in self.crops)

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """Side of every view, in order [pixels]."""
        return tuple(crop.size for crop in self.crops for _ in range(crop.count))

    @property
    def code_views(self) -> tuple[int, ...]:
        """Indices of the views that give codes: those of the largest size, whatever their place in the list."""
        if self.code_crops != "auto":
            return self.code_crops
        sizes = self.view_sizes
        return tuple(i for i, size in enumerate(sizes) if size == max(sizes))

    @property
    def resolution(self) -> int:
        """Side of images when features are evaluated [pixels]."""
        return max(self.view_sizes) if self.eval_size == "auto" else self.eval_size

    @property
    def prototype_sets(self) -> tuple[int, ...]:
        """Number of prototypes in each set; most often there is one."""
        return self.prototypes if isinstance(self.prototypes, tuple) else (self.prototypes,)

    @property
    def log_prototypes(self) -> float:
        """Mean over the sets of ln K: the loss where every code is uniform, as after a collapse [nats]."""
        return sum(math.log(count) for count in self.prototype_sets) / len(self.prototype_sets)

    def images_per_forward(self, world_size: int) -> int:
        """Images that a process takes through the network at a time: a micro-batch, or its share of the batch."""
        share = self.batch // world_size
        return min(self.micro_batch or share, share)

    def synchronises(self, world_size: int) -> bool:
        """Whether BatchNorm's statistics are those of all processes. (`auto` stays: it is right for any number.)"""
        return world_size > 1 and self.sync_bn in (True, "auto")

    def processes_per_statistic(self, world_size: int) -> int:
        """Over how many processes BatchNorm's statistics are: 1, a group, or all."""
        return min(self.sync_bn_group or world_size, world_size) if self.synchronises(world_size) else 1

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "Recipe":
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterator[str]:
        """What doesn't fit; values that are still to be derived fit with anything."""

        def known(*keys: str) -> bool:
            return not self.left_at_auto(*keys)

        if known("crops") and self.num_views < 2:
            yield f"crops: expected at least 2 crops per image, found {self.num_views}; SwAV swaps codes between crops"
        if known("crops") and self.code_crops != "auto":
            chosen = set(self.code_crops)
            if not chosen or max(chosen) >= self.num_views or len(chosen) < len(self.code_crops):
                yield f"code_crops: expected different indices below {self.num_views} (the number of crops), found {list(self.code_crops)}"
        if known("blur_kernel") and self.blur_kernel % 2 == 0:
            yield f"blur_kernel: expected an odd number, found {self.blur_kernel}"
        if known("blur_sigma") and self.blur_sigma[0] > self.blur_sigma[1]:
            yield f"blur_sigma: expected min <= max, found {list(self.blur_sigma)}"
        if known("backbone") and self.backbone.startswith(TIMM):
            for key in ("width", "stem", "zero_init_residual"):
                if known(key) and getattr(self, key) != (usual := Recipe.model_fields[key].default):
                    yield f"{key}: expected {usual!r} with {self.backbone}, whose shape is timm's own, found {getattr(self, key)!r}"
        if known("queue_length", "batch") and 0 < self.queue_length < self.batch:
            yield f"queue_length: expected 0 or at least the batch ({self.batch}), found {self.queue_length}; a shorter queue would never be used"
        if known("sync_bn", "sync_bn_group") and self.sync_bn is False and self.sync_bn_group is not None:
            yield f"sync_bn_group: expected null with sync_bn=false, found {self.sync_bn_group}; use sync_bn=true"
        uses_queue = known("queue_length") and self.queue_length > 0
        if uses_queue and known("queue_start_epoch", "epochs") and self.queue_start_epoch >= self.epochs:
            yield f"queue_start_epoch: expected below epochs ({self.epochs}), found {self.queue_start_epoch}; the queue would never be used"
        if known("warmup_epochs", "epochs") and self.warmup_epochs >= self.epochs:
            yield f"warmup_epochs: expected below epochs ({self.epochs}), found {self.warmup_epochs}"
        if known("koleo", "batch", "micro_batch") and self.koleo > 0 and 1 in (self.batch, self.micro_batch):
            yield "koleo: expected at least 2 images per forward, found 1: an embedding is spread from its nearest other one"
        measured = ("check_every_epochs", "knn_every_epochs")
        if (
            known("stop_when_worse", *measured)
            and self.stop_when_worse
            and not any(getattr(self, key) for key in measured)
        ):
            yield "stop_when_worse: expected kNN or view retrieval to judge by, found check_every_epochs=0 and knn_every_epochs=0"
        if known("hours", "epochs") and self.hours is not None:
            yield f"hours: expected epochs=auto beside it, found epochs={self.epochs}; the time to spend derives the epochs"


class DecodingSettings(Settings):
    """What image files leave open, for commands that take no recipe."""

    white_level: WhiteLevel = WHITE_LEVEL
    alpha: Alpha = "blend"


class WeightOptions(Settings):
    """What another project's weight file does not say. With several files they hold for each."""

    model: str | None = Field(None, description="the network: a backbone's name, module:function or timm:NAME")
    prefix: str | None = Field(None, description="what the backbone's names begin with, where two backbones are there")
    stem: Stem | None = Field(None, description="the backbone's stem; 3x3 is taken for small")
    mean: tuple[float, float, float] | None = Field(None, description="subtracted, in the order of `channels`")
    std: tuple[Positive, Positive, Positive] | None = Field(None, description="divides, in the order of `channels`")
    channels: Literal["rgb", "bgr"] | None = Field(None, description="order in which the network saw them")
    pretrain_epochs: Count | None = Field(None, description="of the pre-training, for tables; changes no number")
    pretrain_batch: Count | None = Field(None, description="images per step of the pre-training, for tables")


# Names that settings had before 0.1.0. In files that a run wrote they are read as the new ones; what a user types is refused.
RENAMED = {
    "checkpoint_minutes": "checkpoint_every_minutes",
    "checkpoint_steps": "checkpoint_every_steps",
    "keep": "keep_checkpoints",
    "knn_epochs": "knn_every_epochs",
    "log_steps": "log_every_steps",
    "max_bad": "max_unreadable",
    "score_epochs": "score_every_epochs",
}

# What other programs call these settings.
USUAL_NAMES = {
    **dict.fromkeys(("learning_rate", "base_lr"), "lr"),
    **dict.fromkeys(("batch_size", "bs"), "batch"),
    **dict.fromkeys(("num_workers", "n_workers"), "workers"),
    **dict.fromkeys(("max_epochs", "num_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("arch", "model", "network"), "backbone"),
    **dict.fromkeys(("dataset", "data_dir", "images", "path", "folder", "input"), "data"),
    **dict.fromkeys(("wd",), "weight_decay"),
    **dict.fromkeys(("crop", "crop_size", "image_size", "img_size", "sizes"), "crops"),
    **dict.fromkeys(("nmb_prototypes", "num_prototypes", "n_prototypes", "k"), "prototypes"),
    **dict.fromkeys(("checkpoint", "pretrained", "weights", "ckpt"), "init"),
    **dict.fromkeys(("output", "output_dir", "save_dir", "out_dir", "o", "project"), "out"),
    **dict.fromkeys(("amp", "mixed_precision"), "precision"),
    **dict.fromkeys(("gpu", "gpus", "accelerator"), "device"),
    **dict.fromkeys(("temp", "tau"), "temperature"),
}

# Settings by topic, for people.
TOPICS = {
    "images": ("data", "max_unreadable", "white_level", "alpha"),
    "views": (
        *("crops", "code_crops", "flip", "jitter", "jitter_probability", "grayscale"),
        *("blur", "blur_sigma", "blur_kernel", "mean", "std"),
    ),
    "network": (
        *("backbone", "width", "stem", "in_channels", "zero_init_residual", "sync_bn", "sync_bn_group"),
        *("head_hidden", "head_dim", "prototypes", "init"),
    ),
    "codes and loss": (
        *("temperature", "epsilon", "sinkhorn_iterations", "sinkhorn", "hard_codes", "teacher_momentum"),
        *("final_teacher_momentum", "koleo"),
        *("freeze_prototypes_steps", "freeze_backbone_steps", "queue_length", "queue_start_epoch"),
    ),
    "length and batch": ("epochs", "hours", "batch", "micro_batch"),
    "optimiser": (
        *("optimizer", "lr", "backbone_lr_factor", "final_lr", "warmup_epochs", "warmup_start_lr", "lr_schedule"),
        *("momentum", "weight_decay", "final_weight_decay", "decay_vectors", "clip_gradient", "trust_coefficient"),
    ),
    "machine": ("device", "precision", "compile", "workers", "seed"),
    "saved and logged": (
        *("checkpoint_every_minutes", "checkpoint_every_steps", "keep_checkpoints", "log_every_steps"),
    ),
    "checks on the way": ("knn_every_epochs", "knn_k", "check_every_epochs", "stop_when_worse", "eval_size"),
}

# Settings that may change between the commands of one run: they leave every weight as it is (another kind of device to
# rounding). New `hours` count from the next plan on; of a run that began without, the length stays.
HARMLESS = frozenset(
    {
        "data",
        "device",
        "hours",
        "workers",
        "checkpoint_every_minutes",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "log_every_steps",
        "knn_every_epochs",
        "knn_k",
        "check_every_epochs",
        "eval_size",
        "max_unreadable",
    }
)


def settings_hash(recipe: Recipe) -> str:
    """SHA-256 of the settings that shape the weights."""
    values = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in HARMLESS}
    later = {"sync_bn_group": None, "white_level": WHITE_LEVEL, "alpha": "blend"}
    later |= {"final_teacher_momentum": None, "final_weight_decay": None}
    for key, usual in later.items():
        if values[key] == usual:  # as before there was such a setting
            del values[key]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def settings_diff(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """The settings that shape the weights and differ, as {key: (before, after)}."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return {key: (old[key], new[key]) for key in old if key not in HARMLESS and old[key] != new[key]}
