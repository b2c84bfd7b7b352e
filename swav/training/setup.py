"""Settings, images and folder of a run before its first step."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from swav import checkpoint, dist
from swav.config import AUTO, HARMLESS, Recipe, settings_diff, settings_hash
from swav.data import manifest
from swav.data.images import Images
from swav.data.overlap import SharedImages
from swav.data.sample import faults, is_grey, short_side
from swav.data.sources.layouts import find_layout
from swav.data.sources.open import labelled_splits, open_images
from swav.data.sources.pixels import decoding_of
from swav.errors import CheckpointError, ConfigError, DataError, MachineError, counted, printable
from swav.files import CHECKPOINTS, CONFIG, warn_once
from swav.network.backbone import check_backbone
from swav.recipe_files import stored, validated, verified_yaml
from swav.strict_yaml import read_yaml
from swav.system import available_cpus, computes_in_bf16, has_compiler
from swav.training import budget, estimate
from swav.training.auto import CHECKED_VIEWS, DEPENDENT, checked_images, derive, power_of_two
from swav.training.budget import Budget, evaluation_share, first_plan, read_plans
from swav.training.choices import MachineAndData, StartWeights
from swav.training.preflight import require_balance
from swav.training.verdict import RANDOM, HealthFacts


@dataclasses.dataclass
class RunSetup:
    """What a run knows before its first step.

    Attributes:
        recipe: every setting; of a run with a time budget `epochs` are those of its first plan, and `hours` is None.
    """

    out: Path
    recipe: Recipe
    reasons: dict[str, str]
    images: Images
    labelled: tuple[Images, Images] | None
    unlabelled: str  # why there is nothing to score by
    device: torch.device
    kept: list[str] = dataclasses.field(default_factory=list)  # settings left at `auto` that an earlier command chose
    speed: float | None = None  # images per second, where it had to be measured
    budget: Budget | None = None  # of a run with `hours`
    ended_at: int | None = None  # the last step, of a run that ends before the plan (stop_when_worse)
    warnings: list[str] = dataclasses.field(
        default_factory=list
    )  # about the images; what they show, of a fresh run only
    flat: str = ""  # what is said of the images where most of them are nearly one colour

    @property
    def steps_per_epoch(self) -> int:
        return len(self.images) // self.recipe.batch

    @property
    def health_facts(self) -> HealthFacts:
        """What the verdict judges the run by."""
        recipe, unsettled = self.recipe, (0, 0)
        if recipe.queue_length:  # used once full; within an epoch the loss has found its new level
            used = recipe.queue_start_epoch * self.steps_per_epoch + -(-recipe.queue_length // recipe.batch)
            unsettled = used, used + self.steps_per_epoch
        start = RANDOM if recipe.init is None else recipe.init
        most = max(recipe.prototype_sets)
        return HealthFacts(recipe.log_prototypes, len(self.images), most, start, unsettled, self.flat)

    @property
    def total_steps(self) -> int:
        """As planned now."""
        if self.ended_at is not None:
            return self.ended_at
        return self.steps_per_epoch * self.recipe.epochs if self.budget is None else self.budget.total_steps

    @property
    def changes(self) -> Sequence[tuple[int, int]]:
        """Of the run's length, see optim.learning_rate."""
        return () if self.budget is None else self.budget.changes

    @property
    def settings(self) -> Recipe:
        """Settings as they are kept: of a run with a time budget that budget, whatever the present plan."""
        return self.recipe if self.budget is None else _with_budget(self.recipe, self.budget.hours)


def _with_budget(recipe: Recipe, hours: float) -> Recipe:
    return recipe.model_copy(update={"hours": hours, "epochs": AUTO})


def prepare(
    wanted: Recipe,
    out: Path,
    device: torch.device,
    dry_run: bool,
    began: float | None = None,
    start: StartWeights | None = None,
) -> RunSetup:
    """Open the images and settle every setting: as the run in `out` has it, if there is one, or else anew.

    Args:
        began: when the command began, by budget.now; None: now.
        start: of the weights that a fresh run adapts.
    """
    began = budget.now() if began is None else began
    if not wanted.left_at_auto("backbone"):
        channels = 3 if wanted.left_at_auto("in_channels") else wanted.in_channels
        check_backbone(wanted.backbone, () if wanted.left_at_auto("crops") else wanted.view_sizes, channels)
    before = settings_of(out)
    kept: list[str] = []
    if before is not None:
        wanted, kept = _as_before(before, wanted, out)
    cache, path = None if dry_run else out, wanted.data
    assert path is not None
    images, as_before = dist.on_rank0(lambda: _open(path, cache, None if before is None else out, wanted))
    if not wanted.left_at_auto("batch") and len(images) < wanted.batch:
        raise DataError(
            f"{wanted.data}: expected at least one batch of {wanted.batch} images, found {len(images)}; use batch={power_of_two(max(1, len(images)))} or more images"
        )
    speeds: list[float] = []
    facts = dataclasses.replace(_facts(images, device, speeds, began), start=start)
    plans: list[dict[str, Any]] = []
    if wanted.hours is None:
        recipe, reasons = derive(wanted, facts)
    else:
        recipe, reasons, plans = _first_planned(wanted, before, out, images, facts)
    check_backbone(recipe.backbone, (*recipe.view_sizes, recipe.resolution), recipe.in_channels)
    if before is None:
        require_balance(recipe, dist.world_size())
    _check_bad(images, recipe)
    images = images.decoded(how := decoding_of(recipe))
    if recipe.compile and not has_compiler():
        raise MachineError(
            "compile=true: expected a C compiler (cc, gcc or clang), found none; install one, as `apt install gcc`"
        )
    estimate.check_memory(recipe, device, resumes=before is not None)
    labelled, unlabelled = None, "not asked for"
    if recipe.knn_every_epochs and dist.rank() == 0:
        try:
            train, val = labelled_splits(find_layout(path, as_before), cache=cache)
            labelled = train.decoded(how), val.decoded(how)
        except SharedImages:  # a score that flatters is worse than none
            raise
        except DataError as error:
            unlabelled = str(error)  # usual where there are no labels; said, as it may be that the splits differ
    if dist.rank() == 0 and recipe.stop_when_worse and labelled is None and not recipe.check_every_epochs:
        raise ConfigError(
            f"stop_when_worse: expected kNN or view retrieval to judge by, found check_every_epochs=0 and no labels ({unlabelled}); "
            "leave check_every_epochs out"
        )
    run = RunSetup(out, recipe, reasons, images, labelled, unlabelled, device, kept, speeds[0] if speeds else None)
    run.warnings += images.warnings
    found = dist.on_rank0(lambda: faults(images))
    run.flat = next((finding.text for finding in found if finding.is_of_most), "")
    if before is None:
        run.warnings += [finding.text for finding in found]
    if wanted.hours is not None:
        scored, views = sum(map(len, labelled)) if labelled else 0, 0
        due = [max(1, round(recipe.knn_every_epochs))] if scored else []
        if recipe.check_every_epochs:
            due.append(recipe.check_every_epochs)
            views = CHECKED_VIEWS * checked_images(recipe, len(images))
        run.budget = Budget(
            wanted.hours,
            recipe.epochs,
            run.steps_per_epoch,
            began=began,
            out=None if dry_run else out,
            run=_identity(recipe, wanted.hours, images),
            reason=reasons.get("epochs", "as the run began"),
            every=min(due, default=0),
            evaluation=evaluation_share(recipe, len(images), scored + views),
            lines=plans,
        )
    return run


def _first_planned(
    wanted: Recipe, before: Recipe | None, out: Path, images: Images, facts: MachineAndData
) -> tuple[Recipe, dict[str, str], list[dict[str, Any]]]:
    """Settle a run with a time budget by its first plan: the one that it began with, or one by the speed measured now.

    A command that was killed before its first checkpoint leaves a plan too: it is repeated if the settings and images are
    those that it was made for.

    Returns:
        The settings, the reasons, and the lines of plan.jsonl that hold for this run.

    Raises:
        CheckpointError: of a run with checkpoints, no file holds the first plan.
    """
    assert wanted.hours is not None
    lines = dist.on_rank0(lambda: read_plans(out))
    first = first_plan(lines)
    if before is not None and first is None:
        first = dist.on_rank0(lambda: _saved_plan(out))
    if first is not None:
        planned = wanted.model_copy(update={"epochs": first["epochs"]})
        recipe, reasons = derive(planned, facts)
        if before is not None or first["run"] == _identity(recipe, wanted.hours, images):
            return recipe, reasons, lines
    return *derive(wanted, facts), []


def _identity(recipe: Recipe, hours: float, images: Images) -> str:
    return f"{settings_hash(_with_budget(recipe, hours))} {hours:g} {images.fingerprint}"


def _saved_plan(out: Path) -> dict[str, Any]:
    newest = checkpoint.newest(out / CHECKPOINTS, warn=lambda _: None)  # `resume` says what it passes over
    plan = checkpoint.read_state(newest).get("plan") if newest is not None else None
    if not isinstance(plan, dict):
        raise CheckpointError(
            f"{out}: expected the plan of a run with hours=H in plan.jsonl or its newest checkpoint, found none; put "
            "plan.jsonl back, or use another --out"
        )
    first: dict[str, Any] = plan["first"]
    return first


def shared_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that all processes must have in common: all but `workers`, which follow from a machine's cores."""
    return recipe.model_dump(mode="json", exclude={"workers"})


def _open(path: str, cache: Path | None, resumed: Path | None, wanted: Recipe) -> tuple[Images, bool]:
    """What a run trains on: the images under a path, or of a run in the folder `resumed` those that it began with; and whether
    the path is read as earlier versions did, which found another layout there."""
    now = open_images(path, split="train", cache=cache)
    if resumed is None:
        return now, False
    began, as_before = resumed / manifest.FILE, False
    if missing := manifest.count_missing(began, now):
        then = open_images(find_layout(path, as_before=True), split="train", cache=cache)
        as_before = manifest.count_missing(began, then) < missing
        now = then if as_before else now
    return manifest.as_begun(began, now, wanted.max_unreadable), as_before


def _facts(images: Images, device: torch.device, speeds: list[float], began: float) -> MachineAndData:
    """What settings are derived from; what takes time is looked at only where a setting depends on it. A speed that was
    measured is noted in `speeds`."""

    def batch_fits(recipe: Recipe, most: int) -> tuple[int, str]:
        if device.type == "cuda":
            dist.say("trying how many images fit into the GPU's memory")
        return estimate.batch_fits(recipe, device, most)

    def throughput(recipe: Recipe) -> float:
        dist.say(f"measuring the speed of this machine, in about {estimate.SECONDS:g} s of training")
        speeds.append(estimate.throughput(images.decoded(decoding_of(recipe)), recipe, device))
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
        spent=lambda: dist.broadcast_object(budget.now() - began),
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
    if before.hours is None and wanted.hours is not None:  # of a version that fixed the epochs, too
        dist.say(f"hours: left out, as the run in {out} has a fixed number of epochs ({before.epochs})")
    if before.hours is None or wanted.hours is None:
        of_this_command["hours"] = before.hours
    kept = [key for key in Recipe.model_fields if key not in given and key not in (*of_this_command, *DEPENDENT)]
    return validated(Recipe, before.model_dump() | of_this_command, "settings"), kept


def refuse_changes(out: Path, before: Recipe, after: Recipe) -> None:
    """Refuse to resume a run with other settings; where a finished run is to be longer, say how training goes on from it.

    Raises:
        ConfigError: settings that shape the weights differ.
    """
    if changed := settings_diff(before, after):
        _refuse_more_epochs(out, before, changed)
        rows = "\n".join(f"  {key}: {old} -> {new}" for key, (old, new) in changed.items())
        raise ConfigError(f"{out}: holds a run with other settings; use another --out, or the settings it has:\n{rows}")


def _refuse_more_epochs(out: Path, before: Recipe, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Of a finished run, answer more epochs with the command that trains on from its weights.

    Raises:
        ConfigError: so.
    """
    had, wanted = changed.get("epochs", (0, 0))
    if set(changed) != {"epochs"} or not isinstance(had, int) or not isinstance(wanted, int) or wanted <= had:
        return
    newest = checkpoint.newest(out / CHECKPOINTS, warn=lambda _: None)  # `resume` says what it passes over
    state = {} if newest is None else checkpoint.read_state(newest)
    steps = had * (state.get("num_images", 0) // before.batch)
    if not steps or state.get("step") != steps:
        return
    command = ["swav", "pretrain", "auto", f"data={before.data}", f"init={out}", f"epochs={wanted - had}"]
    command += ["--out", f"{out}-more"]
    raise ConfigError(
        f"{out}: holds a finished run of {counted(had, 'epoch')}, found epochs={wanted}; its learning rate has come down, so train "
        f"on from its weights: {printable(shlex.join(command))}"
    )


def _check_bad(images: Images, recipe: Recipe) -> None:
    allowed, bad = manifest.allowed_bad(images, recipe.max_unreadable), [*images.gone, *images.bad]
    if len(bad) > allowed:
        name, reason = bad[0]
        raise DataError(
            f"{images.root}: expected at most {allowed} unreadable images (max_unreadable={recipe.max_unreadable}), found {len(bad)}, "
            f"first {name} ({reason}); "
            + ("put them back or raise max_unreadable" if images.gone else "remove them or raise max_unreadable")
        )
