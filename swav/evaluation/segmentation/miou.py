"""Mean intersection over union (mIoU) from counts of pixels, which are summed over all images before they are divided."""

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from swav.data.targets import VOID
from swav.results.confusion import confusion as counts_of

RESAMPLES = 1000  # of the images, for the interval

Areas = Int64[np.ndarray, "3 C"]  # pixels per class: right, of the truth, predicted


def confusion(
    predicted: UInt8[np.ndarray, "_ _"], truth: UInt8[np.ndarray, "_ _"], classes: int
) -> Int64[np.ndarray, "C C"]:
    """Count the labelled pixels by true class (rows) and predicted class.

    Raises:
        ValueError: maps of different shapes, or a class that there is not.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"expected maps of one shape, found {list(predicted.shape)} and {list(truth.shape)}")
    labelled = truth != VOID
    right, found = truth[labelled].astype(np.int64), predicted[labelled].astype(np.int64)
    if right.size and max(right.max(), found.max()) >= classes:
        raise ValueError(f"expected classes below {classes}, found {max(right.max(), found.max())}")
    return counts_of(right, found, classes)


def areas(counts: Int64[np.ndarray, "C C"]) -> Areas:
    """Return what the mean intersection over union is made of."""
    return np.stack([counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)])


def iou(total: Float64[np.ndarray, "*more 3 C"] | Int64[np.ndarray, "*more 3 C"]) -> Float64[np.ndarray, "*more C"]:
    """Return the intersection over union of each class [%]; nan where a class is neither there nor predicted."""
    right, there, predicted = np.moveaxis(total, -2, 0).astype(np.float64)
    union = there + predicted - right
    with np.errstate(invalid="ignore"):
        found: Float64[np.ndarray, "*more C"] = 100 * right / np.where(union > 0, union, np.nan)
    return found


def mean_iou(total: Float64[np.ndarray, "*more 3 C"] | Int64[np.ndarray, "*more 3 C"]) -> Float64[np.ndarray, "*more"]:
    """Return the mean over the classes that are there or predicted [%]."""
    found = iou(total)
    there = ~np.isnan(found)
    return np.asarray(np.where(there, found, 0).sum(axis=-1) / np.maximum(there.sum(axis=-1), 1))


def interval(per_image: Int64[np.ndarray, "N 3 C"], seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean [%]: its percentiles over images drawn with replacement."""
    images, _, classes = per_image.shape
    draw = np.random.default_rng(seed)
    times = np.stack([np.bincount(draw.integers(images, size=images), minlength=images) for _ in range(RESAMPLES)])
    sums = times.astype(np.float64) @ per_image.reshape(images, -1)
    low, high = np.percentile(mean_iou(sums.reshape(RESAMPLES, 3, classes)), [2.5, 97.5])
    return float(low), float(high)
