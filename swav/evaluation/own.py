"""What the benchmarks share that have a protocol own: frozen features, parts of them, uncertainty, and which images are right.

Where the data set has a split for scoring (val/), a model of all training images scores it; the spread is that of five models
that each lack one fold of the training images. Where it has none, each of five folds is scored by a model of the other four: every
image once, by what has never seen it; the spread is that of the folds. Folds are stratified and drawn by the seed.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Int64

from swav.data.images import Images
from swav.errors import ConfigError, DataError, printable
from swav.evaluation.stages import write_log
from swav.evaluation.task import Score, Task
from swav.results.intervals import wilson
from swav.results.paired import answers

FOLDS = 5
RANKS = (1, 5)  # the second where there are more classes than that

Ranked = Mapping[str, Int64[np.ndarray, "M R"]]


class Model(Protocol):
    """What was learned from features and labels."""

    def ranked(self, features: Float32[np.ndarray, "M F"]) -> Ranked:
        """Classes, best first, -1 for none; by what is added to the metric's name, as ` k=20`."""
        ...

    def described(self) -> dict[str, Any]:
        """What the log says of it."""
        ...


AnyModel = TypeVar("AnyModel", bound=Model)
Learn = Callable[[Float32[np.ndarray, "N F"], Int64[np.ndarray, " N"], AnyModel | None], AnyModel]


@dataclasses.dataclass(frozen=True)
class LabelledFeatures:
    """Frozen features of the readable images.

    Attributes:
        features, labels: to learn from.
        folds: of each of them its number.
        asked, truth: to be scored; in folds the same images.
        names: of those that are scored.
    """

    features: Float32[np.ndarray, "N F"]
    labels: Int64[np.ndarray, " N"]
    folds: Int64[np.ndarray, " N"]
    asked: Float32[np.ndarray, "M F"]
    truth: Int64[np.ndarray, " M"]
    names: list[str]


def folds_of(labels: Int64[np.ndarray, " N"], seed: int) -> Int64[np.ndarray, " N"]:
    """The number of each image's fold: sizes differ by one at most, and so do the folds' numbers of images of each class."""
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    folds = np.empty(len(labels), np.int64)
    folds[by_class] = np.arange(len(labels)) % FOLDS
    return folds


def smallest_part(count: int) -> int:
    """Images to learn from in the smallest model."""
    return count - -(-count // FOLDS)


def check(task: Task[Any]) -> None:
    """Validate settings and labels before any computation.

    Raises:
        ConfigError: images to score are to be drawn where all are scored.
        DataError: too few images of too few classes.
    """
    if task.in_folds and task.settings.score_images:
        raise ConfigError(
            "score_images: expected none, as this data set has no split for scoring and each of its images is scored, found "
            f"{task.settings.score_images}; use train_images"
        )
    assert task.train.labels is not None
    require_labels(task.train, task.train.labels, task.in_folds)


def require_labels(images: Images, labels: Int64[np.ndarray, " N"], in_folds: bool) -> None:
    """Refuse labels of which some part of the folds, and some part of that, would hold one class only.

    Raises:
        DataError: too few images of too few classes.
    """
    needed = 3 if in_folds else 2
    enough = int((np.bincount(labels, minlength=1) >= needed).sum())
    if enough < 2:
        raise DataError(
            f"{printable(str(images.root))}: expected at least two classes with {needed} images to learn from, found {enough}; "
            "add images, or use other class folders"
        )


def labelled_features(task: Task[Any], bench: str) -> LabelledFeatures:
    """Features of both splits, kept in `task.out`.

    Raises:
        DataError: no image of a split can be read, or too few of them.
    """
    bank, queries = task.features(f"{bench}: features", stages=False, pooled=True)
    assert bank.pooled is not None and queries.pooled is not None
    assert task.train.labels is not None and task.val.labels is not None
    labels = task.train.labels[bank.kept]
    require_labels(task.train, labels, task.in_folds)
    return LabelledFeatures(
        features=bank.pooled.numpy(),
        labels=labels,
        folds=folds_of(labels, task.settings.seed),
        asked=queries.pooled.numpy(),
        truth=task.val.labels[queries.kept],
        names=[task.val.name(i) for i in queries.kept],
    )


def scores(task: Task[Any], bench: str, data: LabelledFeatures, learn: Learn[AnyModel], *more: str) -> list[Score]:
    """Learn, score, and write down which images were right.

    Args:
        bench: its name, of the log's folder.
        learn: makes a model of features and labels; given a model of all of the images, one of a part as that one was made.
        more: deviations.

    Raises:
        Stopped: a signal asked for an end; features are kept.
    """
    features, labels, folds, asked, truth = data.features, data.labels, data.folds, data.asked, data.truth
    ranks = [rank for rank in RANKS if rank == 1 or rank < task.num_classes]
    models, parts = list[AnyModel](), list[dict[str, Bool[np.ndarray, " M"]]]()
    whole = None if task.in_folds else learn(features, labels, None)
    for fold in range(FOLDS):
        out = folds == fold
        models.append(learn(features[~out], labels[~out], whole))
        here = out if task.in_folds else np.ones(len(truth), bool)
        parts.append(_right(models[-1].ranked(asked[here]), truth[here], ranks))
    if whole is not None:
        right = _right(whole.ranked(asked), truth, ranks)
    else:
        right = {metric: np.zeros(len(truth), bool) for metric in parts[0]}
        for fold, part in enumerate(parts):
            for metric in right:
                right[metric][folds == fold] = part[metric]
    values = {metric: [100 * float(part[metric].mean()) for part in parts] for metric in right}
    of = {
        "train": task.train.fingerprint,
        "score": task.val.fingerprint,
        "labels": task.val.labels_fingerprint,
    }
    log = write_log(
        task,
        bench,
        {
            "models": [model.described() for model in ([whole] if whole is not None else models)],
            "parts": values,
            **answers(of, data.names, right),
        },
    )
    deviations = task.deviations(
        len(labels), len(truth), *([f"scored in {FOLDS} folds"] if task.in_folds else []), *more
    )
    found = []
    for metric, its in right.items():
        low, high = wilson(int(its.sum()), len(its))
        spread = statistics.stdev(values[metric])
        interval = (100 * low, 100 * high)
        found.append(Score(metric, 100 * float(its.mean()), len(its), deviations, log, spread, interval))
    return found


def _right(ranked: Ranked, truth: Int64[np.ndarray, " M"], ranks: list[int]) -> dict[str, Bool[np.ndarray, " M"]]:
    """Which images are right, by metric."""
    return {
        f"top-{rank}{name}": (classes[:, :rank] == truth[:, None]).any(axis=1)
        for name, classes in ranked.items()
        for rank in ranks
    }
