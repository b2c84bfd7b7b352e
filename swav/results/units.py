"""Metrics with their units: what a score's name says of its number. One more metric is one more entry.

A score is named by its metric and what it is of: `top-1 k=20`, `mAP best layer`, `box AP50`. No torch here.
"""

import dataclasses
from collections.abc import Sequence

PERCENT = "%"


@dataclasses.dataclass(frozen=True)
class Metric:
    """One kind of number.

    Attributes:
        unit: of its values.
        decimals: in tables; a column of the published page may have its own.
        higher_is_better: None: neither direction is an improvement.
    """

    unit: str = PERCENT
    decimals: int = 2
    higher_is_better: bool | None = True


METRICS: dict[str, Metric] = {
    "top-1": Metric(),
    "top-5": Metric(),
    "mAP": Metric(),
    "spread": Metric(higher_is_better=None),  # standard deviation over samples of the low-shot SVM
    "AP": Metric(),
    "AP50": Metric(),
    "AP75": Metric(),
    "mIoU": Metric(),
}

# The score that stands for a benchmark where there is room for one: the first of these that it has, else its first.
HEADLINES = ("mAP best layer", "top-1 best layer", "top-1 feature5", "top-1 k=20", "top-1 10%", "mAP k=16", "box AP")


def headline_of(scores: Sequence[str]) -> str:
    """The score of a benchmark that stands for all of them."""
    return next((name for name in HEADLINES if name in scores), scores[0])


def known_metric(score: str) -> Metric | None:
    """The metric that a score's name begins with, or has after a word like `box`; None where it has none."""
    return next((METRICS[word] for word in score.split() if word in METRICS), None)


def metric_of(score: str) -> Metric:
    """The metric of a score of ours.

    Raises:
        ValueError: METRICS has no such metric.
    """
    found = known_metric(score)
    if found is None:
        raise ValueError(f"{score}: expected a score named by one of {', '.join(METRICS)}; add its metric to METRICS")
    return found


def unit_of(score: str) -> str:
    """Return the unit of a score; percent where another version wrote it, and its metric is unknown here."""
    return (known_metric(score) or Metric()).unit


def decimals_of(score: str) -> int:
    """How many decimals tables give it; two where another version wrote it, and its metric is unknown here."""
    return (known_metric(score) or Metric()).decimals
