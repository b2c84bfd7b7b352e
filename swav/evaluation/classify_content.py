"""What a classifier is worth, as classify.json has it: numbers, classes, what is taken for what, and pictures of that."""

import dataclasses
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64
from PIL import Image

from swav.data.images import Images, Unreadable
from swav.evaluation import own
from swav.evaluation.pictures import write_picture
from swav.evaluation.protocols.linear_own import Layer
from swav.evaluation.task import Task
from swav.reporting.classify_page import PICTURES
from swav.results import confusion
from swav.results.intervals import Groups, of_share

PAIRS, EXAMPLES = 10, 6  # pairs of confused classes on the page, and pictures of each
PICTURE_SIDE = 160  # of such a picture, the longer one [pixels]
METRICS: dict[str, Callable[[confusion.Counts], float]] = {
    "top-1": confusion.top1,
    "balanced accuracy": confusion.balanced_accuracy,
    "macro-F1": confusion.macro_f1,
}


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was said of the scored images.

    Attributes:
        said, confidence: the likeliest class of each, and how likely it is, 0..1.
        counts: images by class and answer.
        parts: these counts, of each part.
    """

    said: Int64[np.ndarray, " M"]
    confidence: Float64[np.ndarray, " M"]
    counts: confusion.Counts
    parts: list[confusion.Counts]


def answers_of(fitted: own.Learned[Layer], known: own.LabelledFeatures, classes: int) -> Answers:
    """Answer every scored image once: by the layer of all images where there is a split for scoring, else by that which lacks it."""
    said, confidence = np.zeros(len(known.truth), np.int64), np.zeros(len(known.truth))
    parts = []
    for model, here in zip(fitted.models, fitted.parts, strict=True):
        its, likely = model.layer.answers(known.asked[here])
        parts.append(confusion.confusion(known.truth[here], its, classes))
        if fitted.whole is None:
            said[here], confidence[here] = its, likely
    if fitted.whole is not None:
        said, confidence = fitted.whole.layer.answers(known.asked)
    return Answers(said, confidence, confusion.confusion(known.truth, said, classes), parts)


def worth(task: Task[Any], known: own.LabelledFeatures, fitted: own.Learned[Layer], answers: Answers) -> dict[str, Any]:
    """Everything of classify.json that follows from the answers, but pictures."""
    classes = task.train.classes
    assert classes is not None
    lost = own.unreadable(task.val, known.asked_places)
    if not task.in_folds:
        lost += own.unreadable(task.train, known.places)
    return {
        "notes": [task.train.note] if task.in_folds else [task.train.note, task.val.note],
        "scored": f"in {len(fitted.models)} folds" if task.in_folds else "on the split for scoring",
        "images": {"learned": len(known.labels), "scored": len(known.truth), "unreadable": len(lost)},
        "classes": classes,
        "groups": None if known.groups is None else len(np.unique(known.groups)),
        "most frequent class": 100 * float(np.bincount(known.truth).max() / len(known.truth)),
        "metrics": _metrics(known, answers),
        "costs of the folds": [model.layer.cost for model in fitted.models],
        "per class": _per_class(classes, known, answers),
        "confusion": answers.counts.tolist(),
        "near-duplicates": own.near_duplicates_of(task, known)
        | {"said": own.described_copies(task, known) if known.copies.pairs else ""},
    }


def _metrics(known: own.LabelledFeatures, answers: Answers) -> dict[str, dict[str, Any]]:
    """Value, its mean and spread over the parts [%]; of top-1 the 95 % interval too."""
    found: dict[str, dict[str, Any]] = {}
    for name, metric in METRICS.items():
        values = [100 * metric(part) for part in answers.parts]
        found[name] = {
            "value": 100 * metric(answers.counts),
            "mean": statistics.fmean(values),
            "spread": statistics.stdev(values),
            "parts": values,
        }
    found["top-1"]["interval"] = _percents(answers.said == known.truth, known.asked_groups)
    return found


def _percents(right: Bool[np.ndarray, " N"], groups: Groups) -> list[float]:
    return [100 * end for end in of_share(right, groups)]


def _per_class(classes: list[str], known: own.LabelledFeatures, answers: Answers) -> list[dict[str, Any]]:
    """Numbers of each class [%]; None of one that was not scored, or that nothing was taken for."""

    def percent(share: float) -> float | None:
        return None if np.isnan(share) else 100 * float(share)

    counts, groups = answers.counts, known.asked_groups
    recall, precision, f1 = confusion.recall(counts), confusion.precision(counts), confusion.f1(counts)
    rows = []
    for k, name in enumerate(classes):
        members = known.truth == k
        right, its_groups = answers.said[members] == k, None if groups is None else groups[members]
        rows.append(
            {
                "class": name,
                "learned": int((known.labels == k).sum()),
                "scored": len(right),
                "right": int(right.sum()),
                "recall": percent(recall[k]),
                "interval": _percents(right, its_groups) if len(right) else None,
                "precision": percent(precision[k]),
                "F1": percent(f1[k]),
            }
        )
    return rows


def confused(task: Task[Any], known: own.LabelledFeatures, answers: Answers) -> list[dict[str, Any]]:
    """The most confused pairs with their surest images, whose pictures are written. Only for the holder of the folder's lock."""
    folder, classes = task.out / PICTURES, task.train.classes or []
    for old in folder.glob("*.webp"):
        old.unlink(missing_ok=True)
    rows = []
    for number, (truth, wrong, count) in enumerate(confusion.most_confused(answers.counts, PAIRS), start=1):
        members = np.flatnonzero((known.truth == truth) & (answers.said == wrong))
        surest = members[np.argsort(-answers.confidence[members], kind="stable")][:EXAMPLES].tolist()
        examples = []
        for place, i in enumerate(surest, start=1):
            example = {"path": known.names[i], "confidence": float(answers.confidence[i]), "picture": None}
            picture = f"{number:02}-{place}.webp"
            if _keep_picture(task.val, int(known.asked_places[i]), folder / picture):
                example["picture"] = f"{PICTURES}/{picture}"
            examples.append(example)
        whole = int(answers.counts[truth].sum())
        pair = {"class": classes[truth], "taken for": classes[wrong], "count": count, "of": whole}
        rows.append(pair | {"examples": examples})
    return rows


def _keep_picture(images: Images, place: int, path: Path) -> bool:
    """Write a small picture of an image; False where it cannot be read any more."""
    try:
        picture = Image.fromarray(images.read(place))
    except Unreadable:
        return False
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    write_picture(path, np.array(picture))
    return True
