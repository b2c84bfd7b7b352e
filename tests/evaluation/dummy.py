"""A benchmark of one module: the mean of the first feature, in a unit of its own."""

from typing import Any

from swav.evaluation.settings import BenchSettings
from swav.evaluation.task import ResourceEstimate, Score, Task


class DummySettings(BenchSettings):
    """Its settings are those of every benchmark, and an offset."""

    offset: float = 0.0


def check(task: Task[Any]) -> None:
    """Everything can be had."""


def estimate_resources(task: Task[Any]) -> ResourceEstimate:
    """Return one forward pass per image."""
    return ResourceEstimate(len(task.train) + len(task.val))


def run(task: Task[Any]) -> list[Score]:
    """Return its only number."""
    _, score = task.features("dummy", stages=False, pooled=True)
    assert score.pooled is not None
    value = float(score.pooled[:, 0].mean()) + task.settings.offset
    return [Score("EPE", value, len(score.kept), task.deviations(len(task.train), len(score.kept)))]
