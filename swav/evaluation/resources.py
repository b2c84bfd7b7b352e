"""What benchmarks would take on this machine: hours, memory and disk, for `swav bench --dry-run`."""

import datetime
import time
from collections.abc import Sequence
from typing import Any

import torch

from swav.errors import DataError
from swav.evaluation.task import ResourceEstimate, Task, subsample
from swav.features import EvaluationView, features_of, read_views
from swav.results.results import DryRunRow

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


def format_rows(rows: Sequence[DryRunRow]) -> str:
    """Format the rows of a dry run, and what they take together."""
    lines = [
        f"{row.bench} of {row.weights}, seed {row.seed}: {_time(row.hours)}, {row.memory_gb:.2f} GB of memory "
        f"beside the network's, {row.disk_gb:.2f} GB of disk; {row.data}"
        for row in rows
    ]
    if len(rows) > 1:
        hours, disk = sum(row.hours for row in rows), sum(row.disk_gb for row in rows)
        lines.append(
            f"together at most {_time(hours)} and {disk:.2f} GB of disk (features are computed and kept once for all that read "
            "them)"
        )
    return "\n".join([*lines, DOUBT] if rows else lines)


def _time(hours: float) -> str:
    """As 1:02:00."""
    return str(datetime.timedelta(seconds=round(3600 * hours)))
