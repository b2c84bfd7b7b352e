"""A run before its first step: its folder, images and settings; and what it goes on from."""

import dataclasses
import json
import math
import sys
from pathlib import Path

import torch

from swav import checkpoint, dist
from swav.config import Recipe, derive, settings_diff, to_yaml, validated
from swav.data.images import Images, labelled_halves, open_images
from swav.errors import CheckpointError, ConfigError, DataError
from swav.runtime import available_cpus, computes_in_bf16, write_text_durably
from swav.strict_yaml import read_yaml


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

    @property
    def steps_per_epoch(self) -> int:
        return len(self.images) // self.recipe.batch

    @property
    def total_steps(self) -> int:
        assert isinstance(self.recipe.epochs, int)
        return self.steps_per_epoch * self.recipe.epochs


def prepare(wanted: Recipe, out: Path, device: torch.device, dry_run: bool) -> Run:
    """Opens the images and settles every setting."""
    assert wanted.data is not None
    cache = None if dry_run else out
    path = wanted.data
    images = dist.on_first(lambda: open_images(path, half="train", cache=cache))
    if len(images) < wanted.batch:
        raise DataError(
            f"{wanted.data}: expected at least one batch of {wanted.batch} images, found {len(images)}; use batch={_power_of_two(len(images))} or more images"
        )
    recipe, reasons = derive(
        wanted, len(images), dist.world_size(), device.type, available_cpus(), computes_in_bf16(device)
    )
    _check_bad(images, recipe)
    labelled, unlabelled = None, "not asked for"
    if recipe.knn_epochs and dist.rank() == 0:
        try:
            labelled = labelled_halves(wanted.data, cache=cache)
        except DataError as error:
            unlabelled = str(error)  # usual where there are no labels; said, as it also tells of halves that differ
    return Run(out, recipe, reasons, images, labelled, unlabelled, device)


def _power_of_two(count: int) -> int:
    return 1 << max(1, count).bit_length() - 1


def _check_bad(images: Images, recipe: Recipe) -> None:
    allowed = max(10, math.floor(recipe.max_bad * (len(images) + len(images.bad))))
    if len(images.bad) > allowed:
        name, reason = images.bad[0]
        raise DataError(
            f"{images.root}: expected at most {allowed} unreadable images (max_bad={recipe.max_bad}), found {len(images.bad)}, "
            f"first {name} ({reason}); remove them or raise max_bad"
        )


def describe(run: Run) -> str:
    """Plain lines: what is trained on, how long, and the reason for every derived setting."""
    recipe = run.recipe
    lines = [
        f"images     {len(run.images)} from {run.images.note or run.images.root}"
        + (f"; {len(run.images.bad)} unreadable left out" if run.images.bad else ""),
        f"steps      {run.total_steps} = {recipe.epochs} epochs x {run.steps_per_epoch}, batch {recipe.batch} over {dist.world_size()} process(es)",
        f"views      {' + '.join(f'{crop.count}x{crop.size}' for crop in recipe.crops)}, codes from {list(recipe.code_views)}",
        f"network    {recipe.backbone}, width {recipe.width:g}, stem {recipe.stem}, {recipe.prototypes} prototypes",
        f"optimiser  {recipe.optimizer}, learning rate {recipe.lr:g} to {recipe.final_lr:g}, {recipe.warmup_epochs:g} epochs of warm-up",
        f"labels     {'kNN every ' + format(recipe.knn_epochs, 'g') + ' epochs' if run.labelled else f'none used ({run.unlabelled})'}",
    ]
    lines += [f"auto       {key} = {getattr(recipe, key)}: {reason}" for key, reason in run.reasons.items()]
    assert (
        isinstance(recipe.queue_length, int)
        and isinstance(recipe.queue_start_epoch, int)
        and isinstance(recipe.epochs, int)
    )
    if (
        recipe.queue_length
        and recipe.queue_length // recipe.batch >= (recipe.epochs - recipe.queue_start_epoch) * run.steps_per_epoch
    ):
        lines.append(
            f"warning    the queue of {recipe.queue_length} will not fill in this run; use a shorter one or start it earlier"
        )
    return "\n".join(lines)


def say(text: str) -> None:
    if dist.rank() == 0:
        print(text, file=sys.stderr, flush=True)


def resume(run: Run) -> checkpoint.Checkpoint | None:
    """Returns the newest verified checkpoint of the run's folder, or None in a fresh one, which is made ready.

    Raises:
        ConfigError: settings that shape the weights differ from those of the run in `out`, or its images do.
        CheckpointError: there are checkpoints, and none verifies.
    """
    config = run.out / "config.yaml"
    path = dist.on_first(lambda: checkpoint.newest(run.out / "checkpoints"))
    if path is None:
        if dist.rank() == 0:
            _begin(run, config)
        return None
    if not config.exists():
        raise CheckpointError(f"{run.out}: holds checkpoints but no config.yaml; put it back, or use another --out")
    saved = checkpoint.read(path, dist.rank())
    if saved.state["data_fingerprint"] != run.images.fingerprint:  # first: other images give other derived settings
        raise ConfigError(
            f"{run.recipe.data}: expected the {saved.state['num_images']} images that the run in {run.out} began with, "
            f"found {len(run.images)} or others; put them back, or use another --out"
        )
    before = validated(Recipe, read_yaml(config.read_text(encoding="utf-8"), str(config)), str(config))
    changed = settings_diff(before, run.recipe)
    if changed:
        rows = "\n".join(f"  {key}: {old} -> {new}" for key, (old, new) in changed.items())
        raise ConfigError(
            f"{run.out}: holds a run with other settings; use another --out, or the settings it has:\n{rows}"
        )
    if dist.rank() == 0:
        forget_after(run.out / "metrics.jsonl", saved.step)
    return saved


def _begin(run: Run, config: Path) -> None:
    """Makes the folder ready for a run from its first step. What an earlier one without a checkpoint logged is set aside."""
    run.out.mkdir(parents=True, exist_ok=True)
    metrics = run.out / "metrics.jsonl"
    if metrics.exists() and metrics.stat().st_size:
        metrics.replace(run.out / "metrics.before.jsonl")
        say(f"{run.out}: holds a log but no checkpoint; begins anew, the old log is metrics.before.jsonl")
    write_text_durably(config, to_yaml(run.recipe))
    write_text_durably(metrics, "")
    (run.out / "bad_files.jsonl").unlink(missing_ok=True)


def forget_after(metrics: Path, step: int) -> None:
    """Drops the lines of steps that will be made again (and a half-written last one). Writes only if there are some."""
    before = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
    kept = []
    for line in before.splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    if (after := "".join(kept)) != before:
        write_text_durably(metrics, after)
