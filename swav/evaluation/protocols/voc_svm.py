"""SVM: linear classifiers of VOC 2007 on the frozen features of every stage, and of the best one.

Data        PASCAL VOC 2007 classification: trained on trainval (5,011 images), scored on test (4,952), 20 classes, of which
            an image may show several. Images that show a class in hard to recognise form only ("difficult") are negatives
            of it in training, and left out of its score.
Transform   short side to 256, then both sides to 224, so that the shape is squeezed and nothing cut off. None other.
Layer       feature1 (stem, before max-pool) ... feature5 (last layer), pooled by the page's windows to 9216, 9216, 8192,
            9216, 8192 values of a ResNet-50; below 224 pixels adaptively to the same grids, of 12, 6, 4, 3, 2 a side. Of other
            backbones their own stages or blocks. Each row is divided by its length + 1e-5.
Classifier  per class: L2 penalty, squared hinge, bias as one more feature, positives at twice the cost.
Search      C of 1, 10, 100, 0.5^4 ... 0.5^19, per class: the best mean average precision (plain, as scikit-learn's) over 3
            stratified folds without shuffling; of equal ones the first.
Metric      mean over classes of the average precision under the envelope (all-point, not 11-point) [%]. `best layer` is the
            stage with the best test score, as published.
Seeds       none: nothing is drawn.
Source      MMSelfSup 0.x svm_voc07, after VISSL's.
Where we differ: the optimum itself, to 1e-5, instead of LIBLINEAR's iterate at tolerance 1e-4 or after 2,000 rounds, which
            depends on a random order; features are kept in float32 after the division.
Smoke       size 112, at most 2,000 + 2,000 images.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int8
from torch import Tensor

from swav.errors import DataError
from swav.evaluation.settings import SvmSettings
from swav.evaluation.stages import MultiLabelSplits, pooling, stage_name, write_log
from swav.evaluation.svm_solver import decide, principal_axes, solve_svms, unit_rows
from swav.evaluation.task import NoScore, ResourceEstimate, Score, Task
from swav.metrics import average_precision
from swav.progress import Progress


class StageSvms(NamedTuple):
    """What one stage's machines give.

    Attributes:
        precision: average precision on test, per class, 0..1.
        costs: chosen, per class.
        validated: mean average precision over the folds, per cost and class.
        unfinished: machines whose optimum is not certain.
    """

    precision: Float64[Tensor, " C"]
    costs: list[float]
    validated: Float64[Tensor, "K C"]
    unfinished: int


def check(task: Task[SvmSettings]) -> None:
    """Validate settings and data before any computation.

    Raises:
        ConfigError: the backbone has no stages.
        DataError: labels are not VOC's, or a class has too few images to be learned or scored.
    """
    _check_classes(task, MultiLabelSplits.of(task))


def _check_classes(task: Task[SvmSettings], targets: MultiLabelSplits) -> None:
    for split, labels, need in (("training", targets.train, task.settings.folds), ("scored", targets.val, 1)):
        few = {name: int(n) for name, n in zip(targets.classes, (labels == 1).sum(axis=0), strict=True) if n < need}
        if few:
            name, found = next(iter(few.items()))
            raise DataError(
                f"{task.train.root}: expected at least {need} {split} images of each class, found {found} of {name}"
                f"{f' and too few of {len(few) - 1} others' if len(few) > 1 else ''}; use more images"
            )


def estimate_resources(task: Task[SvmSettings]) -> ResourceEstimate:
    """Estimate resources. 1,520 machines of 5,011 rows took 38.7 s (benchmarks/results/svm.md); of few rows most of the time is
    that of scores for the choice of costs, a millisecond each.
    """
    settings, rows = task.settings, len(task.train)
    both, values = rows + len(task.val), task.stage_values()
    machines = len(settings.costs) * (settings.folds + 1) * len(task.train.classes or [])
    return ResourceEstimate(
        both,
        solving=len(values) * machines * (1e-3 + 38.7 / 1520 * (rows / 5011) ** 2),
        memory=4 * both * max(values) + 40 * rows**2,  # a stage's features; matrices between all rows in float64
        disk=4 * both * sum(values),
    )


def run(task: Task[SvmSettings]) -> list[Score | NoScore]:
    """Scores one encoder; a row per stage, and one for the best.

    Raises:
        ConfigError: the backbone has no stages.
        DataError: no image of a split can be read, or those of a class are too few.
    """
    check(task)
    settings, targets = task.settings, MultiLabelSplits.of(task)
    train, score = task.features("svm: features", stages=True, pooled=False, view="squeezed")
    labels, truth = targets.train[train.kept], targets.val[score.kept]
    _check_classes(task, MultiLabelSplits(labels, truth, targets.classes))  # without those that could not be read
    layers: list[StageSvms] = []
    with Progress("svm", len(train.stages) * len(settings.costs)) as progress:
        for x, scored in zip(train.stages, score.stages, strict=True):
            layers.append(score_stage(unit_rows(x), labels, unit_rows(scored), truth, settings, progress))
    means = [100 * float(layer.precision.mean()) for layer in layers]
    deviations = task.deviations(len(labels), len(truth), *filter(None, [pooling(task)]))
    names = [stage_name(task.encoder, i) for i in range(len(layers))]
    rows: dict[str, Any] = {
        name: {
            "mAP": mean,
            "unfinished": layer.unfinished,
            "AP": dict(zip(targets.classes, (100 * layer.precision).tolist(), strict=True)),
            "cost": dict(zip(targets.classes, layer.costs, strict=True)),
            "validated": dict(zip(map(str, settings.costs), (100 * layer.validated).tolist(), strict=True)),
        }
        for name, mean, layer in zip(names, means, layers, strict=True)
    }
    log = write_log(task, "svm", rows)
    best = int(np.argmax(means))
    return [
        Score(
            f"mAP {name}",
            means[place],
            len(truth),
            "; ".join(part for part in (deviations, _doubt(layers[place], settings)) if part),
            log,
        )
        for name, place in [*((name, i) for i, name in enumerate(names)), ("best layer", best)]
    ]


def _doubt(layer: StageSvms, settings: SvmSettings) -> str:
    if not layer.unfinished:
        return ""
    total = layer.validated.numel() * (settings.folds + 1)
    return f"{layer.unfinished} of {total} machines did not converge to svm.tolerance={settings.tolerance:g}"


def score_stage(
    x: Tensor, labels: Int8[np.ndarray, "N C"], scored: Tensor, truth: Int8[np.ndarray, "M C"], settings: SvmSettings,
    progress: Progress,
) -> StageSvms:  # fmt: skip
    """Choose the cost of each class by cross-validation and score the SVMs of all training rows."""
    from sklearn.metrics import average_precision_score  # a second to import, which other benchmarks need not pay
    from sklearn.model_selection import StratifiedKFold

    positive = torch.from_numpy(labels == 1)
    folds = torch.empty(positive.shape, dtype=torch.int64)  # the one that tests a row, for each class by itself
    for k, column in enumerate(positive.T.numpy()):
        for fold, (_, held) in enumerate(StratifiedKFold(settings.folds).split(column, column)):
            folds[held, k] = fold
    count, classes = positive.shape
    # columns: fold by fold all classes without that fold's rows, then all classes with all rows
    signs = torch.where(positive, 1.0, -1.0).double()
    share = torch.where(positive, settings.positive_weight, 1.0).double()
    masks = [folds != fold for fold in range(settings.folds)] + [torch.ones_like(positive)]
    weights = torch.cat([share * mask for mask in masks], dim=1)
    validated = torch.zeros(len(settings.costs), classes, dtype=torch.float64)
    alphas = torch.empty(len(settings.costs), count, classes, dtype=torch.float64)
    unfinished, base = 0, progress.done
    found = solve_svms(principal_axes(x), signs.repeat(1, len(masks)), weights, settings.costs, settings.tolerance)
    for done, (place, solved) in enumerate(found, start=1):
        for fold in range(settings.folds):
            decision = solved.decision[:, fold * classes : (fold + 1) * classes]
            for k in range(classes):
                held = folds[:, k] == fold
                validated[place, k] += average_precision_score(positive[held, k], decision[held, k]) / settings.folds
        alphas[place] = solved.alpha[:, -classes:]
        unfinished += int((~solved.converged).sum())
        progress.update(base + done)
    chosen = torch.from_numpy(validated.numpy().argmax(axis=0))  # numpy's is the first of equal ones
    alpha = alphas[chosen, :, torch.arange(classes)].T
    (decision,) = decide(alpha, x, scored)
    precision = [
        average_precision(decision[kept, k : k + 1], torch.from_numpy(truth[:, k] == 1)[kept])
        for k in range(classes)
        for kept in [torch.from_numpy(truth[:, k] != 0)]
    ]
    return StageSvms(torch.cat(precision), [settings.costs[i] for i in chosen.tolist()], validated, unfinished)
