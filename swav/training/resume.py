"""What a run resumes from: the newest checkpoint, its shares of the queue, and logs put in order."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from swav import checkpoint, dist, jsonl
from swav.config import Recipe, settings_diff, settings_hash
from swav.data import manifest
from swav.errors import ConfigError
from swav.files import BAD_FILES, CHECKPOINTS, CONFIG, METRICS, PLAN, not_essential, warn, write_text_durably
from swav.recipe_files import checked_yaml, stored
from swav.system import versions
from swav.tensors import require_same_form
from swav.training.setup import RunSetup, read_settings, refuse_changes, settings_of
from swav.training.summary import kept_in_short


def state(run: RunSetup) -> dict[str, Any]:
    """Return what a checkpoint says of its run, beside its tensors and scores."""
    return {
        "recipe": run.settings.model_dump(mode="json"),
        "settings_hash": settings_hash(run.settings),
        "data_fingerprint": run.images.fingerprint,
        "num_images": len(run.images),
        "pixels": run.images.content_fingerprint if run.images.in_memory else None,  # their names and sizes say nothing
        "world_size": dist.world_size(),
        "versions": versions(),
    } | ({} if run.budget is None else run.budget.state())


def resume(run: RunSetup) -> checkpoint.Checkpoint | None:
    """Return the newest verified checkpoint of the run's folder, or None in a fresh one, which is made ready.

    Raises:
        ConfigError: settings that shape the weights differ from those of the run in `out`, or of its checkpoint, or its
            images do.
        CheckpointError: there are checkpoints, and none verifies.
        MachineError: a checkpoint cannot be read just now.
    """
    config = run.out / CONFIG
    path = dist.on_rank0(lambda: checkpoint.newest(run.out / CHECKPOINTS))
    if path is None:
        if dist.rank() == 0:
            _begin(run, config)
        return None
    saved = checkpoint.read(path)
    checkpoint.require_of_pretraining(saved)
    pixels = saved.state.get("pixels") if run.images.in_memory else None
    others = pixels is not None and pixels != run.images.content_fingerprint
    # First: other images give other derived settings.
    if others or saved.state["data_fingerprint"] != run.images.fingerprint:
        raise ConfigError(
            f"{run.recipe.data}: expected the {saved.state['num_images']} images that the run in {run.out} began with, "
            f"found {len(run.images)} or others; put them back, or use another --out"
        )
    before = settings_of(run.out)
    assert before is not None
    refuse_changes(run.out, before, run.settings)
    _check_origin(run, saved)
    dist.on_rank0(lambda: _repair(run, before, saved.step))
    if run.budget is not None:
        run.budget.resume(saved.step, saved.state["plan"])
    if run.kept:
        dist.say(f"auto: {kept_in_short(run)}")
    if saved.state["best_knn"] is not None and run.labelled is None and dist.rank() == 0:
        warn(f"{run.out}: was scored by kNN before, and is not from here on: {run.unlabelled}")
    if (device := saved.state["recipe"]["device"]) != run.recipe.device:
        dist.say(
            f"device: {run.recipe.device}, before {device}; the weights will differ from those of one device by rounding"
        )
    return saved


def _check_origin(run: RunSetup, saved: checkpoint.Checkpoint) -> None:
    """Refuse a checkpoint that was made with other settings and put here; say which other versions made it.

    Raises:
        ConfigError: settings that shape the weights differ.
    """
    if saved.state["settings_hash"] != settings_hash(run.settings):  # or it is of a version that had fewer settings
        its = stored(saved.state["recipe"], f"{saved.path}/state.json")
        if changed := settings_diff(run.settings, its):
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


def _repair(run: RunSetup, settings: Recipe, step: int) -> None:
    """Make logs, settings and the list of images of a run that is resumed good again, before any process appends to them."""
    out = run.out
    with not_essential(f"{out}/{manifest.FILE}"):
        manifest.keep_roster(out / manifest.FILE, run.images)
    forget_after(out / METRICS, step)
    jsonl.repair(out / BAD_FILES, jsonl.is_bad_file)
    try:
        read_settings(out / CONFIG)
    except (OSError, ValueError):
        with not_essential(f"{out}/config.yaml"):
            write_text_durably(out / CONFIG, checked_yaml(settings))


def _begin(run: RunSetup, config: Path) -> None:
    """Make the folder ready for a run from its first step. What an earlier one without a checkpoint logged is set aside."""
    metrics = run.out / METRICS
    if not (run.out / CHECKPOINTS).is_dir():  # it is no run's folder yet
        names = (CONFIG, METRICS, BAD_FILES, manifest.FILE)
        if others := [name for name in names if (run.out / name).exists()]:
            raise ConfigError(
                f"{run.out}: expected a new folder or a run's, found {others[0]} without {CHECKPOINTS}/, perhaps a file of yours; "
                "use another --out, or move it away"
            )
    (run.out / CHECKPOINTS).mkdir(exist_ok=True)
    if metrics.exists() and metrics.stat().st_size:
        metrics.replace(run.out / "metrics.before.jsonl")
        dist.say(f"{run.out}: holds a log but no checkpoint; begins anew, the old log is metrics.before.jsonl")
    if run.budget is None:
        (run.out / PLAN).unlink(missing_ok=True)
    else:
        run.budget.begin()
    write_text_durably(config, checked_yaml(run.settings))
    manifest.write_roster(run.out / manifest.FILE, run.images)
    write_text_durably(metrics, "")
    (run.out / BAD_FILES).unlink(missing_ok=True)


def local_shard(saved: checkpoint.Checkpoint) -> dict[str, Tensor]:
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
        "queue/embeddings": reshard(shards, saved.state["recipe"]["batch"], processes)[rank],
        "queue/count": torch.tensor(count),
    }


def reshard(shards: Sequence[Float[Tensor, "A _ D"]], batch: int, processes: int) -> list[Float[Tensor, "A _ D"]]:
    """Queues of the processes that wrote a checkpoint, in order of rank, as so many processes would hold them.

    Each holds its rows of the last batches, newest batch first. So batch by batch the rows of all ranks are put together
    in their order and cut anew: for a queue of whole batches, exactly what other processes would have pushed.
    """
    share = batch // len(shards)
    by_age = zip(*(shard.split(share, dim=1) for shard in shards), strict=True)  # type: ignore[no-untyped-call]
    cut = [torch.cat(rows, dim=1).chunk(processes, dim=1) for rows in by_age]
    return [torch.cat([rows[rank] for rows in cut], dim=1) for rank in range(processes)]


def forget_after(metrics: Path, step: int) -> None:
    """Drop the lines of steps that will be made again, and what is no line of metrics. Writes only if there are some."""
    jsonl.repair(metrics, jsonl.is_metrics, lambda line: bool(line["step"] <= step))
