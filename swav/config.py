"""Every knob of a pre-training run: its type, unit, default and source; and how a recipe becomes settings.

A recipe is a YAML file that holds differences from the defaults below. Precedence: defaults, recipe, `key=value`.
Values left at `auto` are derived from the images, the batch and the processes by `derive`, each with its reason.
No torch here: `swav recipes` and every complaint about settings answer at once.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from swav.errors import ConfigError, did_you_mean
from swav.strict_yaml import read_yaml

Auto = Literal["auto"]
Backbone = Literal["resnet18", "resnet34", "resnet50"]
Stem = Literal["imagenet", "half", "small"]
OptimizerName = Literal["larc", "lars", "adam", "adamw"]
RECIPES_FOLDER = Path(__file__).parent / "recipes"

# Below this the float32 scores themselves are too coarse: the rounding of a cosine (6e-8) over epsilon no longer is
# small against 1. The codes stay finite at any epsilon (see algorithm.sinkhorn_codes).
MIN_EPSILON = 1e-3


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, found a boolean")
    return value


Count = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
Steps = Annotated[int, BeforeValidator(_no_bool), Field(ge=0)]
Fraction = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)]
NonNegative = Annotated[float, BeforeValidator(_no_bool), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(_no_bool), Field(gt=0)]


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
    """Settings of a pre-training run. `batch` and `queue_length` count all processes together."""

    # -- what is trained on
    data: str | None = Field(None, description="folder, list file, or CIFAR; on the command line as data=PATH")
    max_bad: Annotated[Fraction, Field()] = Field(
        0.01, description="share of unreadable images above which the run stops (at least 10 files)"
    )

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
    backbone: Backbone = Field("resnet50", description="trunk")
    width: Positive = Field(1.0, description="factor on all channels of the trunk (released: 1, 2, 4, 5)")
    stem: Stem = Field(
        "imagenet",
        description="imagenet: 7x7/2 and max-pool; half: 3x3/2 and max-pool; small: 3x3 alone, for 32-pixel images",
    )
    zero_init_residual: bool = Field(False, description="start each residual branch at zero")
    sync_bn: bool | Auto = Field(
        "auto", description="BatchNorm statistics over all processes, not each its own; auto: yes"
    )
    head_hidden: Count = Field(2048, description="width of the projection head's hidden layer")
    head_dim: Count = Field(128, description="dimension of an embedding")
    prototypes: Count | Auto = Field(3000, description="number of prototypes; auto: from the number of images")

    # -- codes and loss (section 3.1, appendix A.1)
    temperature: Positive = Field(0.1, description="of the predictions' softmax")
    epsilon: Annotated[float, BeforeValidator(_no_bool), Field(ge=MIN_EPSILON)] = Field(
        0.05, description=f"entropy weight of the codes; at least {MIN_EPSILON}"
    )
    sinkhorn_iterations: Count = Field(3, description="iterations of Sinkhorn-Knopp")
    freeze_prototypes_steps: Steps | Auto = Field(
        "auto", description="steps without a prototype update; auto: one epoch and a step"
    )
    queue_length: Steps | Auto = Field(
        0, description="embeddings kept per code-giving crop, over all processes; 0: no queue"
    )
    queue_start_epoch: Steps | Auto = Field(15, description="epoch at which the queue begins to fill")

    # -- optimisation
    epochs: Count | Auto = Field(200, description="passes over the images")
    batch: Count = Field(256, description="images per step, over all processes")
    micro_batch: Steps | Auto = Field(
        0, description="images per forward on a process, where a batch is larger than memory; 0: all of its share"
    )
    optimizer: OptimizerName = Field(
        "larc", description="larc: SGD with apex's LARC, as the paper; lars: learning rate inside the momentum"
    )
    lr: Positive | Auto = Field(0.6, description="peak learning rate, for `batch`")
    final_lr: NonNegative | Auto = Field("auto", description="last learning rate; auto: lr / 1000")
    warmup_epochs: NonNegative | Auto = Field(0.0, description="epochs of linear warm-up")
    warmup_start_lr: NonNegative = Field(0.0, description="first learning rate of the warm-up")
    lr_schedule: Literal["step", "epoch"] = Field(
        "step", description="step: the rate changes every step; epoch: constant within an epoch"
    )
    momentum: Fraction = Field(0.9, description="of SGD")
    weight_decay: NonNegative = Field(1e-6, description="on all parameters")
    trust_coefficient: Positive = Field(0.001, description="of LARC and LARS")

    # -- the run
    seed: Steps = Field(0, description="of order, views and initial weights")
    precision: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="auto: bf16 where the device computes in it, else fp32; fp16 scales its loss"
    )
    compile: bool = Field(False, description="compile the network, on a GPU: slow to start, then faster")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    workers: Steps | Auto = Field("auto", description="loader processes per training process")
    checkpoint_minutes: NonNegative = Field(10.0, description="minutes between checkpoints; 0: none by time")
    checkpoint_steps: Steps = Field(0, description="steps between checkpoints; 0: none by step")
    keep: Count = Field(3, description="newest checkpoints kept, beside the best")
    log_steps: Count = Field(10, description="steps between lines of metrics.jsonl")
    knn_epochs: NonNegative = Field(10.0, description="epochs between kNN evaluations, where labels exist; 0: none")
    knn_k: Count = Field(20, description="neighbours of the kNN during training")
    eval_size: Count | Auto = Field(
        "auto", description="side of images in the kNN during training [pixels]; auto: the largest crop's"
    )

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

    def images_per_forward(self, world_size: int) -> int:
        """Images that a process takes through the network at a time: a micro-batch, or its share of the batch."""
        assert isinstance(self.micro_batch, int)
        share = self.batch // world_size
        return min(self.micro_batch or share, share)

    def synchronises(self, world_size: int) -> bool:
        """Whether BatchNorm's statistics are those of all processes. (`auto` stays: it is right for any number.)"""
        return world_size > 1 and self.sync_bn in (True, "auto")

    @model_validator(mode="after")
    def _settings_fit_together(self) -> "Recipe":
        if self.num_views < 2:
            raise ValueError(
                f"crops: expected at least 2 crops per image, found {self.num_views}; SwAV swaps codes between crops"
            )
        if self.code_crops != "auto" and (
            not self.code_crops
            or max(self.code_crops) >= self.num_views
            or len(set(self.code_crops)) < len(self.code_crops)
        ):
            raise ValueError(
                f"code_crops: expected different indices below {self.num_views} (the number of crops), found {list(self.code_crops)}"
            )
        if self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel: expected an odd number, found {self.blur_kernel}")
        if self.blur_sigma[0] > self.blur_sigma[1]:
            raise ValueError(f"blur_sigma: expected min <= max, found {list(self.blur_sigma)}")
        if isinstance(self.queue_length, int) and 0 < self.queue_length < self.batch:
            raise ValueError(
                f"queue_length: expected 0 or at least the batch ({self.batch}), found {self.queue_length}; a shorter queue would never be used"
            )
        uses_queue = isinstance(self.queue_length, int) and self.queue_length > 0
        if (
            uses_queue
            and isinstance(self.queue_start_epoch, int)
            and isinstance(self.epochs, int)
            and self.queue_start_epoch >= self.epochs
        ):
            raise ValueError(
                f"queue_start_epoch: expected below epochs ({self.epochs}), found {self.queue_start_epoch}; the queue would never be used"
            )
        if isinstance(self.warmup_epochs, float) and isinstance(self.epochs, int) and self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs: expected below epochs ({self.epochs}), found {self.warmup_epochs}")
        return self


# Settings that may change between the sittings of one run: they leave every weight as it is.
HARMLESS = frozenset(
    {
        "data",
        "workers",
        "checkpoint_minutes",
        "checkpoint_steps",
        "keep",
        "log_steps",
        "knn_epochs",
        "knn_k",
        "eval_size",
        "max_bad",
    }
)


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES_FOLDER.glob("*.yaml"))


def recipe_text(name: str) -> str:
    """Returns a recipe's YAML, from its name or from a file.

    Raises:
        ConfigError: no such recipe.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES_FOLDER / f"{name}.yaml"
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        if path.suffix == Path(name).suffix and not isinstance(error, FileNotFoundError):
            raise ConfigError(f"recipe {name}: cannot be read ({error})") from None
        raise ConfigError(
            f"unknown recipe '{name}'{did_you_mean(name, recipe_names())}; known: {', '.join(recipe_names())}, or a .yaml file"
        ) from None


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """Reads `key=value` words; values are YAML (`epochs=5`, `crops=[{count: 2, size: 32, scale: [0.2, 1]}]`).

    Raises:
        ConfigError: a word without `=`, a key twice, or a value that is not YAML.
    """
    values: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"expected key=value, found '{word}'{did_you_mean(word, Recipe.model_fields)}")
        if key in values:
            raise ConfigError(f"{key}: given twice on the command line")
        if key == "data":  # a path is a path, whatever YAML would make of it
            values[key] = text
            continue
        values[key] = read_yaml(f"value: {text}", f"{key}={text}").get("value")
    return values


def validated(kind: type[AnySettings], values: Mapping[str, Any], where: str) -> AnySettings:
    """Builds settings, with a complaint that names the key, what was expected and what was found.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range, or settings that do not fit together.
    """
    for key in values:
        if key not in kind.model_fields:
            raise ConfigError(
                f"{where}: unknown key '{key}'{did_you_mean(str(key), kind.model_fields)}; `swav recipes NAME` prints every key"
            )
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        message = str(problem["msg"]).removeprefix("Value error, ")
        place = ".".join(
            str(part)
            for part in problem["loc"]
            if not str(part).startswith(("function-", "literal", "constrained-", "int", "float", "bool"))
        )
        if not place:
            raise ConfigError(f"{where}: {message}") from None
        raise ConfigError(f"{where}: {place}: {message}, found {problem['input']!r}") from None


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Defaults, then the recipe (a name or a YAML file), then the overrides."""
    values = read_yaml(recipe_text(name), f"recipe {name}")
    validated(Recipe, values, f"recipe {name}")
    return validated(Recipe, values | dict(overrides or {}), "settings")


def to_yaml(recipe: Settings) -> str:
    """Every setting, one a line; `read_yaml` gives the same settings back."""
    return "".join(f"{key}: {_yaml_value(value)}\n" for key, value in recipe.model_dump(mode="json").items())


def _yaml_value(value: Any) -> str:
    """JSON in ASCII, but for characters beyond 16 bits: JSON writes them as a pair, which YAML takes for two."""
    return re.sub(
        r"\\ud[89ab]..\\ud[c-f]..",
        lambda pair: "\\U{:08x}".format(ord(json.loads('"' + pair[0] + '"'))),
        json.dumps(value),
    )


def settings_hash(recipe: Recipe) -> str:
    """SHA-256 of the settings that shape the weights."""
    values = {key: value for key, value in recipe.model_dump(mode="json").items() if key not in HARMLESS}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def settings_diff(before: Recipe, after: Recipe) -> dict[str, tuple[Any, Any]]:
    """The settings that shape the weights and differ, as {key: (before, after)}."""
    old, new = before.model_dump(mode="json"), after.model_dump(mode="json")
    return {key: (old[key], new[key]) for key in old if key not in HARMLESS and old[key] != new[key]}


def derive(
    recipe: Recipe, num_images: int, world_size: int, device: str, cpus: int, has_bf16: bool
) -> tuple[Recipe, dict[str, str]]:
    """Replaces every `auto` by a value, and says why.

    Args:
        recipe: as loaded.
        num_images: readable images that are trained on.
        world_size: processes.
        device: "cpu" or "cuda", what is there.
        cpus: processor cores that this machine lends us.
        has_bf16: whether the device computes in bfloat16.

    Returns:
        The settings without `auto` (but `code_crops` and `eval_size`, which follow from the crops, and `sync_bn`, which
        follows from the processes of each sitting), and {key: reason}.

    Raises:
        ConfigError: the processes cannot share the batch or the queue, the device cannot do what is asked for, or
            derived values do not fit together.
    """
    if recipe.batch % world_size:
        raise ConfigError(
            f"batch: expected a multiple of the {world_size} processes, found {recipe.batch}; "
            f"start {_divisor(recipe.batch, world_size)}, or begin a run with another batch"
        )
    new: dict[str, Any] = {}
    why: dict[str, str] = {}

    def choose(key: str, value: Any, reason: str) -> Any:
        current = getattr(recipe, key)
        if current != "auto":
            return current
        new[key], why[key] = value, reason
        return value

    steps_per_epoch = max(1, num_images // recipe.batch)
    epochs = choose(
        "epochs",
        _between(round(200 * (1.28e6 / num_images) ** 0.25), 100, 800),
        f"200 on ImageNet; fewer images ({num_images}) need more passes",
    )
    choose(
        "prototypes",
        _between(10 * round(300 * (num_images / 1.28e6) ** 0.6), 30, 3000),
        f"3000 on ImageNet's 1.28 million images, to the power .6 of {num_images} images",
    )
    lr = recipe.lr
    if recipe.optimizer in ("larc", "lars"):
        lr = choose(
            "lr",
            float(f"{0.6 * (recipe.batch / 256) ** 0.75:.4g}"),
            f"through the published 0.6 at batch 256 and 4.8 at 4096, for batch {recipe.batch}",
        )
    else:
        lr = choose(
            "lr",
            float(f"{1e-3 * (recipe.batch / 256) ** 0.5:.4g}"),
            f"1e-3 at batch 256, by the square root, for batch {recipe.batch}",
        )
    assert not isinstance(lr, str)
    choose("final_lr", float(f"{lr / 1000:.4g}"), "lr / 1000, as in the released recipes")
    choose(
        "warmup_epochs",
        float(_between(round(0.05 * epochs), 1, 10) if epochs > 1 else 0),
        f"5 % of {epochs} epochs, at most 10",
    )
    choose(
        "freeze_prototypes_steps",
        steps_per_epoch + 1,
        f"one epoch ({steps_per_epoch} steps) and a step, as in the released recipes",
    )
    share = num_images // 4 // recipe.batch * recipe.batch
    queue = 0 if recipe.batch >= 1024 or epochs < 4 else min(max(3840 // recipe.batch, 1) * recipe.batch, share)
    reason = (
        "batch of 1024 or more needs none"
        if recipe.batch >= 1024
        else f"published 3840, at most a quarter of the {num_images} images, in whole batches"
    )
    choose("queue_length", queue, reason)
    choose(
        "queue_start_epoch",
        min(15, max(1, round(0.15 * epochs))) if epochs > 1 else 0,
        f"15, at most 15 % of {epochs} epochs",
    )
    on = choose("device", device, "a GPU is there" if device == "cuda" else "no GPU was found")
    choose(
        "precision",
        "bf16" if has_bf16 else "fp32",
        "the device computes in bfloat16" if has_bf16 else "the device has no bfloat16 units",
    )
    if recipe.compile and on == "cpu":
        raise ConfigError(
            "compile=true: expected a GPU, found device=cpu, where compiling takes minutes and gains nothing; leave it out"
        )
    choose("micro_batch", 0, "the whole batch at once; give the images that fit into memory where it does not fit")
    spare = max(1, cpus // world_size - 1)
    choose(
        "workers",
        min(spare, 8),
        f"{cpus} cores for {world_size} training process{'es' if world_size > 1 else ''} on {on}",
    )
    settled = validated(Recipe, recipe.model_dump() | new, "settings")
    _check_shares(settled, world_size)
    return settled, why


def _check_shares(recipe: Recipe, world_size: int) -> None:
    """Every process must have as much as every other, in whole micro-batches."""
    share, size = recipe.batch // world_size, recipe.images_per_forward(world_size)
    if share % size:
        raise ConfigError(
            f"micro_batch: expected a divisor of the {share} images per process, found {size}; use {_divisor(share, size)}"
        )
    assert isinstance(recipe.queue_length, int)
    if recipe.queue_length % world_size:
        raise ConfigError(
            f"queue_length: expected a multiple of the {world_size} processes, found {recipe.queue_length}; "
            f"start {_divisor(recipe.queue_length, world_size)}"
        )


def _divisor(number: int, most: int) -> int:
    """The largest up to `most`."""
    return next(n for n in range(most, 0, -1) if number % n == 0)


def _between(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))
