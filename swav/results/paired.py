"""Which images a benchmark had right, kept in the log of its row, and two rows compared by it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from swav.errors import DataError
from swav.results.intervals import Groups, PairedDifference
from swav.results.results import Result

ANSWERS = "answers"  # in the log


def answers(
    of: Mapping[str, str], images: Sequence[str], right: Mapping[str, Bool[np.ndarray, " N"]], groups: Groups = None
) -> dict[str, dict[str, Any]]:
    """What a log keeps: which images were scored, and per metric a 1 for each that was right, else a 0.

    Args:
        of: what must be the same for two logs to be compared (data, labels).
        images: names of those scored.
        right: by metric.
        groups: of the images, where they come in groups.
    """
    marks = {metric: "".join(map(str, found.astype(int).tolist())) for metric, found in right.items()}
    numbers = {} if groups is None else {"groups": groups.tolist()}
    return {ANSWERS: {"of": dict(of), "images": list(images), "right": marks} | numbers}


def paired_difference(first: Result, second: Result, folder: Path) -> PairedDifference:
    """Compare two results on the same images.

    Args:
        first, second: rows of one benchmark, metric, protocol and data set; the difference is second - first.
        folder: that of their results.json.

    Raises:
        DataError: they are of different things, or a log is missing, damaged, or of other images.
    """
    for key in ("bench", "metric", "protocol", "seed"):
        one, other = getattr(first, key), getattr(second, key)
        if one != other:
            raise DataError(f"expected two results of one {key}, found {one} and {other}")
    (of, images, groups, right), (its_of, its_images, _, its_right) = (_read(row, folder) for row in (first, second))
    if of != its_of or images != its_images:
        raise DataError(
            f"{first.bench}: expected two results of the same images and labels, found others; run both again"
        )
    return PairedDifference.of(right, its_right, groups)


def _read(row: Result, folder: Path) -> tuple[Any, list[str], Groups, Bool[np.ndarray, " N"]]:
    """What the answers are of, the images, their groups where there are some, and which are right."""
    if row.log is None:
        raise DataError(
            f"{row.bench} of {row.label}: expected a log of which images are right, found none; run it again"
        )
    path = folder / row.log
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[ANSWERS]
        images, marks = found["images"], found["right"][row.metric]
        groups = np.array(found["groups"], np.int64) if "groups" in found else None
        if not isinstance(images, list) or len(images) != len(marks) or not set(marks) <= {"0", "1"} or not images:
            raise ValueError("images and answers do not agree")
        if groups is not None and groups.shape != (len(images),):
            raise ValueError("images and groups do not agree")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: expected which images are right at {row.metric}, found {type(error).__name__} ({error}); run it again"
        ) from None
    return found.get("of"), images, groups, np.array([mark == "1" for mark in marks])
