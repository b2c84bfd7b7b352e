"""Settings, images and folder of a run before its first step."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from swav import checkpoint, dist
from swav.config import AUTO, HARMLESS, Recipe, settings_diff
from swav.data import manifest
from swav.data.images import Images
from swav.data.overlap import SharedImages
from swav.data.sample import is_grey, short_side
from swav.data.sources.open import labelled_splits, open_images
from swav.errors import ConfigError, DataError, MachineError
from swav.files import CHECKPOINTS, CONFIG, warn_once
from swav.network.backbone import check_backbone
from swav.recipe_files import stored, validated, verified_yaml
from swav.strict_yaml import read_yaml
from swav.system import available_cpus, computes_in_bf16, has_compiler
from swav.training import estimate
from swav.training.auto import DEPENDENT, MachineAndData, derive, power_of_two


@dataclasses.dataclass
class Run:
    """What a run knows before its first step."""

    out: Path
    recipe: Recipe
    reasons: dict[str, str]
    images: Images
    labelled: tuple[Images, Images] | None
    unlabelled: str  # why there is nothing to score by
    device: torch.device
    kept: list[str] = dataclasses.field(default_factory=list)  # settings left at `auto` that an earlier command chose
    speed: float | None = None  # images per second, where it had to be measured

    @property
    def steps_per_epoch(self) -> int:
        return len(self.images) // self.recipe.batch

    @property
    def health_facts(self) -> tuple[float, int, int]:
        """What the verdict compares a run with: the loss of equal codes, the number of images, and of prototypes."""
        return self.recipe.log_prototypes, len(self.images), max(self.recipe.prototype_sets)

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.recipe.epochs


def prepare(wanted: Recipe, out: Path, device: torch.device, dry_run: bool) -> Run:
    """Open the images and settle every setting: as the run in `out` has it, if there is one, or else anew."""
    if not wanted.left_at_auto("backbone"):
        check_backbone(wanted.backbone, () if wanted.left_at_auto("crops") else wanted.view_sizes, wanted.in_channels)
    before = settings_of(out)
    kept: list[str] = []
    if before is not None:
        wanted, kept = _as_before(before, wanted, out)
    cache, path = None if dry_run else out, wanted.data
    assert path is not None
    images = dist.on_rank0(lambda: _open(path, cache, None if before is None else out, wanted))
    if not wanted.left_at_auto("batch") and len(images) < wanted.batch:
        raise DataError(
            f"{wanted.data}: expected at least one batch of {wanted.batch} images, found {len(images)}; use batch={power_of_two(max(1, len(images)))} or more images"
        )
    speeds: list[float] = []
    recipe, reasons = derive(wanted, _facts(images, device, speeds))
    check_backbone(recipe.backbone, (*recipe.view_sizes, recipe.resolution), recipe.in_channels)
    _check_bad(images, recipe)
    if recipe.compile and not has_compiler():
        raise MachineError(
            "compile=true: expected a C compiler (cc, gcc or clang), found none; install one, as `apt install gcc`"
        )
    labelled, unlabelled = None, "not asked for"
    if recipe.knn_every_epochs and dist.rank() == 0:
        try:
            labelled = labelled_splits(path, cache=cache)
        except SharedImages:  # a score that flatters is worse than none
            raise
        except DataError as error:
            unlabelled = str(error)  # usual where there are no labels; said, as it may be that the splits differ
    return Run(out, recipe, reasons, images, labelled, unlabelled, device, kept, speeds[0] if speeds else None)


def shared_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that all processes must have in common: all but `workers`, which follow from a machine's cores."""
    return recipe.model_dump(mode="json", exclude={"workers"})


def _open(path: str, cache: Path | None, resumed: Path | None, wanted: Recipe) -> Images:
    """What a run trains on: the images under a path, or of a run in the folder `resumed` those that it began with."""
    now = open_images(path, split="train", cache=cache)
    return now if resumed is None else manifest.as_begun(resumed / manifest.FILE, now, wanted.max_unreadable)


def _facts(images: Images, device: torch.device, speeds: list[float]) -> MachineAndData:
    """What settings are derived from; what takes time is looked at only where a setting depends on it. A speed that was
    measured is noted in `speeds`."""

    def batch_fits(recipe: Recipe, most: int) -> tuple[int, str]:
        if device.type == "cuda":
            dist.say("trying how many images fit into the GPU's memory")
        return estimate.batch_fits(recipe, device, most)

    def throughput(recipe: Recipe) -> float:
        dist.say(f"measuring the speed of this machine, in about {estimate.SECONDS:g} s of training")
        speeds.append(estimate.throughput(images, recipe, device))
        return speeds[0]

    return MachineAndData(
        num_images=len(images),
        side=short_side(images),
        world_size=dist.world_size(),
        device=device.type,
        cpus=available_cpus(),
        has_bf16=computes_in_bf16(device),
        is_grey=lambda: dist.on_rank0(lambda: is_grey(images)),
        batch_fits=batch_fits,
        throughput=throughput,
    )


def settings_of(out: Path) -> Recipe | None:
    """The settings of the run in a folder, if there is one that has saved something.

    Where config.yaml is missing or damaged, they are those that its newest whole checkpoint holds.

    Raises:
        CheckpointError: no checkpoint verifies either.
    """
    if not checkpoint.any_exist(out / CHECKPOINTS):
        return None
    try:
        return read_settings(out / CONFIG)
    except (OSError, ValueError) as error:  # ConfigError is a ValueError
        newest = checkpoint.newest(out / CHECKPOINTS, warn=lambda _: None)  # `resume` says what it passes over
        if newest is None:
            return None
        if dist.rank() == 0:
            found = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be used ({error})"
            warn_once(f"{out}/config.yaml {found}; the settings are taken from {newest.name}/state.json")
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        return stored(state["recipe"], f"{newest.name}/state.json")


def read_settings(config: Path) -> Recipe:
    """Settings as a run wrote them.

    Raises:
        OSError, ValueError: there are none, or they are not as they were written.
        ConfigError: they are no settings.
    """
    text = verified_yaml(config.read_text(encoding="utf-8"))
    return stored(read_yaml(text, config.name), config.name)


def _as_before(before: Recipe, wanted: Recipe, out: Path) -> tuple[Recipe, list[str]]:
    """Return the settings of a run that is resumed, and the keys that were left at `auto` and keep what was chosen then.

    So another machine, GPU or number of cores doesn't change a run by itself; device and workers are this command's.

    Raises:
        ConfigError: a setting that shapes the weights is given, and differs.
    """
    given = {key: value for key, value in wanted.model_dump().items() if not wanted.left_at_auto(key)}
    refuse_changes(out, before, before.model_copy(update={key: getattr(wanted, key) for key in given}))
    of_this_command = {key: given[key] for key in HARMLESS if key in given} | {
        key: given.get(key, AUTO) for key in ("device", "workers")
    }
    kept = [key for key in Recipe.model_fields if key not in given and key not in (*of_this_command, *DEPENDENT)]
    return validated(Recipe, before.model_dump() | of_this_command | {"hours": None}, "settings"), kept


def refuse_changes(out: Path, before: Recipe, after: Recipe) -> None:
    if changed := settings_diff(before, after):
        rows = "\n".join(f"  {key}: {old} -> {new}" for key, (old, new) in changed.items())
        raise ConfigError(f"{out}: holds a run with other settings; use another --out, or the settings it has:\n{rows}")


def _check_bad(images: Images, recipe: Recipe) -> None:
    allowed, bad = manifest.allowed_bad(images, recipe.max_unreadable), [*images.gone, *images.bad]
    if len(bad) > allowed:
        name, reason = bad[0]
        raise DataError(
            f"{images.root}: expected at most {allowed} unreadable images (max_unreadable={recipe.max_unreadable}), found {len(bad)}, "
            f"first {name} ({reason}); "
            + ("put them back or raise max_unreadable" if images.gone else "remove them or raise max_unreadable")
        )
