"""Low-shot SVM: linear classifiers of VOC 2007 from a few images of each class.

Data        as for the SVM: trained on samples of trainval, scored on test. A sample of a class: k images that show it and 19 k
            that do not; k = 1, 2, 4, 8, 16, 32, 64, 96. Difficult images are in no sample, and left out of the score.
Samples     5 per k: the official files of `lowshot.samples=DIR` (train_targets_sample{1..5}_k{K}.npy, of 5,011 rows by
            image id and 20 columns; 1 positive, 0 negative, -1 not in the sample), else drawn by the seed.
Transform   as for the SVM: short side to 256, both sides to 224.
Layer       the last stage, pooled to 2 x 2; `lowshot.layers=all`: every stage. Each row is divided by its length + 1e-5.
Classifier  as for the SVM: L2 penalty, squared hinge, positives at twice the cost.
Search      C of 1, 10, 100, 0.5^4 ... 0.5^19, one for all classes and samples of a k. Published: the best on test, which
            flatters. Beside it, `cost by trainval`: the best on the trainval images outside of each sample; test has no say.
Metric      mean over classes of the average precision under the envelope [%], mean over the samples; `spread` is their
            standard deviation (over n, as published).
Seeds       one, for the samples.
Source      MMSelfSup 0.x svm_voc07 low-shot, after VISSL's; its samples were drawn without a seed.
Where we differ: as the SVM. The cost by trainval is ours; it uses labels beyond the sample, for the choice of one number.
Smoke       size 112, at most 2,000 + 2,000 images, k up to 16. A k that some class cannot fill is not run, in any protocol.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int8
from torch import Tensor

from swav.data.sources.npy import read_numbers
from swav.errors import DataError
from swav.evaluation.settings import LowshotSettings
from swav.evaluation.stages import MultiLabelSplits, pooling, stage_name, write_log
from swav.evaluation.svm_solver import Axes, decide, principal_axes, solve_svms, unit_rows
from swav.evaluation.task import NoScore, ResourceEstimate, Score, Task
from swav.metrics import average_precision
from swav.progress import Progress

NEGATIVES = 19  # for each positive

Sample = Int8[np.ndarray, "N C"]  # 1 positive, -1 negative, 0 not in the sample


class Curve(NamedTuple):
    """Scores of one k and stage, 0..1, per cost and sample, and machines whose optimum is not certain."""

    test: Float64[np.ndarray, "K S"]
    outside: Float64[np.ndarray, "K S"]
    unfinished: int


def check(task: Task[LowshotSettings]) -> None:
    """Validate settings and data before any computation.

    Raises:
        ConfigError: the backbone has no stages.
        DataError: labels are not VOC's, a file of a sample is missing or does not fit, or no k can be filled.
    """
    targets, settings = MultiLabelSplits.of(task), task.settings
    unscored = [name for name, column in zip(targets.classes, targets.val.T, strict=True) if not (column == 1).any()]
    if unscored:
        raise DataError(
            f"{task.val.root}: expected scored images of each class, found none of {unscored[0]}; use more images"
        )
    possible = [k for k in settings.k if not _lacks(targets, k, settings)]
    if not possible:
        raise DataError(
            f"{task.train.root}: expected images for some k of {list(settings.k)}, found {_lacks(targets, min(settings.k), settings)}"
        )
    for k in possible:
        list(_samples(targets, k, settings))


def estimate_resources(task: Task[LowshotSettings]) -> ResourceEstimate:
    """Estimate resources. A k of the whole of VOC 2007 took 11 s to 37 s on two cores; the features are those of the SVM."""
    rows, values = len(task.train), task.stage_values()
    both, stages = rows + len(task.val), len(values) if task.settings.layers == "all" else 1
    return ResourceEstimate(
        both,
        solving=37 * stages * len(task.settings.k) * (rows / 5011) ** 2,
        memory=4 * both * max(values) + 40 * rows**2,
        disk=4 * both * sum(values),
    )


def run(task: Task[LowshotSettings]) -> list[Score | NoScore]:
    """Scores one encoder; rows per k (and stage, where all are asked for).

    Raises:
        ConfigError: the backbone has no stages.
        DataError: as check; or no image of a split can be read.
    """
    check(task)
    settings, targets = task.settings, MultiLabelSplits.of(task)
    train, score = task.features("lowshot: features", stages=True, pooled=False, view="squeezed")
    if settings.samples is not None and len(train.kept) < len(task.train):
        raise DataError(
            f"{task.train.root}: expected every image, as lowshot.samples={settings.samples} counts them, found "
            f"{len(task.train) - len(train.kept)} unreadable; fix them, or let samples be drawn"
        )
    targets = MultiLabelSplits(targets.train[train.kept], targets.val[score.kept], targets.classes)
    possible = [k for k in settings.k if not _lacks(targets, k, settings)]
    chosen = range(len(train.stages)) if settings.layers == "all" else [len(train.stages) - 1]
    deviations = task.deviations(len(targets.train), len(targets.val), *filter(None, [pooling(task)]))
    scores: list[Score | NoScore] = [
        NoScore(f"mAP k={k}", lack, "more training images")
        for k in settings.k
        if (lack := _lacks(targets, k, settings))
    ]
    logged: dict[str, Any] = {}
    with Progress("lowshot", len(chosen) * len(possible) * len(settings.costs)) as progress:
        for place in chosen:
            x, scored = unit_rows(train.stages[place]), unit_rows(score.stages[place])
            axes = principal_axes(x)
            name = f" {stage_name(task.encoder, place)}" if settings.layers == "all" else ""
            for k in possible:
                curve = _curve(x, axes, scored, targets, list(_samples(targets, k, settings)), settings, progress)
                best, honest = (int(part.mean(axis=1).argmax()) for part in (curve.test, curve.outside))
                logged[f"k={k}{name}"] = {
                    "cost": settings.costs[best],
                    "cost by trainval": settings.costs[honest],
                    "test": dict(zip(map(str, settings.costs), (100 * curve.test).tolist(), strict=True)),
                    "outside": dict(zip(map(str, settings.costs), (100 * curve.outside).tolist(), strict=True)),
                }
                rows = {
                    f"mAP k={k}{name}": float(curve.test[best].mean()),
                    f"spread k={k}{name}": float(curve.test[best].std()),
                    f"mAP k={k}{name}, cost by trainval": float(curve.test[honest].mean()),
                }
                doubt = _doubt(curve, len(targets.classes), settings)
                ours = "cost not chosen on test, as published"
                published = LowshotSettings().k
                other = "" if k in published else f"k={k}, published for k={list(published)}"
                for metric, value in rows.items():
                    own = ours if metric.endswith("trainval") else ""
                    words = "; ".join(part for part in (own, other, deviations, doubt) if part)
                    scores.append(Score(metric, 100 * value, len(targets.val), words))
    log = write_log(task, "lowshot", logged)
    return [dataclasses.replace(row, log=log) if isinstance(row, Score) else row for row in scores]


def _doubt(curve: Curve, classes: int, settings: LowshotSettings) -> str:
    total = curve.test.size * classes
    text = f"{curve.unfinished} of {total} machines did not converge to lowshot.tolerance={settings.tolerance:g}"
    return text if curve.unfinished else ""


def _lacks(targets: MultiLabelSplits, k: int, settings: LowshotSettings) -> str:
    """Explain why a k cannot be sampled; empty where it can. Files are taken as they are."""
    if settings.samples is not None:
        return ""
    for name, column in zip(targets.classes, targets.train.T, strict=True):
        positives, negatives = int((column == 1).sum()), int((column == -1).sum())
        if positives < k or negatives < NEGATIVES * k:
            return (
                f"expected {k} images of each class and {NEGATIVES * k} without it, found {positives} and {negatives} "
                f"of {name}"
            )
    return ""


def _samples(targets: MultiLabelSplits, k: int, settings: LowshotSettings) -> Iterator[Sample]:
    for number in range(1, settings.draws + 1):
        if settings.samples is None:
            yield draw_sample(targets.train, k, settings.seed, number)
        else:
            yield read_sample(Path(settings.samples).expanduser(), number, k, targets.train.shape)


def draw_sample(labels: Int8[np.ndarray, "N C"], k: int, seed: int, number: int) -> Sample:
    """k positives and 19 k negatives of each class, none of them difficult. Same arguments, same sample."""
    sample = np.zeros(labels.shape, dtype=np.int8)
    for c, column in enumerate(labels.T):
        rng = np.random.default_rng([seed, number, k, c])
        for mark, count in ((1, k), (-1, NEGATIVES * k)):
            sample[rng.choice(np.flatnonzero(column == mark), count, replace=False), c] = mark
    return sample


def read_sample(folder: Path, number: int, k: int, shape: tuple[int, ...]) -> Sample:
    """Read an official sample.

    Raises:
        DataError: there is no such folder, the file is missing, or not an array of this shape that holds positives and
            negatives of each class.
    """
    path = folder / f"train_targets_sample{number}_k{k}.npy"
    if not folder.is_dir():
        raise DataError(f"lowshot.samples: expected a folder of train_targets_sampleS_kK.npy, found no folder {folder}")
    try:
        targets = read_numbers(path)
    except Exception as error:  # a damaged header can make NumPy raise anything
        raise DataError(f"{path}: expected the targets of a sample, found: {error}; check lowshot.samples") from None
    if targets.shape != shape:
        raise DataError(
            f"{path}: expected targets of {shape[0]} images and {shape[1]} classes, found {list(targets.shape)}; official "
            "samples are of all of trainval: use lowshot.train_images=0"
        )
    if set(np.unique(targets)) - {-1, 0, 1} or not ((targets == 1).any(axis=0) & (targets == 0).any(axis=0)).all():
        raise DataError(
            f"{path}: expected 1, 0 or -1, and both 1 and 0 of each class, found others; get the file again"
        )
    sample: Sample = np.where(targets == 1, 1, np.where(targets == 0, -1, 0)).astype(np.int8)
    return sample


def _curve(
    x: Tensor,
    axes: Axes,
    scored: Tensor,
    targets: MultiLabelSplits,
    samples: list[Sample],
    settings: LowshotSettings,
    progress: Progress,
) -> Curve:
    """Train all classes of all samples together, at each cost, and score them on test and outside of the samples."""
    classes = len(targets.classes)
    sample = torch.from_numpy(np.concatenate(samples, axis=1))  # columns: sample by sample all classes
    used = (sample != 0).any(dim=1)
    signs = torch.where(sample[used] == 1, 1.0, -1.0).double()
    weights = torch.where(sample[used] == 1, settings.positive_weight, 1.0).double() * (sample[used] != 0)
    alphas = torch.zeros(len(settings.costs), int(used.sum()), sample.shape[1], dtype=torch.float64)
    unfinished, base = 0, progress.done
    found = solve_svms(axes._replace(rows=axes.rows[used]), signs, weights, settings.costs, settings.tolerance)
    for done, (place, solved) in enumerate(found, start=1):
        alphas[place] = solved.alpha
        unfinished += int((~solved.converged).sum())
        progress.update(base + done)
    test, outside = np.empty((2, len(settings.costs), len(samples)))
    for number in range(len(samples)):
        block = slice(number * classes, (number + 1) * classes)
        alpha = alphas[:, :, block].permute(1, 2, 0).flatten(1)  # class by class all costs
        on_test, on_train = decide(alpha, x[used], scored, x)
        rest = np.where(samples[number] == 0, targets.train, 0)  # what a class's sample holds is ignored
        test[:, number] = _mean_precision(on_test, targets.val, len(settings.costs))
        outside[:, number] = _mean_precision(on_train, rest.astype(np.int8), len(settings.costs))
    return Curve(test, outside, unfinished)


def _mean_precision(decision: Tensor, labels: Int8[np.ndarray, "N C"], costs: int) -> Float64[np.ndarray, " K"]:
    """Mean over classes of the average precision, per cost; a class of which nothing is left does not count."""
    found = []
    for k, column in enumerate(labels.T):
        kept = torch.from_numpy(column != 0)
        found.append(
            average_precision(decision[kept, k * costs : (k + 1) * costs], torch.from_numpy(column == 1)[kept])
        )
    mean: Float64[np.ndarray, " K"] = torch.stack(found).nanmean(dim=0).nan_to_num(0).numpy()
    return mean
