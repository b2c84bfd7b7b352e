"""What benchmarks would take on this machine: hours, memory and disk, for `swav bench --dry-run`."""

import datetime
import time
from collections.abc import Sequence
from typing import Any

import torch

from swav.errors import DataError
from swav.evaluation.task import ResourceEstimate, Task, subsample
from swav.features import EvaluationView, features_of, read_views
from swav.results.console import aligned
from swav.results.results import DryRunRow, NotRun

SAMPLE = 64  # images that are timed
STEP = 3  # forwards that a training step takes: there, and back for activations and for weights
DOUBT = f"extrapolated from at most {SAMPLE} images; expect a factor of 2 either way"


def dry_run_row(bench: str, task: Task[Any], estimate: ResourceEstimate) -> DryRunRow:
    """A row: what a benchmark would take, from the time of some images on this machine."""
    seconds = _seconds_per_image(task)
    return DryRunRow(
        bench=bench,
        weights=task.encoder.name,
        seed=task.settings.seed,
        protocol=task.protocol,
        images=f"{len(task.train):,} in folds" if task.in_folds else f"{len(task.train):,} + {len(task.val):,}",
        data=f"{task.train.note}: {len(task.train)}"
        + (", in folds" if task.in_folds else f"; {task.val.note}: {len(task.val)}"),
        hours=(seconds * (estimate.forwards + STEP * estimate.trained) + estimate.solving) / 3600,
        memory_gb=estimate.memory / 1e9,
        disk_gb=estimate.disk / 1e9,
    )


def _seconds_per_image(task: Task[Any]) -> float:
    """Reading and one forward of an image: one after the other where a CPU does both, else the slower of the two.

    Raises:
        DataError: none of the images can be read.
    """
    settings = task.settings
    # of large images fewer: together they are one batch of the network
    sample = subsample(task.train, max(4, min(SAMPLE, SAMPLE * 224**2 // settings.size**2)), seed=0)
    began = time.monotonic()
    views = [
        torch.from_numpy(part)
        for part, places in read_views(sample, EvaluationView("centre", settings.size), SAMPLE, 0)
        if places
    ]
    reading = (time.monotonic() - began) / len(sample)
    if not views:
        raise DataError(f"{sample.root}: expected readable images, found none among {len(sample)}; check the files")
    task.encoder.to(task.device)
    try:
        # on a GPU the first forward loads its kernels, which can take longer than all 64 images
        features_of(task.encoder, views[0][:1], task.device, settings.precision).cpu()
        began = time.monotonic()
        for part in views:
            features_of(task.encoder, part, task.device, settings.precision).cpu()
    finally:
        task.encoder.cpu()
    forward = (time.monotonic() - began) / len(sample)
    return reading + forward if task.device.type == "cpu" else max(reading / max(1, task.workers), forward)


def format_rows(rows: Sequence[DryRunRow], absent: Sequence[NotRun] = ()) -> str:
    """Format a dry run as a table: what would be computed and what it takes, and what would not, with a note that says why."""
    several = len({row.weights for row in rows} | {row.weights for row in absent if row.weights}) > 1
    seeds = len({row.seed for row in rows}) > 1
    head = ["bench", *(["weights"] if several else []), *(["seed"] if seeds else []), "protocol"]
    notes: dict[tuple[str, str], int] = {}
    body = []
    for row in rows:
        names = [row.bench, *([row.weights] if several else []), *([str(row.seed)] if seeds else []), row.protocol]
        body.append([*names, row.images, _time(row.hours), f"{row.memory_gb:.2f}", f"{row.disk_gb:.2f}"])
    for lack in absent:
        note = notes.setdefault((lack.reason, lack.expected), len(notes) + 1)
        names = [lack.bench, *([lack.weights or "all"] if several else []), *(["-"] if seeds else [])]
        body.append([*names, f"not run ({note})", "-", "-", "-", "-"])
    lines = aligned([[*head, "images", "h:mm:ss", "memory [GB]", "disk [GB]"], *body], left=len(head))
    if len(rows) > 1:
        hours, disk = sum(row.hours for row in rows), sum(row.disk_gb for row in rows)
        lines.append(
            f"together at most {_time(hours)} and {disk:.2f} GB of disk (features are computed and kept once for all that read "
            "them)"
        )
    if rows:
        lines += [f"memory: beside the network's; {DOUBT}"]
        lines += dict.fromkeys(f"{_benches_of(row.data, rows)}: {row.data}" for row in rows)
    return "\n".join(lines + [f"({note}) {reason}; needs {expected}" for (reason, expected), note in notes.items()])


def _benches_of(data: str, rows: Sequence[DryRunRow]) -> str:
    return ", ".join(dict.fromkeys(row.bench for row in rows if row.data == data))


def _time(hours: float) -> str:
    """As 1:02:00."""
    return str(datetime.timedelta(seconds=round(3600 * hours)))
