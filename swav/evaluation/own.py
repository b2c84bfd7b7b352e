"""What the benchmarks share that have a protocol own: frozen features, parts of them, uncertainty, and which images are right.

Where the data set has a split for scoring (val/), a model of all training images scores it; the spread is that of five models
that each lack one fold of the training images. Where it has none, each of five folds is scored by a model of the other four: every
image once, by what has never seen it; the spread is that of the folds. Folds are stratified and drawn by the seed; images of one
group (a CSV's column `group`) are in one fold.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64

from swav.data.folds import group_folds
from swav.data.images import Images
from swav.errors import ConfigError, DataError, counted, printable
from swav.evaluation.near_duplicates import Copies, near_duplicates
from swav.evaluation.stages import write_log
from swav.evaluation.task import Score, Task
from swav.files import warn_once
from swav.results.intervals import Groups, of_share
from swav.results.paired import answers

FOLDS = 5
RANKS = (1, 5)  # the second where there are more classes than that

_found: dict[tuple[object, ...], Copies] = {}  # near-duplicates, which kNN and linear of one command share

Ranked = Mapping[str, Int64[np.ndarray, "M R"]]


@runtime_checkable
class Model(Protocol):
    """What was learned from features and labels."""

    def ranked(self, features: Float32[np.ndarray, "M F"]) -> Ranked:
        """Classes, best first, -1 for none; by what is added to the metric's name, as ` k=20`."""
        ...

    def described(self) -> dict[str, Any]:
        """What the log says of it."""
        ...


AnyModel = TypeVar("AnyModel", bound=Model)
Learn = Callable[[Float32[np.ndarray, "N F"], Int64[np.ndarray, " N"], Groups, AnyModel | None], AnyModel]


@dataclasses.dataclass(frozen=True)
class LabelledFeatures:
    """Frozen features of the readable images.

    Attributes:
        features, labels: to learn from.
        folds: of each of them its number.
        asked, truth: to be scored; in folds the same images.
        names: of those that are scored.
        groups, asked_groups: of those to learn from, and of those that are scored; None: there are none.
        places, asked_places: in their splits.
        copies: near-duplicates of scored images among those to learn from in other folds.
    """

    features: Float32[np.ndarray, "N F"]
    labels: Int64[np.ndarray, " N"]
    folds: Int64[np.ndarray, " N"]
    asked: Float32[np.ndarray, "M F"]
    truth: Int64[np.ndarray, " M"]
    names: list[str]
    groups: Groups
    asked_groups: Groups
    places: Int64[np.ndarray, " N"]
    asked_places: Int64[np.ndarray, " M"]
    copies: Copies


def folds_of(labels: Int64[np.ndarray, " N"], seed: int, groups: Groups = None) -> Int64[np.ndarray, " N"]:
    """The number of each image's fold: sizes differ by one at most, and so do the folds' numbers of images of each class.

    Of groups each is in one fold; sizes and shares are then as near to equal as they allow.
    """
    if groups is not None:
        return group_folds(labels, groups, FOLDS, seed)
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
    require_labels(task.train, task.train.labels, task.in_folds, task.train.groups, task.settings.seed)


def require_labels(
    images: Images, labels: Int64[np.ndarray, " N"], in_folds: bool, groups: Groups = None, seed: int = 0
) -> None:
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
    if groups is not None and not _groups_suffice(labels, groups, in_folds, seed):
        raise DataError(
            f"{printable(str(images.root))}: expected groups enough that two classes are left to learn from without those of any "
            f"fold, found {counted(len(np.unique(groups)), 'group')}; use finer groups or more images, or drop the column group"
        )
    if groups is not None:
        its = np.unique(np.column_stack([labels, groups]), axis=0)[:, 0]  # a class for each group that it has
        spread = int((np.bincount(its) >= 2).sum())
        if spread < 2:  # else nothing that is scored has its class among what is learned from
            raise DataError(
                f"{printable(str(images.root))}: expected at least two classes with images in 2 groups or more, as what is scored "
                f"learns nothing from its own group, found {spread}; is the column group the class? use finer groups, or drop it"
            )


def _groups_suffice(
    labels: Int64[np.ndarray, " N"], groups: Int64[np.ndarray, " N"], in_folds: bool, seed: int
) -> bool:
    """Whether every part that something is learned from holds two classes: each lacks a fold, and in folds a fold of its own too."""
    folds = folds_of(labels, seed, groups)
    for fold in np.unique(folds):
        kept = folds != fold
        if len(np.unique(labels[kept])) < 2:
            return False
        if in_folds and not _groups_suffice(labels[kept], groups[kept], False, seed):
            return False
    return True


def labelled_features(task: Task[Any], bench: str) -> LabelledFeatures:
    """Features of both splits, kept in `task.out`; warns of near-duplicates between folds or splits.

    Raises:
        DataError: no image of a split can be read, or too few of them.
    """
    bank, queries = task.features(f"{bench}: features", stages=False, pooled=True)
    assert bank.pooled is not None and queries.pooled is not None
    assert task.train.labels is not None and task.val.labels is not None
    labels = task.train.labels[bank.kept]
    groups = None if task.train.groups is None else task.train.groups[bank.kept]
    seed = task.settings.seed
    for split, found in [(task.train, bank)] if task.in_folds else [(task.train, bank), (task.val, queries)]:
        if bad := unreadable(split, found.kept):
            count = counted(len(bad), "labelled image")
            warn_once(f"{printable(str(split.root))}: {count} left out, as they cannot be read: {examples_of(bad)}")
    require_labels(task.train, labels, task.in_folds, groups, seed)
    features, asked = bank.pooled.numpy(), queries.pooled.numpy()
    folds = folds_of(labels, seed, groups)
    apart = (folds, folds) if task.in_folds else (np.zeros(len(features), np.int64), np.ones(len(asked), np.int64))
    of = {name: its for name, its in task.identity()[0].items() if name not in ("settings", "labels")}
    key = (repr(of), task.settings.size, *(folds.tobytes() for folds in apart))
    if key not in _found:
        _found[key] = near_duplicates(
            (task.train, bank.kept, features, apart[0]), (task.val, queries.kept, asked, apart[1])
        )
    data = LabelledFeatures(
        features=features,
        labels=labels,
        folds=folds,
        asked=asked,
        truth=task.val.labels[queries.kept],
        names=[task.val.name(i) for i in queries.kept],
        groups=groups,
        asked_groups=None if task.val.groups is None else task.val.groups[queries.kept],
        places=bank.kept,
        asked_places=queries.kept,
        copies=_found[key],
    )
    if data.copies.pairs:
        warn_once(f"{printable(str(task.val.root))}: {described_copies(task, data)}")
    return data


def unreadable(images: Images, kept: Int64[np.ndarray, " K"]) -> list[tuple[str, str]]:
    """Names of images that have no features, and why.

    Args:
        kept: places of those that have.
    """
    lost = np.setdiff1d(np.arange(len(images)), kept)
    return images.bad + [(images.name(i), "cannot be decoded") for i in lost.tolist()]


def examples_of(bad: Sequence[tuple[str, str]]) -> str:
    """Name the first of some files that cannot be read, each with the reason."""
    more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
    return "; ".join(f"{printable(name)}: {reason}" for name, reason in bad[:3]) + more


def described_copies(task: Task[Any], data: LabelledFeatures) -> str:
    """Say how many scored images have a near-duplicate where they are learned from, and what to do."""
    copies = data.copies
    at_least = "" if copies.complete else "at least "
    where = "another fold" if task.in_folds else "the images to learn from"
    i, j = copies.pairs[0]
    pair = f"{printable(data.names[i])} and {printable(task.train.name(data.places[j]))}"
    advice = "give copies one value in a CSV's column group" if task.in_folds else "take them out of one split"
    have = "has" if len(copies.pairs) == 1 else "have"
    return (
        f"{at_least}{len(copies.pairs)} of {counted(len(data.truth), 'scored image')} {have} a near-duplicate in {where} (as {pair}), "
        f"which flatters the score; {advice}"
    )


@dataclasses.dataclass(frozen=True)
class Learned(Generic[AnyModel]):
    """Models, and what each of them scores.

    Attributes:
        whole: learned from all images; None in folds.
        models: each without one fold.
        parts: which of the scored images each of these scores: in folds those of its own, else all.
    """

    whole: AnyModel | None
    models: list[AnyModel]
    parts: list[Bool[np.ndarray, " M"]]


def learned(task: Task[Any], data: LabelledFeatures, learn: Learn[AnyModel]) -> Learned[AnyModel]:
    """Learn from all images where there is a split for scoring, and without each fold.

    Args:
        learn: makes a model of features, labels and groups; given a model of all of the images, one of a part as that one was
            made.

    Raises:
        Stopped: a signal asked for an end; features are kept.
    """
    features, labels, folds, groups = data.features, data.labels, data.folds, data.groups
    whole = None if task.in_folds else learn(features, labels, groups, None)
    models, parts = list[AnyModel](), list[Bool[np.ndarray, " M"]]()
    for fold in range(FOLDS) if groups is None else np.unique(folds):
        out = folds == fold
        models.append(learn(features[~out], labels[~out], None if groups is None else groups[~out], whole))
        parts.append(out if task.in_folds else np.ones(len(data.truth), bool))
    return Learned(whole, models, parts)


def scores(task: Task[Any], bench: str, data: LabelledFeatures, learn: Learn[AnyModel], *more: str) -> list[Score]:
    """Learn, score, and write down which images were right.

    Args:
        bench: its name, of the log's folder.
        learn: see `learned`.
        more: deviations.

    Raises:
        Stopped: a signal asked for an end; features are kept.
    """
    asked, truth = data.asked, data.truth
    ranks = [rank for rank in RANKS if rank == 1 or rank < task.num_classes]
    fitted = learned(task, data, learn)
    whole, models = fitted.whole, fitted.models
    parts = [
        _right(model.ranked(asked[here]), truth[here], ranks) for model, here in zip(models, fitted.parts, strict=True)
    ]
    if whole is not None:
        right = _right(whole.ranked(asked), truth, ranks)
    else:
        right = {metric: np.zeros(len(truth), bool) for metric in parts[0]}
        for here, part in zip(fitted.parts, parts, strict=True):
            for metric in right:
                right[metric][here] = part[metric]
    values = {metric: [100 * float(part[metric].mean()) for part in parts] for metric in right}
    of = {
        "train": task.train.fingerprint,
        "score": task.val.fingerprint,
        "labels": task.val.labels_fingerprint,
    }
    if data.groups is not None:
        of["groups"] = task.train.groups_fingerprint
    log = write_log(
        task,
        bench,
        {
            "models": [model.described() for model in ([whole] if whole is not None else models)],
            "parts": values,
            "near_duplicates": near_duplicates_of(task, data),
            **answers(of, data.names, right, data.asked_groups),
        },
    )
    whole_groups = " of whole groups" if data.groups is not None else ""
    folds = [f"scored in {len(models)} folds{whole_groups}"] if task.in_folds else []
    if data.copies.pairs:
        at_least = "" if data.copies.complete else "at least "
        folds.append(f"{at_least}{counted(len(data.copies.pairs), 'near-duplicate')} of what is learned from")
    deviations = task.deviations(len(data.labels), len(truth), *folds, *more)
    found = []
    for metric, its in right.items():
        low, high = of_share(its, data.asked_groups)
        spread = statistics.stdev(values[metric])
        interval = (100 * low, 100 * high)
        found.append(Score(metric, 100 * float(its.mean()), len(its), deviations, log, spread, interval))
    return found


def near_duplicates_of(task: Task[Any], data: LabelledFeatures) -> dict[str, Any]:
    """What a log holds of near-duplicates: their pairs, a scored image first."""
    named = [[data.names[i], task.train.name(data.places[j])] for i, j in data.copies.pairs]
    return {"scored": len(named), "complete": data.copies.complete, "pairs": named}


def _right(ranked: Ranked, truth: Int64[np.ndarray, " M"], ranks: list[int]) -> dict[str, Bool[np.ndarray, " M"]]:
    """Which images are right, by metric."""
    return {
        f"top-{rank}{name}": (classes[:, :rank] == truth[:, None]).any(axis=1)
        for name, classes in ranked.items()
        for rank in ranks
    }
