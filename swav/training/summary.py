"""The lines that a run prints before its first step."""

from typing import Any

from swav import checkpoint, dist
from swav.config import RESNETS, Recipe
from swav.errors import counted
from swav.files import PLAN
from swav.training.auto import DEFAULT, in_words
from swav.training.setup import RunSetup
from swav.training.verdict import too_few


def describe(run: RunSetup) -> str:
    """Plain lines: what is trained on, how long, and the reason for every derived setting."""
    recipe = run.recipe
    lines = [
        f"images     {len(run.images)} from {run.images.note or run.images.root}"
        + (f"; {len(run.images.bad)} unreadable left out" if run.images.bad else ""),
        f"steps      {run.total_steps} = {counted(recipe.epochs, 'epoch')} x {run.steps_per_epoch}, batch {recipe.batch} over {counted(dist.world_size(), 'process')}",
        *_budget_lines(run),
        f"views      {' + '.join(f'{crop.count}x{crop.size}' for crop in recipe.crops)}, codes from {list(recipe.code_views)}",
        f"network    {_network_in_words(recipe)}, {_prototypes_in_words(recipe)}",
        f"forward    {_forward_in_words(recipe, dist.world_size())}",
        f"optimiser  {recipe.optimizer}, learning rate {recipe.lr:g} to {recipe.final_lr:g}, {counted(recipe.warmup_epochs, 'epoch')} of warm-up",
        f"labels     {'kNN every ' + counted(recipe.knn_every_epochs, 'epoch') if run.labelled else f'none used ({run.unlabelled})'}",
    ]
    values = recipe.model_dump(mode="json")
    lines += [
        f"auto       {key} = {_shown(values[key])}: {reason}"
        for key, reason in run.reasons.items()
        if reason != DEFAULT
    ]
    lines += [f"auto       {kept_in_words(run)}"] if run.kept else []
    if recipe.sinkhorn == "local":
        lines.append(
            f"warning    sinkhorn=local: codes are balanced over each process ({dist.world_size()}) alone, as the "
            "benchmark page's code base did by mistake; this is not SwAV"
        )
    if (why := too_few(len(run.images), max(recipe.prototype_sets))) is not None:
        lines.append(f"warning    {why}")
    if (
        recipe.queue_length
        and recipe.queue_length // recipe.batch >= (recipe.epochs - recipe.queue_start_epoch) * run.steps_per_epoch
    ):
        lines.append(
            f"warning    the queue of {recipe.queue_length} will not fill in this run; use a shorter one or start it earlier"
        )
    return "\n".join(lines)


def resume_message(run: RunSetup, saved: checkpoint.Checkpoint) -> str:
    """Return the message of a run that resumes."""
    line = f"{run.out}: resumes from step {saved.step} of {run.total_steps}"
    if run.budget is not None:
        line += f", with {in_words(run.budget.spent())} of {counted(run.budget.hours, 'hour')} spent"
    before, now = len(saved.locals), dist.world_size()
    if before == now:
        return line
    return f"{line}; on {counted(now, 'process')} instead of {before}: same batches; the queue is re-sharded, so results are not bitwise identical"


def _budget_lines(run: RunSetup) -> list[str]:
    if run.budget is None:
        return []
    return [
        f"time       {counted(run.budget.hours, 'hour')}, from the start of this command to its report: the number of epochs is "
        f"planned anew at the end of each ({PLAN})"
    ]


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
    words = f"{' + '.join(map(str, recipe.prototype_sets))} prototypes"
    if recipe.teacher_momentum:
        words += f", codes from a teacher of momentum {recipe.teacher_momentum:g}"
        if recipe.final_teacher_momentum is not None:
            words += f" to {recipe.final_teacher_momentum:g}"
    if recipe.hard_codes:
        words += ", hard codes"
    return words + (f", KoLeo {recipe.koleo:g}" if recipe.koleo else "")


def kept_in_words(run: RunSetup) -> str:
    return f"{', '.join(run.kept)}: as the run in {run.out} has them"


def _shown(value: Any) -> str:
    """A value as it would be given on the command line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_shown(one)}' for key, one in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)
