"""Average precision of boxes by the rules of PASCAL VOC's development kit.

Per class, detections go from the surest to the least sure. Each meets the object of its class in its image that it
overlaps most, and that one only:

    IoU too small                       false positive
    the object is difficult             neither right nor wrong
    a surer detection has the object    false positive: there is no second-best object, unlike in COCO's rules
    else                                true positive

Recall counts the objects that are not difficult. The peers differ in three places:

                  match at IoU     box and score                          ties of score
    MMDetection   >= threshold     float32                                any order
    detectron2    >  threshold     text: 1 decimal, and 3 of the score    any order
    here          either           either                                 stable: images in order, then as given
"""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64

from swav.data.targets import ObjectSets
from swav.evaluation.detection.detections import Detections, require_known

IOUS = tuple(percent / 100 for percent in range(50, 100, 5))
# 0.30000000000000004 is one of them, in the peers' code too: a recall of 3/10 is below it
_RECALLS = np.linspace(0, 1, 11)


class VocAp(NamedTuple):
    """Average precision [%].

    Attributes:
        per_class: at each IoU threshold and of each class; nan where every object is difficult, or there is none.
        mean: at each threshold, over the classes that have a value; nan where none has.
    """

    per_class: Float64[np.ndarray, "T C"]
    mean: Float64[np.ndarray, " T"]


class _Overlaps(NamedTuple):
    """Detections, by class and then from the surest to the least sure.

    Attributes:
        labels: their classes.
        iou: with the object of the same class and image that each overlaps most; -1 where there is no such object.
        best: number of that object among all; 0 where there is none.
        difficult: whether that object is.
        positives: per class the objects that are not difficult.
    """

    labels: Int64[np.ndarray, " n"]
    iou: Float64[np.ndarray, " n"]
    best: Int64[np.ndarray, " n"]
    difficult: Bool[np.ndarray, " n"]
    positives: Int64[np.ndarray, " C"]


def voc_ap(
    truth: ObjectSets,
    found: Detections,
    ious: Sequence[float] = (0.5,),
    *,
    points: int | None = 11,
    inclusive: bool = True,
    match_at_threshold: bool = True,
    as_text: bool = False,
) -> VocAp:
    """Average precision of each class at each IoU threshold, and its mean over classes.

    Args:
        truth: the objects, their boxes as VOC's XML files have them.
        found: the detections, their boxes in the same convention.
        ious: thresholds of IoU.
        points: 11, the mean of the best precision at a recall of at least 0, .1, .. 1 (VOC2007), or None, the area under
            the curve of precision (VOC2010 and later).
        inclusive: the last pixel belongs to the box, so that a width is right - left + 1.
        match_at_threshold: an IoU that equals the threshold matches (VOC's kit, MMDetection); else not (detectron2).
        as_text: round scores to 3 decimals and boxes to 1, as detectron2 writes them before it scores them.

    Raises:
        ValueError: detections in images, or of classes, that the truth doesn't have; points that are neither 11 nor None.
    """
    if points not in (11, None):
        raise ValueError(f"points: expected 11 or None (the area), found {points}; VOC has no other rule")
    require_known(found, len(truth), len(truth.classes))
    overlaps = _overlaps(truth, found, inclusive, as_text)
    ends = np.searchsorted(overlaps.labels, np.arange(len(truth.classes) + 1))
    per_class = np.full((len(ious), len(truth.classes)), np.nan)
    for t, threshold in enumerate(ious):
        right, wrong = _judged(overlaps, threshold, match_at_threshold)
        for k in np.flatnonzero(overlaps.positives):
            of_class = slice(ends[k], ends[k + 1])
            hits, misses = right[of_class].cumsum(), wrong[of_class].cumsum()
            recall, precision = hits / overlaps.positives[k], hits / np.maximum(hits + misses, 1)
            per_class[t, k] = 100 * _area(recall, precision, points)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return VocAp(per_class, np.nanmean(per_class, axis=1))


def voc_metrics(
    truth: ObjectSets,
    found: Detections,
    *,
    points: int | None = 11,
    inclusive: bool = True,
    match_at_threshold: bool = True,
    as_text: bool = False,
) -> dict[str, float]:
    """AP50, AP75 and AP, the mean over IoU .50, .55, .. .95 [%]. Arguments as of voc_ap.

    Returns:
        The three numbers; nothing where no object counts (difficult ones only, or none).
    """
    mean = voc_ap(
        truth,
        found,
        IOUS,
        points=points,
        inclusive=inclusive,
        match_at_threshold=match_at_threshold,
        as_text=as_text,
    ).mean
    if np.isnan(mean).any():
        return {}
    return {
        "AP50": float(mean[IOUS.index(0.5)]),
        "AP": float(mean.mean()),
        "AP75": float(mean[IOUS.index(0.75)]),
    }


def _overlaps(truth: ObjectSets, found: Detections, inclusive: bool, as_text: bool) -> _Overlaps:
    """Sort the detections, and find the object that each overlaps most."""
    classes = len(truth.classes)
    objects = [truth[i] for i in range(len(truth))]
    labels = np.concatenate([np.zeros(0, np.int64), *(each.labels for each in objects)])
    boxes = np.concatenate([np.zeros((0, 4)), *(each.boxes for each in objects)])
    difficult = np.concatenate([np.zeros(0, np.bool_), *(each.difficult for each in objects)])
    places = np.repeat(np.arange(len(objects)), [len(each) for each in objects]) * classes + labels  # image and class
    by_place = np.argsort(places, kind="stable")  # in the file's order: of equal overlaps the first object counts

    scores, found_boxes = found.scores.astype(np.float64), found.boxes.astype(np.float64)
    if as_text:
        scores, found_boxes = scores.round(3), found_boxes.round(1)
    order = np.lexsort((found.images, -scores, found.labels))  # stable
    wanted = found.images[order] * classes + found.labels[order]
    first = np.searchsorted(places[by_place], wanted)
    counts = np.searchsorted(places[by_place], wanted, side="right") - first

    # every detection beside every object of its image and class: pairs, in the detections' order
    some = np.flatnonzero(counts)
    starts = counts[some].cumsum() - counts[some]
    within = np.arange(counts.sum()) - np.repeat(starts, counts[some])
    objects_of_pairs = by_place[np.repeat(first[some], counts[some]) + within]
    extra = 1.0 if inclusive else 0.0
    iou = _iou(found_boxes[order][np.repeat(some, counts[some])], boxes[objects_of_pairs], extra)
    highest, best = np.full(len(order), -1.0), np.zeros(len(order), np.int64)
    if len(some):
        highest[some] = np.maximum.reduceat(iou, starts)
        at_highest = iou == np.repeat(highest[some], counts[some])
        best[some] = objects_of_pairs[np.minimum.reduceat(np.where(at_highest, np.arange(len(iou)), len(iou)), starts)]
    return _Overlaps(
        labels=found.labels[order],
        iou=highest,
        best=best,
        difficult=difficult[best] if len(difficult) else np.zeros(len(order), np.bool_),
        positives=np.bincount(labels[~difficult], minlength=classes),
    )


def _iou(
    a: Float64[np.ndarray, "pairs 4"], b: Float64[np.ndarray, "pairs 4"], extra: float
) -> Float64[np.ndarray, " pairs"]:
    """Intersection over union of each pair; `extra` is what a width has beyond right - left."""
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]) + extra
    shared = sides.clip(min=0).prod(axis=1)
    both = (a[:, 2:] - a[:, :2] + extra).prod(axis=1) + (b[:, 2:] - b[:, :2] + extra).prod(axis=1)
    iou: Float64[np.ndarray, " pairs"] = np.divide(
        shared, both - shared, out=np.zeros_like(shared), where=both > shared
    )
    return iou


def _judged(
    overlaps: _Overlaps, threshold: float, match_at_threshold: bool
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Which detections are right and which are wrong, at a threshold; the others are ignored."""
    matched = overlaps.iou >= threshold if match_at_threshold else overlaps.iou > threshold
    matched &= overlaps.iou >= 0
    claims = np.flatnonzero(matched & ~overlaps.difficult)
    _, surest = np.unique(overlaps.best[claims], return_index=True)  # the first of those that claim an object
    right = np.zeros(len(matched), np.bool_)
    right[claims[surest]] = True
    return right, ~right & ~(matched & overlaps.difficult)


def _area(recall: Float64[np.ndarray, " n"], precision: Float64[np.ndarray, " n"], points: int | None) -> float:
    """The area under the envelope: at a recall, the best precision at that recall or beyond."""
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if points == 11:
        return float(envelope[np.searchsorted(recall, _RECALLS)].mean())
    return float((np.diff(recall, prepend=0.0) * envelope[:-1]).sum())
