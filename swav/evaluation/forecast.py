"""What benchmarks would take on this machine: hours, memory and disk, for `swav bench --dry-run`."""

import datetime
import time
from collections.abc import Mapping, Sequence
from typing import Any

from swav.evaluation.task import Needs, Task, drawn
from swav.features import pooled_features

SAMPLE = 64  # images that are timed
STEP = 3  # forwards that a training step takes: there, and back for activations and for weights
DOUBT = "hours follow from the first images read here; half or twice as much is possible"


def forecast(bench: str, task: Task[Any], needs: Needs) -> dict[str, Any]:
    """A row: what a benchmark would take, from the time of some images on this machine."""
    sample = drawn(task.train, SAMPLE, seed=0)
    settings = task.settings
    task.encoder.to(task.device)
    began = time.monotonic()
    pooled_features(task.encoder, sample, settings.size, workers=0, device=task.device, precision=settings.precision)
    seconds = (time.monotonic() - began) / len(sample)
    task.encoder.cpu()
    return {
        "bench": bench,
        "weights": task.encoder.name,
        "seed": settings.seed,
        "data": f"{task.train.note}: {len(task.train)}; {task.score.note}: {len(task.score)}",
        "hours": (seconds * (needs.forwards + STEP * needs.trained) + needs.solving) / 3600,
        "memory_gb": needs.memory / 1e9,
        "disk_gb": needs.disk / 1e9,
    }


def told(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in words."""
    lines = [
        f"{row['bench']} of {row['weights']}, seed {row['seed']}: {_time(row['hours'])}, {row['memory_gb']:.2f} GB of memory "
        f"beside the network's, {row['disk_gb']:.2f} GB of disk; {row['data']}"
        for row in rows
    ]
    if len(rows) > 1:
        hours, disk = sum(row["hours"] for row in rows), sum(row["disk_gb"] for row in rows)
        lines.append(
            f"together {_time(hours)}, at most {disk:.2f} GB of disk (features are kept once for all that read them)"
        )
    return "\n".join([*lines, DOUBT] if rows else lines)


def _time(hours: float) -> str:
    """As 1:02:00."""
    return str(datetime.timedelta(seconds=round(3600 * hours)))
