"""The lines that a run prints before its first step, and the screen of a dry run."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from swav import checkpoint, dist
from swav.config import RESNETS, Recipe
from swav.errors import counted
from swav.files import CONFIG, PLAN
from swav.training.auto import DEFAULT, in_words, too_short
from swav.training.setup import RunSetup
from swav.training.verdict import too_few

_NAMED = 5  # settings that are named one by one where a run resumes


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
    lines += [f"warning    {text}" for text in run.warnings]
    if recipe.sinkhorn == "local":
        lines.append(
            f"warning    sinkhorn=local: codes are balanced over each process ({dist.world_size()}) alone, as the "
            "benchmark page's code base did by mistake; this is not SwAV"
        )
    doubts = [too_few(len(run.images), max(recipe.prototype_sets))]
    doubts += [too_short(run.total_steps * recipe.batch)] if recipe.init is None else []
    lines += [f"warning    {why}" for why in doubts if why is not None]
    if (
        recipe.queue_length
        and recipe.queue_length // recipe.batch >= (recipe.epochs - recipe.queue_start_epoch) * run.steps_per_epoch
    ):
        lines.append(
            f"warning    the queue of {recipe.queue_length} will not fill in this run; use a shorter one or start it earlier"
        )
    return "\n".join(lines)


LABEL = 11  # columns of a line's label, as `images     `
WIDTH, HEIGHT = 100, 40  # of a screen
HEADINGS = {
    "Images": ("images", "labels"),
    "Network and views": ("network", "init", "views"),
    "Training": ("steps", "time", "forward", "optimiser"),
}
CHOSEN, WARNINGS, TAKES = "Chosen by auto", "Warnings", "What it will take"

# The choices whose reasons are shown first where there is not room for all.
SAID_FIRST = (
    *("epochs", "batch", "micro_batch", "backbone", "width", "crops", "prototypes", "optimizer", "lr", "device"),
    *("precision", "epsilon", "queue_length", "koleo", "stem", "jitter", "blur", "warmup_epochs", "workers"),
)


def screen(plan: str, forecast: str, full: bool = False) -> str:
    """Lay out a dry run on one screen, under headings; with less room than choices, the others are named without a reason.

    Args:
        plan: see describe.
        forecast: lines of the same form, on what the run will take.
        full: give every reason, however many lines that takes.
    """
    lines = [(line[:LABEL].strip(), line[LABEL:]) for line in plan.splitlines()]
    sections = {
        heading: [(label, text) for label, text in lines if label in labels] for heading, labels in HEADINGS.items()
    }
    sections[TAKES] = [(line[:LABEL].strip(), line[LABEL:]) for line in forecast.splitlines()]
    sections[WARNINGS] = [("", text) for label, text in lines if label == "warning"]
    choices = sorted((text for label, text in lines if label == "auto"), key=_importance)
    shown = next(
        laid
        for count in range(len(choices), -1, -1)
        if len(laid := _laid_out(sections, choices, len(choices) if full else count, full)) <= HEIGHT
        or full
        or not count
    )
    return "\n".join(shown)


def _importance(choice: str) -> int:
    key = choice.partition(" = ")[0]
    return SAID_FIRST.index(key) if key in SAID_FIRST else len(SAID_FIRST)


def _laid_out(
    sections: dict[str, list[tuple[str, str]]], choices: Sequence[str], explained: int, full: bool
) -> list[str]:
    lines: list[str] = []
    for heading, content in sections.items():
        if heading == TAKES and choices:
            lines += [CHOSEN, *_choices(choices[:explained], full)]
            lines += _wrapped(
                "also", ", ".join(choice.partition(": ")[0].replace(" = ", "=") for choice in choices[explained:])
            )
        if content:
            lines += [heading, *(line for label, text in content for line in _wrapped(label, text))]
    return lines if full else [*lines, "--full adds every reason, and all settings as YAML"]


def _choices(choices: Iterable[str], full: bool) -> list[str]:
    if full:
        return [line for choice in choices for line in _wrapped("", choice)]
    return [f"  {textwrap.shorten(choice, WIDTH - 2, placeholder=' ...')}" for choice in choices]


def _wrapped(label: str, text: str) -> list[str]:
    """A line of a section, indented, in as many lines as it takes; none without a text."""
    head = f"  {label:<{LABEL}}" if label else "  "
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def resume_message(run: RunSetup, saved: checkpoint.Checkpoint) -> str:
    """Return the message of a run that resumes."""
    line = f"{run.out}: resumes from step {saved.step} of {run.total_steps}"
    if run.budget is not None:
        line += f", with {in_words(run.budget.spent())} of {in_words(3600 * run.budget.hours)} spent"
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


def kept_in_short(run: RunSetup) -> str:
    """The settings of an earlier command in one line: a resume is not the place to list thirty of them."""
    if len(run.kept) <= _NAMED:
        return kept_in_words(run)
    return f"{len(run.kept)} settings as the run in {run.out} has them, in {run.out / CONFIG}"


def kept_in_words(run: RunSetup) -> str:
    return f"{', '.join(run.kept)}: as the run in {run.out} has them"


def _shown(value: Any) -> str:
    """A value as it would be given on the command line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_shown(one)}' for key, one in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)
