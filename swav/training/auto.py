"""What `auto` becomes: every setting that was left open, from the images and the machine, with its reason.

The rules go through the published settings and bend towards small data sets, small images and small machines by
judgement; docs/recipes.md lists them. They are asked in this order, so that a rule may build on the ones before it:
machine, views, colour, network, batch, codes, optimiser, length of the run. A setting without a rule takes its default.
No torch here: what has to be measured comes as functions, called only where a setting depends on them.
"""

import math
import re

from swav.config import TIMM, Crop, Recipe
from swav.errors import ConfigError, DataError, counted
from swav.progress import per_second
from swav.recipe_files import validated
from swav.training import adapting
from swav.training.choices import Choices, MachineAndData, between

# `auto` is a value of these: they follow from the crops whatever those are, and from the processes of each command.
DEPENDENT = ("code_crops", "eval_size", "sync_bn")
EXPLAINED = frozenset(  # settings that have a rule
    {
        *("device", "precision", "workers"),
        *("crops", "jitter", "grayscale", "blur"),
        *("backbone", "width", "stem", "head_hidden", "prototypes"),
        *("batch", "micro_batch", "koleo", "epsilon", "freeze_prototypes_steps"),
        *("optimizer", "lr", "final_lr"),
        *("epochs", "warmup_epochs", "queue_length", "queue_start_epoch"),
        "check_every_epochs",
    }
)
DEFAULT = "the default"  # the reason of what has no rule
MOST_EPOCHS = 2000  # that `hours` may make of few images
_TRANSFORMERS = (
    "vit",
    "deit",
    "deit3",
    "beit",
    "beitv2",
    "eva",
    "eva02",
    "cait",
    "xcit",
)  # names of timm's models begin so
_FEW_PROTOTYPES = 1000
_MANY_IMAGES = 1_000_000
# Images seen from which on every set of five was better by kNN than random weights, by 1.0 and more; after 4,000 one was worse by 5.
LEAST_SEEN = 8_000
CHECKED_IMAGES, _LEAST_CHECKED, CHECKED_VIEWS = 512, 128, 4  # that a check looks at (retrieval.py); views of each
_CHECKS_SHARE, _MOST_CHECKS, _CHECKS_FOR_HARM = 0.01, 20, 10


def derive(recipe: Recipe, facts: MachineAndData) -> tuple[Recipe, dict[str, str]]:
    """Replace every `auto` by a value, and say why.

    Returns:
        The settings without `auto` (but those of DEPENDENT), and {key: reason}.

    Raises:
        ConfigError: the batch is not a multiple of the number of processes, or derived values do not fit with given ones.
        DataError: there are fewer images than the smallest batch needs.
        MachineError: from `facts.batch_fits`, where memory has no room for a single image.
    """
    if not recipe.left_at_auto("batch") and recipe.batch % facts.world_size:
        raise ConfigError(
            f"batch: expected a multiple of the {facts.world_size} processes, found {recipe.batch}; "
            f"start {_divisor(recipe.batch, facts.world_size)}, or begin a run with another batch"
        )
    choices = Choices(recipe)
    adapting.network(choices, facts)
    _transformer(choices)
    later = EXPLAINED | (adapting.LATER if facts.start is not None else frozenset())
    for key, field in Recipe.model_fields.items():
        if key not in DEPENDENT and key not in later:
            choices.choose(key, field.default, DEFAULT)
    for rule in (
        _machine,
        _views,
        _colour,
        _network,
        _batch,
        _spread,
        _check_forward,
        _codes,
        _optimiser,
        _length,
        adapting.head_first,
        adapting.evaluations,
        _checks,
    ):
        rule(choices, facts)
    settled = choices.recipe.model_dump() | {"hours": None}  # `epochs` holds what came of them at first
    chosen = validated(Recipe, settled, "settings")
    if chosen.compile and chosen.device == "cpu":
        raise ConfigError(
            "compile=true: expected a GPU, found device=cpu, where compiling takes minutes and gains nothing; leave it out"
        )
    _check_queue(chosen, facts.world_size)
    _check_groups(chosen, facts.world_size)
    return chosen, choices.reasons


def _is_transformer(backbone: str) -> bool:
    name = backbone.removeprefix(TIMM)
    return backbone.startswith(TIMM) and re.match(rf"(test_)?({'|'.join(_TRANSFORMERS)})\d*(_|$)", name) is not None


def _transformer(choices: Choices) -> None:
    """What a transformer is trained with, whoever trains it."""
    if _is_transformer(choices.recipe.backbone):
        why = f"usual for transformers, as {choices.recipe.backbone} is one"
        choices.choose("optimizer", "adamw", why)
        choices.choose("weight_decay", 0.05, why)
        choices.choose("decay_vectors", False, f"{why}: none on biases and norms")
        choices.choose("clip_gradient", 3.0, f"{why}: DINO's")


def _check_forward(choices: Choices, facts: MachineAndData) -> None:
    """Every process must have as much as every other, in whole micro-batches. Looked at before anything is timed."""
    recipe, processes = choices.recipe, facts.world_size
    share, size = recipe.batch // processes, recipe.images_per_forward(processes)
    if share % size:
        raise ConfigError(
            f"micro_batch: expected a divisor of the {share} images per process, found {size}; use {_divisor(share, size)}"
        )
    if recipe.koleo > 0 and size < 2:
        raise ConfigError(
            f"koleo: expected at least 2 images per forward of a process, found 1 (batch {recipe.batch} over "
            f"{counted(processes, 'process')}): an embedding is spread from its nearest other one; use a larger batch"
        )


def _check_queue(recipe: Recipe, world_size: int) -> None:
    if recipe.queue_length % world_size:
        raise ConfigError(
            f"queue_length: expected a multiple of the {world_size} processes, found {recipe.queue_length}; "
            f"start {_divisor(recipe.queue_length, world_size)}"
        )


def _check_groups(recipe: Recipe, world_size: int) -> None:
    size = recipe.processes_per_statistic(world_size)
    if world_size % size:
        raise ConfigError(
            f"sync_bn_group: expected a divisor of the {world_size} processes, found {size}; "
            f"use sync_bn_group={_divisor(world_size, size)}, or null for statistics over all"
        )


def _divisor(number: int, most: int) -> int:
    """The largest up to `most`."""
    return next(n for n in range(most, 0, -1) if number % n == 0)


# -- machine


def _machine(choices: Choices, facts: MachineAndData) -> None:
    on_gpu = facts.device == "cuda"
    choices.choose("device", facts.device, "a GPU is there" if on_gpu else "no GPU was found")
    choices.choose(
        "precision",
        "bf16" if facts.has_bf16 else "fp32",
        "the device computes in bfloat16" if facts.has_bf16 else "the device has no fast bfloat16 units",
    )
    choices.choose(
        "workers",
        min(max(1, facts.cpus // facts.world_size - 1), 8),
        f"{facts.cpus} cores for {facts.world_size} training process{'es' if facts.world_size > 1 else ''} on {choices.recipe.device}",
    )


# -- views


def _views(choices: Choices, facts: MachineAndData) -> None:
    on_gpu = choices.recipe.device == "cuda"
    most = 224 if on_gpu else 64
    step = _patch(choices.recipe.backbone)
    large = _crop_size(min(most, facts.side), step)
    reason = f"short side of the images: {facts.side} pixels (median)"
    if facts.start is not None:  # smaller images are enlarged, as they are for scoring
        large = facts.start.size
        reason = f"{facts.start.name} was made for {large} pixels"
    elif facts.side > most:
        reason += "; 224 is the published size" if on_gpu else "; a CPU has time for crops of 64 pixels, a GPU for 224"
    if large < 48:
        crops: tuple[Crop, ...] = (Crop(count=2, size=large, scale=(0.2, 1.0)),)
        reason += "; smaller crops of such images would show nothing"
    else:
        # The published sizes, 224 and 96, in their proportion. In the little time of a CPU fewer, wider crops teach more.
        small = max(step or 24, round(large * 3 / 7 / (step or 16)) * (step or 16))
        scales = ((0.14, 1.0), (0.05, 0.14)) if on_gpu else ((0.25, 1.0), (0.08, 0.25))
        crops = (
            Crop(count=2, size=large, scale=scales[0]),
            Crop(count=6 if on_gpu else 4, size=small, scale=scales[1]),
        )
    choices.choose("crops", crops, reason)


def _crop_size(pixels: int, patch: int = 0) -> int:
    """At most so many, a multiple of 16, below 48 of 4, or of a transformer's patches; the config allows 8 and more."""
    if patch:
        return max(patch, pixels // patch * patch)
    return max(8, pixels // 16 * 16 if pixels >= 48 else pixels // 4 * 4)


def _patch(backbone: str) -> int:
    """The side of a transformer's patches, as its name says; 0 of other networks."""
    if not _is_transformer(backbone):
        return 0
    said = re.search(r"patch(\d+)", backbone)
    return int(said[1]) if said else 16


def _colour(choices: Choices, facts: MachineAndData) -> None:
    recipe = choices.recipe
    largest = max(recipe.view_sizes)
    if largest >= 128:
        strength, why = (0.8, 0.8, 0.8, 0.2), "the published strength"
    elif largest >= 48:
        strength, why = (0.5, 0.5, 0.5, 0.15), f"weaker than published: crops of {largest} pixels hold less to go by"
    else:
        strength, why = (
            (0.4, 0.4, 0.4, 0.1),
            f"half the published strength, as others use for crops of {largest} pixels",
        )
    if recipe.left_at_auto("jitter", "grayscale") and facts.is_grey():
        choices.choose("jitter", (*strength[:2], 0.0, 0.0), f"the images are grey: no saturation, no hue; {why}")
        choices.choose("grayscale", 0.0, "the images are grey")
    choices.choose("jitter", strength, why)
    choices.choose("grayscale", 0.2, "published; the images have colours")
    choices.choose(
        "blur",
        0.5 if largest >= 128 else 0.0,
        "published" if largest >= 128 else f"its kernel of 23 pixels would leave nothing of crops of {largest}",
    )


# -- network


def _network(choices: Choices, facts: MachineAndData) -> None:
    on_gpu = choices.recipe.device == "cuda"
    choices.choose(
        "backbone",
        "resnet50" if on_gpu else "resnet18",
        "the published one, on a GPU" if on_gpu else "what a CPU can train; on a GPU it would be resnet50",
    )
    recipe, largest = choices.recipe, max(choices.recipe.view_sizes)
    if recipe.backbone.startswith(TIMM):
        choices.choose("width", 1.0, "timm's own")
        choices.choose("stem", "imagenet", "timm's own")
    narrow = not on_gpu and largest <= 64
    choices.choose(
        "width", 0.5 if narrow else 1.0, f"half: crops of {largest} pixels on a CPU" if narrow else "published"
    )
    stem = "imagenet" if largest >= 128 else "half" if largest >= 48 else "small"
    choices.choose("stem", stem, f"for crops of {largest} pixels")
    width = choices.recipe.width
    choices.choose(
        "head_hidden",
        8192 if width >= 2 else max(128, round(2048 * min(1.0, width))),
        "published: 2048, from width 2 on 8192; less below width 1",
    )
    choices.choose(
        "prototypes",
        between(10 * round(300 * (facts.num_images / 1.28e6) ** 0.6), 30, 3000),
        f"3000 on ImageNet's 1.28 million images, to the power .6 of {facts.num_images} images",
    )


# -- batch


def _batch(choices: Choices, facts: MachineAndData) -> None:
    """What teaches well is the batch; what memory has room for is the micro-batch, if that may be chosen too."""
    world_size = facts.world_size
    if choices.recipe.left_at_auto("batch"):
        share, reason = _share_that_suits(choices.recipe, facts)
        if not choices.recipe.left_at_auto("micro_batch") and choices.recipe.micro_batch == 0:
            count, how = facts.batch_fits(choices.recipe, share)
            if count < share:
                share, reason = (
                    power_of_two(count),
                    f"what fits into memory ({how}); more would be {share * world_size}",
                )
        choices.choose("batch", share * world_size, reason)
    if choices.recipe.left_at_auto("micro_batch"):
        share = choices.recipe.batch // world_size
        count, how = facts.batch_fits(choices.recipe, share)
        if count >= share:
            choices.choose(
                "micro_batch",
                0,
                f"{counted(share, 'image')} of a step and process, all at once, fit into memory ({how})",
            )
        choices.choose(
            "micro_batch", _divisor(share, max(1, count)), f"of {share} images, what fits into memory ({how})"
        )


def _share_that_suits(recipe: Recipe, facts: MachineAndData) -> tuple[int, str]:
    """Images per step and process, whatever the memory."""
    images, world_size, on_gpu = facts.num_images, facts.world_size, recipe.device == "cuda"
    if images < 2 * world_size:
        raise DataError(
            f"{recipe.data}: expected at least 2 images per process ({2 * world_size}), found {images}; SwAV needs a batch"
        )
    most = 256 if on_gpu else 64
    # 16 steps an epoch; but a batch below 16 balances hardly anything, so few images make fewer steps.
    wanted = min(most, power_of_two(max(images // 16, min(16, images))))
    reason = f"{'published small batch, on a GPU' if on_gpu else 'many small steps, on a CPU'}: {most}"
    if wanted < most:
        reason += f"; a power of 2 for {images} images"
    return max(2, wanted // world_size), reason


# -- codes


def _spread(choices: Choices, facts: MachineAndData) -> None:
    if choices.recipe.images_per_forward(facts.world_size) < 2:
        choices.choose("koleo", 0.0, "a process takes one image at a time, which has no other to be spread from")
    if facts.num_images >= _MANY_IMAGES:
        choices.choose("koleo", 0.0, f"published; with {_MANY_IMAGES:,} images and more nothing else was measured")
    if choices.recipe.batch >= 256:
        choices.choose("koleo", 0.1, "DINOv2's; without it short runs on few images may learn nothing (docs/log.md)")
    choices.choose(
        "koleo", 0.3, "spreads embeddings; with the rate that goes with it the best of many short runs (docs/log.md)"
    )


def _codes(choices: Choices, facts: MachineAndData) -> None:
    batch, prototypes = choices.recipe.batch, max(choices.recipe.prototype_sets)
    if prototypes < _FEW_PROTOTYPES and batch < 256:
        choices.choose(
            "epsilon", 0.02, f"sharper codes start sooner with few samples in the balance ({batch}); docs/log.md"
        )
    elif prototypes < _FEW_PROTOTYPES:
        choices.choose("epsilon", 0.03, f"sharper than the published .05, with few prototypes ({prototypes})")
    choices.choose("epsilon", 0.05, "published")
    steps = _steps_per_epoch(choices, facts)
    choices.choose(
        "freeze_prototypes_steps",
        steps + 1,
        f"one epoch ({counted(steps, 'step')}) and a step, as in the released recipes",
    )


def _steps_per_epoch(choices: Choices, facts: MachineAndData) -> int:
    return max(1, facts.num_images // choices.recipe.batch)


# -- optimiser


def _optimiser(choices: Choices, facts: MachineAndData) -> None:
    batch = choices.recipe.batch
    choices.choose(
        "optimizer",
        "larc" if batch >= 256 else "adam",
        "published, for large batches" if batch >= 256 else f"less sensitive to the learning rate at batch {batch}",
    )
    if choices.recipe.optimizer in ("larc", "lars"):
        lr = 0.6 * (batch / 256) ** 0.75
        reason = f"through the published 0.6 at batch 256 and 4.8 at 4096, for batch {batch}"
    elif _is_transformer(choices.recipe.backbone):
        lr = 5e-4 * batch / 256
        reason = f"of a transformer: DINO's 5e-4 at batch 256, in proportion, for batch {batch}"
    else:
        lr = 3e-3 * (batch / 64) ** 0.5
        reason = f"3e-3 at batch 64, by the square root, for batch {batch}"
    choices.choose("lr", float(f"{lr:.4g}"), reason)
    choices.choose("final_lr", float(f"{choices.recipe.lr / 1000:.4g}"), "lr / 1000, as in the released recipes")


# -- length


def _length(choices: Choices, facts: MachineAndData) -> None:
    if choices.recipe.left_at_auto("epochs"):
        choices.choose("epochs", *_epochs(choices.recipe, facts))
    epochs, batch, images = choices.recipe.epochs, choices.recipe.batch, facts.num_images
    choices.choose(
        "warmup_epochs",
        float(between(round(0.05 * epochs), 1, 10) if epochs > 1 else 0),
        f"5 % of {counted(epochs, 'epoch')}, at most 10",
    )
    share = images // 4 // batch * batch
    if batch >= 1024:
        choices.choose("queue_length", 0, "a batch of 1024 or more needs none")
    elif epochs < 30:
        choices.choose("queue_length", 0, f"it disturbs the first 15 epochs, of {epochs} in all")
    choices.choose(
        "queue_length",
        min(max(3840 // batch, 1) * batch, share),
        f"published 3840, at most a quarter of the {images} images, in whole batches",
    )
    choices.choose(
        "queue_start_epoch",
        min(15, epochs // 2),
        f"15, at most half of {counted(epochs, 'epoch')}",
    )


def too_short(seen: int) -> str | None:
    """What is to be said of a run from random weights that sees so few images; None of a longer one.

    Source: 20 short runs over five sets, docs/log.md.
    """
    if seen >= LEAST_SEEN:
        return None
    return (
        f"{seen:,} images will be seen: with fewer than {LEAST_SEEN:,} training did not surely beat random weights, with any settings "
        "that we tried. Give more epochs (or hours), or start from weights that saw more (init=W)"
    )


def _checks(choices: Choices, facts: MachineAndData) -> None:
    recipe = choices.recipe
    affordable = _affordable(recipe, facts.num_images) // checked_images(recipe, facts.num_images)
    most = between(affordable - 1, 1, _MOST_CHECKS)  # one is made before the first epoch
    if recipe.stop_when_worse:
        most = max(most, _CHECKS_FOR_HARM)
    every = math.ceil(recipe.epochs / most)
    if every >= recipe.epochs:
        reason = "before the first epoch and after the last"
    else:
        times = counted(math.ceil(recipe.epochs / every), "time")
        reason = f"before the first epoch and {times} on the way, " + (
            "to find harm early (stop_when_worse)" if recipe.stop_when_worse else "for at most 1 % of the time"
        )
    choices.choose("check_every_epochs", every, reason)


def checked_images(recipe: Recipe, num_images: int) -> int:
    """How many images a check looks at: 512, fewer where a check would be more than a hundredth of the run."""
    return min(num_images, between(_affordable(recipe, num_images), _LEAST_CHECKED, CHECKED_IMAGES))


def _affordable(recipe: Recipe, num_images: int) -> int:
    """Images that all checks together may look at for a hundredth of the run: a step is worth three forwards of all crops."""
    pixels = sum(crop.count * crop.size**2 for crop in recipe.crops)
    whole = 3 * pixels * num_images * recipe.epochs
    return int(_CHECKS_SHARE * whole / (CHECKED_VIEWS * recipe.resolution**2))


def _epochs(recipe: Recipe, facts: MachineAndData) -> tuple[int, str]:
    images = facts.num_images
    if recipe.hours is None:
        epochs = between(round(200 * (1.28e6 / images) ** 0.25), 100, 800)
        if facts.start is not None:
            return adapting.epochs(images, epochs)
        return epochs, f"200 on ImageNet; fewer images ({images}) need more passes"
    throughput = facts.throughput(recipe)
    budget, pass_seconds = 3600 * recipe.hours, images / throughput
    fit = round((budget - facts.spent()) / pass_seconds)
    reason = f"{counted(recipe.hours, 'hour')} at {per_second(throughput)}, as measured just now"
    if pass_seconds > budget:
        return 1, (
            f"{reason}, are less than one pass over {images} images: it takes {in_words(pass_seconds)}, "
            f"{in_words(pass_seconds - budget)} more"
        )
    if fit > MOST_EPOCHS:
        return MOST_EPOCHS, f"{reason}; at most {MOST_EPOCHS}"
    if pass_seconds <= budget / 10:
        return max(1, fit), f"{reason}; planned anew after every epoch, to end within a tenth of the time"
    again = "planned anew after every epoch" if fit > 1 else "with no epoch's end on the way to plan anew at"
    return max(1, fit), (
        f"{reason}; {again}: an epoch takes {in_words(pass_seconds)}, so the end may be off by half of that"
    )


def in_words(seconds: float) -> str:
    """Format a time: hours, minutes or seconds."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return counted(round(seconds / 60), "minute") if seconds >= 90 else f"{seconds:.0f} s"


def power_of_two(count: int) -> int:
    """Return the largest power of two that is not above a positive count."""
    return 1 << count.bit_length() - 1
