"""`swav classify`: a classifier on frozen features of one's own labelled images, what it is worth, and what it says of new images.

It is `linear` under protocol own (own.py, logistic.py, protocols/linear_own.py): the same features, folds, groups, near-duplicates and
choice of the cost. What is kept is the layer of all images to learn from. What is said of it: where there is a split for scoring, how
that very layer scores it; else, how layers that were made alike score the fold that they have not seen.
"""

import csv
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swav import signals
from swav.data.images import Images
from swav.data.sources.open import open_any
from swav.data.sources.pixels import decoding_of
from swav.errors import counted, printable
from swav.evaluation import own
from swav.evaluation.classifier import DESCRIPTION, Classifier, read_classifier
from swav.evaluation.classify_content import answers_of, confused, worth
from swav.evaluation.classify_request import (
    BENCH,
    check_classify_places,
    read_classify_request,
    refuse_joined_labels,
)
from swav.evaluation.places import open_data
from swav.evaluation.protocols import linear_own
from swav.evaluation.request import Request, refuse
from swav.evaluation.resources import dry_run_row, format_rows
from swav.evaluation.runner import announce_inputs, check_size, compare_decoding, task_of
from swav.evaluation.settings import LinearOwnSettings
from swav.evaluation.task import Task
from swav.feature_store import FeatureStore
from swav.features import EvaluationView
from swav.files import (
    FileLock,
    FolderGuard,
    make_below,
    out_folder,
    remove_leftovers,
    replaced_durably,
    warn,
    write_text_durably,
)
from swav.output import deliver, print_path, say
from swav.progress import Progress
from swav.reporting.classify_page import CONTENT, FORMAT, PAGE, PICTURES, format_classified, write_classify_page
from swav.system import environment_errors, pick_device, versions
from swav.weights import encoder
from swav.weights.sources import expanded

PREDICTIONS, SCORED = "predictions.csv", "scored.csv"
MOST_COLUMNS = 100  # classes up to which each has a column in PREDICTIONS


def classify(
    data: str | Path,
    *,
    weights: str | Path,
    out: str | Path,
    predict: str | Path | None = None,
    dry_run: bool = False,
    **settings: object,
) -> dict[str, Any]:
    """Make a classifier of labelled images on frozen features, say what it is worth, and use it on new images.

    A later call with the same weights, images and settings takes the classifier that is in `out`.

    Args:
        data: labelled images: train/ beside val/, class folders, or a CSV path,label[,split][,group].
        weights: a source that swav.load takes.
        out: folder for classifier.safetensors and classifier.json, classify.json, classify.html, scored.csv, predictions.csv, and the
            features.
        predict: a folder, a list or one image, whose classes go to predictions.csv (path, label, confidence; of at most 100 classes the
            probability of each too).
        dry_run: say what would be done; write nothing.
        settings: of `linear` under protocol own (`size`, `precision`, `linear={"costs": [0.1]}` ...), and what weight files of other
            projects do not say (see swav.config.WeightOptions).

    Returns:
        The content of classify.json; of a dry run nothing.

    Raises:
        ConfigError: a setting is wrong, or the weights name nothing.
        DataError: images or labels are missing, too few, or several per image.
        CheckpointError: the weights are damaged.
        MachineError: there is no such device, or the disk is full.
        Stopped: a signal asked for an end; the same call resumes from the features that are there.
    """
    began, out, root = time.monotonic(), out_folder(out), Path(data).expanduser()
    request = read_classify_request(expanded(str(weights)), settings)
    check_classify_places(request, root, out, predict, dry_run)
    with environment_errors(), signals.work():
        task, new = _opened(request, root, out, predict, dry_run)
        few = _few(task)
        if few:
            warn(few)
        if dry_run:
            _foretell(task, new, predict)
            return {}
        out.mkdir(parents=True, exist_ok=True)
        guard = FolderGuard(out)
        guard.check()
        with guard.explaining():
            task.encoder.to(task.device)
            classifier, content = _there(task) or _made(task, str(data), few, began)
            predicted = None if new is None else _predicted(task, classifier, new, out, predict)
            guard.check()
    deliver(format_classified(content))
    print_path(out / PAGE)
    if predicted is not None:
        print_path(predicted)
    elif _older(out / PREDICTIONS, out / DESCRIPTION):
        warn(f"{out / PREDICTIONS}: is of an earlier classifier than the one that is there; --predict makes it anew")
    return content


def _opened(
    request: Request, data: Path, out: Path, predict: str | Path | None, dry_run: bool
) -> tuple[Task[LinearOwnSettings], Images | None]:
    """The task, checked, and the images to predict: whatever is wrong is said before anything is computed."""
    cache = None if dry_run else out
    opened = open_data(request, data, cache)
    refuse(opened.problems)
    train, val = opened.splits[BENCH]
    refuse_joined_labels(data, train.classes or [])
    chosen = opened.chosen[BENCH]
    new = None
    if predict is not None:
        new = open_any(predict, cache).decoded(decoding_of(chosen.settings)).reading_as_pillow()
    (source,) = request.labels
    network = encoder.load(source, **request.options)
    announce_inputs([network], [train, val] if new is None else [train, val, new])
    task = task_of(network, (train, val), chosen, pick_device(chosen.settings.device), out)
    compare_decoding([network], [task.settings])
    check_size(BENCH, task)
    own.check(task)
    return task, new


def _older(path: Path, other: Path) -> bool:
    """Whether both files are there, and the first was written before the second."""
    try:
        return path.stat().st_mtime_ns < other.stat().st_mtime_ns
    except OSError:
        return False


def _few(task: Task[Any]) -> str:
    """Say which classes have fewer images, or groups, to learn from than there are folds; empty where none has."""
    labels, groups, classes = task.train.labels, task.train.groups, task.train.classes
    assert labels is not None and classes is not None
    things = "images" if groups is None else "groups"
    counts = {
        name: int((labels == k).sum() if groups is None else len(np.unique(groups[labels == k])))
        for k, name in enumerate(classes)
    }
    lacking = sorted((count, name) for name, count in counts.items() if count < own.FOLDS)
    if not lacking:
        return ""
    shown = ", ".join(f"{printable(name)} ({count})" for count, name in lacking[:5])
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    return (
        f"{counted(len(lacking), 'class')} with fewer {things} to learn from than the {own.FOLDS} folds: {shown}{more}; "
        + (
            "their numbers say little, and in a fold that holds all of a class it cannot be right"
            if task.in_folds
            else "the choice of the cost and the spread say little of them"
        )
    )


def _identity(task: Task[Any]) -> dict[str, Any]:
    return task.identity("classify", FORMAT)[0]


def _there(task: Task[Any]) -> tuple[Classifier, dict[str, Any]] | None:
    """The classifier of an earlier call of the same weights, images and settings, and what was said of it."""
    of = _identity(task)
    found = read_classifier(task.out, of)
    if found is None:
        return None
    try:
        content = json.loads((task.out / CONTENT).read_text(encoding="utf-8", errors="surrogateescape"))
        if content["format"] != FORMAT or content["of"] != found.of:
            return None
        if not all((task.out / name).is_file() for name in (PAGE, SCORED)):
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    say(f"classify: the classifier in {task.out} is of the same weights, images and settings; used as it is")
    return found, content


def _made(task: Task[LinearOwnSettings], data: str, few: str, began: float) -> tuple[Classifier, dict[str, Any]]:
    """Learn, score, and write all that is said of it."""
    known = own.labelled_features(task, "classify")
    steps = own.FOLDS + 1
    with Progress("classify: layers", steps) as progress:
        learn, made = linear_own.learner(task.settings), iter(range(1, steps + 1))

        def learn_and_say(*given: Any) -> linear_own.Layer:
            layer = learn(*given)
            progress.update(next(made, steps))
            return layer

        fitted = own.learned(task, known, learn_and_say)
        kept = fitted.whole or learn_and_say(known.features, known.labels, known.groups, None)
        progress.update(steps)
    assert task.train.classes is not None
    of, view = json.loads(json.dumps(_identity(task))), _view(task)
    classifier = Classifier(kept.layer, task.train.classes, of, view)
    answers = answers_of(fitted, known, task.num_classes)
    content = {"format": FORMAT, "data": data, "view": view, "of": of, "few": few, "versions": versions()}
    content |= worth(task, known, fitted, answers) | {"cost": kept.described()}
    make_below(task.out, task.out / PICTURES)
    with _lock(task.out, "classifier"):
        (task.out / PAGE).unlink(missing_ok=True)  # without it nothing is complete, should this be killed
        content["confused"] = confused(task, known, answers)
        content["seconds"] = round(time.monotonic() - began, 1)
        names, rows = task.train.classes, zip(known.names, known.truth, answers.said, answers.confidence, strict=True)
        table = ([name, names[true], names[its], f"{likely:.4f}"] for name, true, its, likely in rows)
        _write_csv(task.out / SCORED, ["path", "label", "predicted", "confidence"], table)
        classifier.save(task.out)
        remove_leftovers(task.out / CONTENT)
        write_text_durably(task.out / CONTENT, json.dumps(content, indent=1) + "\n")
        write_classify_page(task.out)
    signals.note_saved()
    return classifier, content


def _view(task: Task[Any]) -> dict[str, Any]:
    """What the classifier takes features of."""
    return {
        "weights": task.encoder.name,
        "weights_sha256": task.encoder.sha256,
        "network": task.encoder.architecture,
        "features": "global average of the last stage",
        "transform": "short side to 256/224 of the size, centre crop of the size",
        "size": task.settings.size,
        "mean": list(task.encoder.mean),
        "std": list(task.encoder.std),
        "precision": task.settings.precision,
    }


def _lock(out: Path, what: str) -> FileLock:
    return FileLock(out / PICTURES / ".lock", waiting_for=f"the {what} in {out}", base=out)


def _predicted(task: Task[Any], classifier: Classifier, images: Images, out: Path, predict: str | Path | None) -> Path:
    """Write predictions.csv; returns its path."""
    with Progress("predict: features", len(images)) as progress:
        features = FeatureStore(
            task.encoder,
            images,
            EvaluationView("centre", task.settings.size),
            out=out,
            device=task.device,
            workers=task.workers,
            precision=task.settings.precision,
        ).get(progress=progress)
    assert features.pooled is not None
    layer, classes = classifier.layer, classifier.classes
    likely = layer.probabilities(features.pooled.numpy())
    best = likely.argmax(axis=1)
    columns = range(len(layer.classes) if len(layer.classes) <= MOST_COLUMNS else 0)
    rows = (
        [images.name(i), classes[layer.classes[its]], f"{each[its]:.4f}", *(f"{each[k]:.4f}" for k in columns)]
        for i, its, each in zip(features.kept, best, likely, strict=True)
    )
    header = ["path", "label", "confidence", *(f"p({classes[layer.classes[k]]})" for k in columns)]
    with _lock(out, "predictions"):
        _write_csv(out / PREDICTIONS, header, rows)
    if bad := own.unreadable(images, features.kept):
        count = counted(len(bad), "file")
        warn(f"{printable(str(predict))}: {count} without a prediction, as they cannot be read: {own.examples_of(bad)}")
    return out / PREDICTIONS


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Replace a table in one step, row by row: it may be too long for the memory. Only for the holder of the folder's lock."""
    remove_leftovers(path)
    with (
        replaced_durably(path) as beside,
        beside.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _foretell(task: Task[LinearOwnSettings], new: Images | None, predict: str | Path | None) -> None:
    """Say what would be done."""
    row = dry_run_row(BENCH, task, linear_own.estimate_resources(task)).model_copy(update={"bench": "classify"})
    labels = task.train.labels
    assert labels is not None
    sizes = np.bincount(labels, minlength=task.num_classes)
    lines = [f"{counted(task.num_classes, 'class')}, of {sizes.min()} to {sizes.max()} images to learn from"]
    if task.train.groups is not None:
        lines.append(f"{counted(len(np.unique(task.train.groups)), 'group')}, each in one fold")
    if new is not None:
        lines.append(f"predict: {counted(len(new), 'image')} of {printable(str(predict))}")
    deliver("\n".join([*lines, format_rows([row]), f"nothing was written; {task.out} would hold the classifier"]))
