"""A run before its first step: its folder, images and settings; and what it goes on from."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from swav import checkpoint, dist, jsonl, output, probe
from swav.config import (
    AUTO,
    HARMLESS,
    RESNETS,
    Recipe,
    checked_yaml,
    settings_diff,
    settings_hash,
    validated,
    verified_yaml,
)
from swav.data import roster
from swav.data.images import Images, labelled_halves, open_images
from swav.data.sample import is_grey, short_side
from swav.data.shared import SharedImages
from swav.derive import FOLLOWING, Facts, derive
from swav.errors import ConfigError, DataError, EnvironmentError_, counted
from swav.files import CHECKPOINTS, CONFIG, not_essential, warn, warn_once, write_text_durably
from swav.monitor import too_few
from swav.network.trunk import check_backbone
from swav.runtime import available_cpus, computes_in_bf16, has_compiler, versions
from swav.strict_yaml import read_yaml
from swav.tensors import require_same_form


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
    kept: list[str] = dataclasses.field(default_factory=list)  # settings left at `auto` that an earlier sitting chose
    speed: float | None = None  # images per second, where it had to be measured

    @property
    def steps_per_epoch(self) -> int:
        return len(self.images) // self.recipe.batch

    @property
    def total_steps(self) -> int:
        return self.steps_per_epoch * self.recipe.epochs


def prepare(wanted: Recipe, out: Path, device: torch.device, dry_run: bool) -> Run:
    """Opens the images and settles every setting: as the run in `out` has it, if there is one, or else anew."""
    if not wanted.left_at_auto("backbone"):
        check_backbone(wanted.backbone, () if wanted.left_at_auto("crops") else wanted.view_sizes, wanted.in_channels)
    before = _settings_of(out)
    kept: list[str] = []
    if before is not None:
        wanted, kept = _as_before(before, wanted, out)
    cache, path = None if dry_run else out, wanted.data
    assert path is not None
    images = dist.on_first(lambda: _open(path, cache, None if before is None else out, wanted))
    if not wanted.left_at_auto("batch") and len(images) < wanted.batch:
        raise DataError(
            f"{wanted.data}: expected at least one batch of {wanted.batch} images, found {len(images)}; use batch={_power_of_two(len(images))} or more images"
        )
    speeds: list[float] = []
    recipe, reasons = derive(wanted, _facts(images, device, speeds))
    check_backbone(recipe.backbone, (*recipe.view_sizes, recipe.resolution), recipe.in_channels)
    _check_bad(images, recipe)
    if recipe.compile and not has_compiler():
        raise EnvironmentError_(
            "compile=true: expected a C compiler (cc, gcc or clang), found none; install one, as `apt install gcc`"
        )
    labelled, unlabelled = None, "not asked for"
    if recipe.knn_epochs and dist.rank() == 0:
        try:
            labelled = labelled_halves(path, cache=cache)
        except SharedImages:  # a score that flatters is worse than none
            raise
        except DataError as error:
            unlabelled = str(error)  # usual where there are no labels; said, as it also tells of halves that differ
    return Run(out, recipe, reasons, images, labelled, unlabelled, device, kept, speeds[0] if speeds else None)


def shared_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings that all processes must have in common: all but `workers`, which follow from a machine's cores."""
    return recipe.model_dump(mode="json", exclude={"workers"})


def _open(path: str, cache: Path | None, resumed: Path | None, wanted: Recipe) -> Images:
    """What a run trains on: the images under a path, or of a run in the folder `resumed` those that it began with."""
    now = open_images(path, half="train", cache=cache)
    return now if resumed is None else roster.as_begun(resumed / roster.FILE, now, wanted.max_bad)


def _facts(images: Images, device: torch.device, speeds: list[float]) -> Facts:
    """What settings are derived from; what takes time is looked at only where a setting depends on it. A speed that was
    measured is noted in `speeds`."""

    def fits(recipe: Recipe, most: int) -> tuple[int, str]:
        if device.type == "cuda":
            say("trying how many images fit into the GPU's memory")
        return probe.fits(recipe, device, most)

    def pace(recipe: Recipe) -> float:
        say(f"measuring the speed of this machine, in about {probe.SECONDS:g} s of training")
        speeds.append(probe.pace(images, recipe, device))
        return speeds[0]

    return Facts(
        num_images=len(images),
        side=short_side(images),
        world_size=dist.world_size(),
        device=device.type,
        cpus=available_cpus(),
        has_bf16=computes_in_bf16(device),
        is_grey=lambda: dist.on_first(lambda: is_grey(images)),
        fits=fits,
        pace=pace,
    )


def _settings_of(out: Path) -> Recipe | None:
    """The settings of the run in a folder, if there is one that has saved something.

    Where config.yaml is missing or damaged, they are those that its newest whole checkpoint holds.

    Raises:
        CheckpointError: no checkpoint verifies either.
    """
    if not checkpoint.are_in(out / CHECKPOINTS):
        return None
    try:
        return _read_settings(out / CONFIG)
    except (OSError, ValueError) as error:  # ConfigError is a ValueError
        newest = checkpoint.newest(out / CHECKPOINTS, warn=lambda _: None)  # `resume` says what it passes over
        if newest is None:
            return None
        if dist.rank() == 0:
            found = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be used ({error})"
            warn_once(f"{out}/config.yaml {found}; the settings are taken from {newest.name}/state.json")
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        return validated(Recipe, state["recipe"], f"{newest.name}/state.json")


def _read_settings(config: Path) -> Recipe:
    """Settings as a run wrote them.

    Raises:
        OSError, ValueError: there are none, or they are not as they were written.
        ConfigError: they are no settings.
    """
    text = verified_yaml(config.read_text(encoding="utf-8"))
    return validated(Recipe, read_yaml(text, config.name), config.name)


def _as_before(before: Recipe, wanted: Recipe, out: Path) -> tuple[Recipe, list[str]]:
    """The settings of a run that goes on, and the keys that were left at `auto` and keep what was chosen then.

    So another machine, GPU or number of cores doesn't change a run by itself; device and workers are this sitting's.

    Raises:
        ConfigError: a setting that shapes the weights is given, and differs.
    """
    given = {key: value for key, value in wanted.model_dump().items() if not wanted.left_at_auto(key)}
    _refuse_changes(out, before, before.model_copy(update={key: getattr(wanted, key) for key in given}))
    of_this_sitting = {key: given[key] for key in HARMLESS if key in given} | {
        key: given.get(key, AUTO) for key in ("device", "workers")
    }
    kept = [key for key in Recipe.model_fields if key not in given and key not in (*of_this_sitting, *FOLLOWING)]
    return validated(Recipe, before.model_dump() | of_this_sitting | {"hours": None}, "settings"), kept


def _refuse_changes(out: Path, before: Recipe, after: Recipe) -> None:
    if changed := settings_diff(before, after):
        rows = "\n".join(f"  {key}: {old} -> {new}" for key, (old, new) in changed.items())
        raise ConfigError(f"{out}: holds a run with other settings; use another --out, or the settings it has:\n{rows}")


def _power_of_two(count: int) -> int:
    return 1 << max(1, count).bit_length() - 1


def _check_bad(images: Images, recipe: Recipe) -> None:
    allowed, bad = roster.allowed_bad(images, recipe.max_bad), [*images.gone, *images.bad]
    if len(bad) > allowed:
        name, reason = bad[0]
        raise DataError(
            f"{images.root}: expected at most {allowed} unreadable images (max_bad={recipe.max_bad}), found {len(bad)}, "
            f"first {name} ({reason}); "
            + ("put them back or raise max_bad" if images.gone else "remove them or raise max_bad")
        )


def describe(run: Run) -> str:
    """Plain lines: what is trained on, how long, and the reason for every derived setting."""
    recipe = run.recipe
    lines = [
        f"images     {len(run.images)} from {run.images.note or run.images.root}"
        + (f"; {len(run.images.bad)} unreadable left out" if run.images.bad else ""),
        f"steps      {run.total_steps} = {counted(recipe.epochs, 'epoch')} x {run.steps_per_epoch}, batch {recipe.batch} over {counted(dist.world_size(), 'process')}",
        f"views      {' + '.join(f'{crop.count}x{crop.size}' for crop in recipe.crops)}, codes from {list(recipe.code_views)}",
        f"network    {_network_in_words(recipe)}, {_prototypes_in_words(recipe)}",
        f"forward    {_forward_in_words(recipe, dist.world_size())}",
        f"optimiser  {recipe.optimizer}, learning rate {recipe.lr:g} to {recipe.final_lr:g}, {counted(recipe.warmup_epochs, 'epoch')} of warm-up",
        f"labels     {'kNN every ' + counted(recipe.knn_epochs, 'epoch') if run.labelled else f'none used ({run.unlabelled})'}",
    ]
    values = recipe.model_dump(mode="json")
    lines += [f"auto       {key} = {_shown(values[key])}: {reason}" for key, reason in run.reasons.items()]
    lines += [f"auto       {kept_in_words(run)}"] if run.kept else []
    if recipe.sinkhorn == "local":
        lines.append(
            f"warning    sinkhorn=local: codes are balanced over each process ({dist.world_size()}) alone, as the "
            "benchmark page's code base did by mistake; this is not SwAV"
        )
    if (why := too_few(len(run.images), max(recipe.prototype_heads))) is not None:
        lines.append(f"warning    {why}")
    if (
        recipe.queue_length
        and recipe.queue_length // recipe.batch >= (recipe.epochs - recipe.queue_start_epoch) * run.steps_per_epoch
    ):
        lines.append(
            f"warning    the queue of {recipe.queue_length} will not fill in this run; use a shorter one or start it earlier"
        )
    return "\n".join(lines)


def state(run: Run, best: tuple[int, float] | None) -> dict[str, Any]:
    """What a checkpoint says beside its tensors."""
    return {
        "recipe": run.recipe.model_dump(mode="json"),
        "settings_hash": settings_hash(run.recipe),
        "data_fingerprint": run.images.fingerprint,
        "num_images": len(run.images),
        "pixels": run.images.content_fingerprint if run.images.packed else None,  # their names and sizes say nothing
        "world_size": dist.world_size(),
        "versions": versions(),
        "best_step": best[0] if best else None,
        "best_knn": best[1] if best else None,
    }


def going_on(run: Run, saved: checkpoint.Checkpoint) -> str:
    """The line of a run that goes on."""
    line = f"{run.out}: goes on from step {saved.step} of {run.total_steps}"
    before, now = len(saved.locals), dist.world_size()
    if before == now:
        return line
    return f"{line}; on {counted(now, 'process')} instead of {before}: same batches, the queue is dealt out anew, bits will differ"


def _forward_in_words(recipe: Recipe, processes: int) -> str:
    """Precision, micro-batches, and whose samples BatchNorm's statistics are of."""
    share, at_a_time = recipe.batch // processes, recipe.images_per_forward(processes)
    words = f"{recipe.precision}{', compiled' if recipe.compile else ''}, {counted(at_a_time, 'image')} at a time"
    if at_a_time < share:
        words += f" of {share} (codes are of the whole batch, BatchNorm's statistics of the {at_a_time})"
    if processes > 1:
        shared = recipe.processes_per_statistic(processes)
        groups = {1: "each process alone", processes: "all processes"}.get(shared, f"groups of {shared} processes")
        words += f", BatchNorm over {groups}"
    return words


def memory_advice(at_a_time: int) -> str:
    if at_a_time == 1:
        return (
            "one image went through the network at a time: begin again (another --out) with a smaller network or crops"
        )
    fewer = next(count for count in range(at_a_time // 2, 0, -1) if at_a_time % count == 0)
    return (
        f"{at_a_time} images went through the network at a time: begin again (another --out) with the same batch and "
        f"micro_batch={fewer}, or with a smaller network or crops"
    )


def _network_in_words(recipe: Recipe) -> str:
    words = recipe.backbone
    if recipe.backbone in RESNETS:
        words += f", width {recipe.width:g}, stem {recipe.stem}"
    return words + (", on the luma of the images" if recipe.in_channels == 1 else "")


def _prototypes_in_words(recipe: Recipe) -> str:
    words = f"{' + '.join(map(str, recipe.prototype_heads))} prototypes"
    if recipe.teacher_momentum:
        words += f", codes from a teacher of momentum {recipe.teacher_momentum:g}"
    if recipe.hard_codes:
        words += ", hard codes"
    return words + (f", KoLeo {recipe.koleo:g}" if recipe.koleo else "")


def kept_in_words(run: Run) -> str:
    return f"{', '.join(run.kept)}: as the run in {run.out} has them"


def _shown(value: Any) -> str:
    """A value as it would be given on the command line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_shown(one)}' for key, one in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def say(text: str) -> None:
    if dist.rank() == 0:
        output.say(text)


def resume(run: Run) -> checkpoint.Checkpoint | None:
    """Returns the newest verified checkpoint of the run's folder, or None in a fresh one, which is made ready.

    Raises:
        ConfigError: settings that shape the weights differ from those of the run in `out`, or of its checkpoint, or its
            images do.
        CheckpointError: there are checkpoints, and none verifies.
        EnvironmentError_: a checkpoint cannot be read just now.
    """
    config = run.out / CONFIG
    path = dist.on_first(lambda: checkpoint.newest(run.out / CHECKPOINTS))
    if path is None:
        if dist.rank() == 0:
            _begin(run, config)
        return None
    saved = checkpoint.read(path)
    checkpoint.require_of_pretraining(saved)
    pixels = saved.state.get("pixels") if run.images.packed else None
    others = pixels is not None and pixels != run.images.content_fingerprint
    # First: other images give other derived settings.
    if others or saved.state["data_fingerprint"] != run.images.fingerprint:
        raise ConfigError(
            f"{run.recipe.data}: expected the {saved.state['num_images']} images that the run in {run.out} began with, "
            f"found {len(run.images)} or others; put them back, or use another --out"
        )
    before = _settings_of(run.out)
    assert before is not None
    _refuse_changes(run.out, before, run.recipe)
    _check_origin(run, saved)
    dist.on_first(lambda: _repair(run, before, saved.step))
    if run.kept:
        say(f"auto: {kept_in_words(run)}")
    if saved.state["best_step"] is not None and run.labelled is None and dist.rank() == 0:
        warn(f"{run.out}: was scored by kNN before, and is not from here on: {run.unlabelled}")
    if (device := saved.state["recipe"]["device"]) != run.recipe.device:
        say(
            f"device: {run.recipe.device}, before {device}; the weights will differ from those of one device by rounding"
        )
    return saved


def _check_origin(run: Run, saved: checkpoint.Checkpoint) -> None:
    """Refuse a checkpoint that was made with other settings and put here; say which other versions made it.

    Raises:
        ConfigError: settings that shape the weights differ.
    """
    if saved.state["settings_hash"] != settings_hash(run.recipe):  # or it is of a version that had fewer settings
        its = validated(Recipe, saved.state["recipe"], f"{saved.path}/state.json")
        if changed := settings_diff(run.recipe, its):
            rows = "\n".join(f"  {key}: {ours} -> {theirs}" for key, (ours, theirs) in changed.items())
            raise ConfigError(
                f"{saved.path}: expected a checkpoint with the settings of {CONFIG}, found one of another run; move it away, "
                f"or use another --out:\n{rows}"
            )
    before, now = saved.state.get("versions", {}), versions()
    differ = [
        f"{name} {before[name]} instead of {now[name]}"
        for name in ("swav", "torch")
        if name in before and before[name].split(".")[:2] != now[name].split(".")[:2]
    ]
    if differ and dist.rank() == 0:
        warn(
            f"{saved.path}: written by {' and '.join(differ)}; the weights may differ by rounding from those of one version"
        )


def _repair(run: Run, settings: Recipe, step: int) -> None:
    """Makes logs, settings and the list of images of a run that is resumed good again, before any process appends to them."""
    out = run.out
    with not_essential(f"{out}/{roster.FILE}"):
        roster.keep_roster(out / roster.FILE, run.images)
    forget_after(out / "metrics.jsonl", step)
    jsonl.repair(out / "bad_files.jsonl", jsonl.is_bad_file)
    try:
        _read_settings(out / CONFIG)
    except (OSError, ValueError):
        with not_essential(f"{out}/config.yaml"):
            write_text_durably(out / CONFIG, checked_yaml(settings))


def _begin(run: Run, config: Path) -> None:
    """Makes the folder ready for a run from its first step. What an earlier one without a checkpoint logged is set aside."""
    metrics = run.out / "metrics.jsonl"
    if not (run.out / CHECKPOINTS).is_dir():  # it is no run's folder yet
        names = (CONFIG, "metrics.jsonl", "bad_files.jsonl", roster.FILE)
        if others := [name for name in names if (run.out / name).exists()]:
            raise ConfigError(
                f"{run.out}: expected a new folder or a run's, found {others[0]} without {CHECKPOINTS}/, perhaps a file of yours; "
                "use another --out, or move it away"
            )
    (run.out / CHECKPOINTS).mkdir(exist_ok=True)
    if metrics.exists() and metrics.stat().st_size:
        metrics.replace(run.out / "metrics.before.jsonl")
        say(f"{run.out}: holds a log but no checkpoint; begins anew, the old log is metrics.before.jsonl")
    write_text_durably(config, checked_yaml(run.recipe))
    roster.write_roster(run.out / roster.FILE, run.images)
    write_text_durably(metrics, "")
    (run.out / "bad_files.jsonl").unlink(missing_ok=True)


def own_share(saved: checkpoint.Checkpoint) -> dict[str, Tensor]:
    """What belongs to this process alone in a checkpoint, whatever the number of processes that wrote it.

    Of another number: its share of the queue that all of them held, and the monitor's window of the process of its rank,
    if there was one. (What is logged is the first process's: its window is then of the images that it saw before.)
    Random states are nobody's, and left out.

    Raises:
        CheckpointError: the processes' queues do not fit together.
    """
    processes, rank = dist.world_size(), dist.rank()
    if len(saved.locals) == processes:
        return saved.locals[rank]
    its = saved.locals[rank] if rank < len(saved.locals) else {}
    window = {name: value for name, value in its.items() if name.startswith("monitor/")}
    if not saved.locals or "queue/embeddings" not in saved.locals[0]:
        return window
    for other, local in enumerate(saved.locals[1:], start=1):
        one, two = (
            {name: value for name, value in part.items() if name.startswith("queue/")}
            for part in (saved.locals[0], local)
        )
        require_same_form(f"{saved.path}/rank_{other}.safetensors", two, one)
    shards = [local["queue/embeddings"] for local in saved.locals]
    count = sum(int(local["queue/count"]) for local in saved.locals) // processes
    return window | {
        "queue/embeddings": dealt(shards, saved.state["recipe"]["batch"], processes)[rank],
        "queue/count": torch.tensor(count),
    }


def dealt(shards: Sequence[Float[Tensor, "A _ D"]], batch: int, processes: int) -> list[Float[Tensor, "A _ D"]]:
    """Queues of the processes that wrote a checkpoint, in order of rank, as so many processes would hold them.

    Each holds its rows of the last batches, newest batch first. So batch by batch the rows of all ranks are put together
    in their order and cut anew: for a queue of whole batches, exactly what other processes would have pushed.
    """
    share = batch // len(shards)
    by_age = zip(*(shard.split(share, dim=1) for shard in shards), strict=True)  # type: ignore[no-untyped-call]
    cut = [torch.cat(rows, dim=1).chunk(processes, dim=1) for rows in by_age]
    return [torch.cat([rows[rank] for rows in cut], dim=1) for rank in range(processes)]


def forget_after(metrics: Path, step: int) -> None:
    """Drops the lines of steps that will be made again, and what is no line of metrics. Writes only if there are some."""
    jsonl.repair(metrics, jsonl.is_metrics, lambda line: bool(line["step"] <= step))
