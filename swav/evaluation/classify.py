"""`swav classify`: a classifier on frozen features of one's own labelled images, what it is worth, and what it says of new images.

It is `linear` under protocol own (own.py, logistic.py, protocols/linear_own.py): the same features, folds, groups, near-duplicates and
choice of the cost. What is kept is the layer of all images to learn from. What is said of it: where there is a split for scoring, how
that very layer scores it; else, how layers that were made alike score the fold that they have not seen.
"""

import csv
import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from PIL import Image

from swav import signals
from swav.data.images import Images, Unreadable
from swav.data.sources.open import open_any
from swav.data.sources.pixels import decoding_of
from swav.errors import counted, printable
from swav.evaluation import own
from swav.evaluation.classifier import Classifier, read_classifier
from swav.evaluation.classify_request import (
    BENCH,
    check_classify_places,
    read_classify_request,
    refuse_joined_labels,
)
from swav.evaluation.logistic import LogisticLayer
from swav.evaluation.places import open_data
from swav.evaluation.protocols import linear_own
from swav.evaluation.request import Request, refuse
from swav.evaluation.resources import dry_run_row, format_rows
from swav.evaluation.runner import check_size, compare_decoding, task_of
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
    warn,
    write_durably,
    write_text_durably,
)
from swav.output import deliver, say
from swav.progress import Progress
from swav.reporting.classify_page import CONTENT, FORMAT, PAGE, PICTURES, format_classified, write_classify_page
from swav.results import confusion
from swav.results.intervals import wilson
from swav.system import environment_errors, pick_device, versions
from swav.weights import encoder
from swav.weights.sources import expanded

PREDICTIONS, SCORED = "predictions.csv", "scored.csv"
PAIRS, EXAMPLES = 10, 6  # of classes that are confused, and of pictures of each, on the page
PICTURE_SIDE = 160  # of such a picture, the longer one [pixels]
METRICS: dict[str, Callable[[confusion.Counts], float]] = {
    "top-1": confusion.top1,
    "balanced accuracy": confusion.balanced_accuracy,
    "macro-F1": confusion.macro_f1,
}


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
        predict: a folder, a list or one image, whose classes go to predictions.csv (path, label, confidence).
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
            predicted = "" if new is None else _predicted(task, classifier, new, out, predict)
            guard.check()
    lines = [format_classified(content), str(out / PAGE), predicted]
    deliver("\n".join(filter(None, lines)))
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
    if network.provenance:
        say(network.provenance)
    for note in dict.fromkeys(split.note for split in (train, val) if split.left_out):
        say(f"data: {note}")
    task = task_of(network, (train, val), chosen, pick_device(chosen.settings.device), out)
    compare_decoding([network], [task.settings])
    check_size(BENCH, task)
    own.check(task)
    return task, new


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
        "their numbers say little, and in a fold that holds all of a class it cannot be right"
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
    parts = [_answers(model.layer, known, here) for model, here in zip(fitted.models, fitted.parts, strict=True)]
    if fitted.whole is not None:
        said, confidence = fitted.whole.layer.answers(known.asked)
    else:
        said, confidence = np.zeros(len(known.truth), np.int64), np.zeros(len(known.truth))
        for here, (its, likely) in zip(fitted.parts, parts, strict=True):
            said[here], confidence[here] = its, likely
    of = json.loads(json.dumps(_identity(task)))
    assert task.train.classes is not None
    view = {
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
    classifier = Classifier(kept.layer, task.train.classes, of, view)
    counts = confusion.confusion(known.truth, said, task.num_classes)
    numbers = [
        confusion.confusion(known.truth[here], its, task.num_classes)
        for here, (its, _) in zip(fitted.parts, parts, strict=True)
    ]
    content = {
        "format": FORMAT,
        "data": data,
        "notes": [task.train.note] if task.in_folds else [task.train.note, task.val.note],
        "view": view,
        "scored": f"in {len(fitted.models)} folds" if task.in_folds else "on the split for scoring",
        "images": {"learned": len(known.labels), "scored": len(known.truth), "unreadable": _unreadable(task, known)},
        "classes": task.train.classes,
        "groups": None if known.groups is None else len(np.unique(known.groups)),
        "most frequent class": 100 * float(np.bincount(known.truth).max() / len(known.truth)),
        "metrics": _metrics(task, known, said == known.truth, counts, numbers),
        "cost": kept.described(),
        "costs of the folds": [model.layer.cost for model in fitted.models],
        "per class": _per_class(task.train.classes, known.labels, counts),
        "confusion": counts.tolist(),
        "few": few,
        "near-duplicates": own.near_duplicates_of(task, known)
        | {"said": own.described_copies(task, known) if known.copies.pairs else ""},
        "versions": versions(),
        "of": of,
    }
    make_below(task.out, task.out / PICTURES)
    with FileLock(task.out / PICTURES / ".lock", waiting_for=f"the classifier in {task.out}", base=task.out):
        content["confused"] = _confused(task, known, said, confidence, counts)
        content["seconds"] = round(time.monotonic() - began, 1)
        rows = zip(known.names, known.truth.tolist(), said.tolist(), confidence.tolist(), strict=True)
        names = task.train.classes
        table = [[name, names[true], names[its], f"{likely:.4f}"] for name, true, its, likely in rows]
        _write_csv(task.out / SCORED, ["path", "label", "predicted", "confidence"], table)
        classifier.save(task.out)
        remove_leftovers(task.out / CONTENT)
        write_text_durably(task.out / CONTENT, json.dumps(content, indent=1) + "\n")
        write_classify_page(task.out)
    signals.note_saved()
    return classifier, content


def _answers(
    layer: LogisticLayer, known: own.LabelledFeatures, here: Bool[np.ndarray, " M"]
) -> tuple[Int64[np.ndarray, " m"], Float64[np.ndarray, " m"]]:
    return layer.answers(known.asked[here])


def _unreadable(task: Task[Any], known: own.LabelledFeatures) -> int:
    """Images of both splits that were left out."""
    splits = {id(split): split for split in (task.train, task.val)}.values()
    read = len(known.places) + (0 if task.in_folds else len(known.asked_places))
    return sum(map(len, splits)) - read


def _metrics(
    task: Task[Any],
    known: own.LabelledFeatures,
    right: Bool[np.ndarray, " M"],
    counts: confusion.Counts,
    parts: list[confusion.Counts],
) -> dict[str, dict[str, Any]]:
    """Value, its mean and spread over the parts [%]; of top-1 the 95 % interval too."""
    found: dict[str, dict[str, Any]] = {}
    for name, metric in METRICS.items():
        values = [100 * metric(part) for part in parts]
        found[name] = {
            "value": 100 * metric(counts),
            "mean": statistics.fmean(values),
            "spread": statistics.stdev(values),
            "parts": values,
        }
    found["top-1"]["interval"] = [100 * end for end in own.interval_of(task, known, right)]
    return found


def _per_class(classes: list[str], labels: Int64[np.ndarray, " N"], counts: confusion.Counts) -> list[dict[str, Any]]:
    """Numbers of each class [%]; None of one that was not scored, or that nothing was taken for."""

    def percent(share: float) -> float | None:
        return None if np.isnan(share) else 100 * float(share)

    recall, precision, f1 = confusion.recall(counts), confusion.precision(counts), confusion.f1(counts)
    rows = []
    for k, name in enumerate(classes):
        scored, right = int(counts[k].sum()), int(counts[k, k])
        rows.append(
            {
                "class": name,
                "learned": int((labels == k).sum()),
                "scored": scored,
                "right": right,
                "recall": percent(recall[k]),
                "interval": [100 * end for end in wilson(right, scored)] if scored else None,
                "precision": percent(precision[k]),
                "F1": percent(f1[k]),
            }
        )
    return rows


def _confused(
    task: Task[Any],
    known: own.LabelledFeatures,
    said: Int64[np.ndarray, " M"],
    confidence: Float64[np.ndarray, " M"],
    counts: confusion.Counts,
) -> list[dict[str, Any]]:
    """The most confused pairs with their surest images, whose pictures are written."""
    folder, classes = task.out / PICTURES, task.train.classes or []
    for old in folder.glob("*.jpg"):
        old.unlink(missing_ok=True)
    rows = []
    for number, (truth, wrong, count) in enumerate(confusion.most_confused(counts, PAIRS), start=1):
        members = np.flatnonzero((known.truth == truth) & (said == wrong))
        examples = []
        for place, i in enumerate(
            members[np.argsort(-confidence[members], kind="stable")][:EXAMPLES].tolist(), start=1
        ):
            example = {"path": known.names[i], "confidence": float(confidence[i]), "picture": None}
            picture = f"{number:02}-{place}.jpg"
            if _write_picture(task.val, int(known.asked_places[i]), folder / picture):
                example["picture"] = f"{PICTURES}/{picture}"
            examples.append(example)
        rows.append({"class": classes[truth], "taken for": classes[wrong], "count": count, "examples": examples})
    return rows


def _write_picture(images: Images, place: int, path: Path) -> bool:
    """Write a small picture of an image; False where it cannot be read any more."""
    try:
        picture = Image.fromarray(images.read(place))
    except Unreadable:
        return False
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=85)
    write_durably(path, written.getvalue())
    return True


def _predicted(task: Task[Any], classifier: Classifier, images: Images, out: Path, predict: str | Path | None) -> str:
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
    said, confidence = classifier.layer.answers(features.pooled.numpy())
    names = [images.name(i) for i in features.kept]
    rows = [
        [name, classifier.classes[its], f"{likely:.4f}"]
        for name, its, likely in zip(names, said.tolist(), confidence.tolist(), strict=True)
    ]
    with FileLock(out / PICTURES / ".lock", waiting_for=f"the predictions in {out}", base=out):
        _write_csv(out / PREDICTIONS, ["path", "label", "confidence"], rows)
    unread = set(range(len(images))) - set(features.kept.tolist())
    bad = images.bad + [(images.name(i), "cannot be decoded") for i in sorted(unread)]
    if bad:
        first = "; ".join(f"{printable(name)}: {reason}" for name, reason in bad[:3])
        warn(
            f"{printable(str(predict))}: {counted(len(bad), 'file')} without a prediction, as it cannot be read: {first}"
        )
    return str(out / PREDICTIONS)


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator="\n")
    writer.writerows([header, *rows])
    remove_leftovers(path)
    write_text_durably(path, written.getvalue())


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
