"""What a classifier is worth, from OUT/classify.json: as text for the terminal, and as classify.html, one file that opens offline.

The page has no script and loads nothing: its pictures are in it. The template escapes every value.
"""

import base64
import datetime
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swav.errors import DataError, counted, printable
from swav.files import remove_leftovers, replaced_durably
from swav.results.console import aligned
from swav.results.render import html_templates
from swav.version import swav_version

CONTENT, PAGE, PICTURES = "classify.json", "classify.html", "classify"
FORMAT = 1  # of classify.json
CLASSES, CONFUSED = 20, 5  # classes and confused pairs on a terminal; the page shows all
MATRIX = 60  # classes up to which the page shows the whole table; of more it shows the most confused


def format_classified(content: Mapping[str, Any]) -> str:
    """Format what a classifier is worth: numbers, classes, and what it takes for what."""
    images = content["images"]
    head = (
        f"{counted(images['scored'], 'image')} of {counted(len(content['classes']), 'class')} scored {content['scored']}, "
        f"C={content['cost']['cost']:g}; the most frequent class is {content['most frequent class']:.1f} % of them"
    )
    table = [["[%]", "value", "95 % interval", "mean of parts", "spread"]]
    for name, its in content["metrics"].items():
        table.append([name, f"{its['value']:.1f}", _interval(its), f"{its['mean']:.1f}", f"{its['spread']:.1f}"])
    lines = [head, "", *aligned(table, left=1), "", *aligned(_class_rows(content["per class"]), left=1)]
    hidden = len(content["per class"]) - CLASSES
    lines += [f"and {counted(hidden, 'class')} of the same or a higher recall, in {CONTENT}"] if hidden > 0 else []
    lines += [
        f"{printable(pair['class'])} taken for {printable(pair['taken for'])}: {pair['count']} of {pair['of']}"
        for pair in content["confused"][:CONFUSED]
    ]
    return "\n".join(lines)


def _class_rows(classes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row per class; of many those of the lowest recall."""
    if len(classes) > CLASSES:
        classes = sorted(classes, key=lambda row: 101 if row["recall"] is None else row["recall"])[:CLASSES]
    rows = [["class", "scored", "recall", "precision", "F1"]]
    for row in classes:
        numbers = [_number(row[key]) for key in ("recall", "precision", "F1")]
        rows.append([printable(row["class"]), f"{row['scored']:,}", *numbers])
    return rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _interval(row: Mapping[str, Any]) -> str:
    found = row.get("interval")
    return "-" if found is None else f"{found[0]:.1f} to {found[1]:.1f}"


def write_classify_page(folder: Path) -> Path:
    """Write classify.html beside the classify.json that it shows. Only for the holder of the folder's lock.

    Raises:
        DataError: there is no classify.json, or it is none.
    """
    try:
        content = json.loads((folder / CONTENT).read_text(encoding="utf-8", errors="surrogateescape"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}")
        shown = _shown(content, folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{folder / CONTENT}: expected what swav classify has written, found {type(error).__name__} ({error}); run it again"
        ) from None
    html = html_templates(Path(__file__).parent / "templates").get_template("classify.html").render(shown)
    remove_leftovers(folder / PAGE)
    with replaced_durably(folder / PAGE) as beside:
        beside.write_bytes(html.encode("utf-8", errors="backslashreplace"))
    return folder / PAGE


def _shown(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    images, view, top = content["images"], content["view"], content["metrics"]["top-1"]
    unread = f", {images['unreadable']} could not be read" if images["unreadable"] else ""
    costs = Counter(content["costs of the folds"])
    facts = [
        ("Images", f"{'; '.join(content['notes'])}{unread}"),
        ("Weights", f"{view['weights']}, SHA-256 {view['weights_sha256'][:12]}…"),
        ("View", f"{view['size']} pixels, {view['transform']}"),
        ("Layer", "logistic regression on standardised features"),
        ("Cost", f"C={content['cost']['cost']:g}, chosen by folds; of the layers that each lack one: " + _costs(costs)),
        ("Learned", f"{images['learned']:,} images" + _groups(content["groups"])),
        ("Scored", f"{images['scored']:,} images, {content['scored']}"),
    ]
    return {
        "title": os.path.basename(content["data"].rstrip("/")) or content["data"],  # noqa: PTH119  # it may be no path of this machine
        "headline": f"{top['value']:.1f} % right",
        "interval": _interval(top),
        "beside": f"{content['most frequent class']:.1f}",
        "beats": top["interval"][0] > content["most frequent class"],
        "facts": facts,
        "warnings": [words for words in (content["few"], content["near-duplicates"]["said"]) if words],
        "parts": f"the {counted(len(top['parts']), 'fold')}"
        if content["scored"].startswith("in ")
        else f"{len(top['parts'])} layers that each lack one of as many parts of the images to learn from",
        "metrics": [
            {"name": name, "interval": _interval(its)} | {key: f"{its[key]:.1f}" for key in ("value", "mean", "spread")}
            for name, its in content["metrics"].items()
        ],
        "classes": [
            row | {"interval": _interval(row)} | {key: _number(row[key]) for key in ("recall", "precision", "F1")}
            for row in content["per class"]
        ],
        "matrix": _matrix(content),
        "confused": [pair | {"examples": _examples(pair["examples"], folder)} for pair in content["confused"]],
        "version": swav_version(),
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


def _costs(counts: Mapping[float, int]) -> str:
    return ", ".join(f"{cost:g} ({count}×)" for cost, count in sorted(counts.items()))


def _groups(count: int | None) -> str:
    return "" if count is None else f" in {counted(count, 'group')}, each in one fold"


def _matrix(content: Mapping[str, Any]) -> dict[str, Any]:
    """The table of confusions; of very many classes those rows and columns that occur in the most confused pairs."""
    names, counts = content["classes"], content["confusion"]
    kept = list(range(len(names)))
    if len(kept) > MATRIX:
        pairs = {name for pair in content["confused"] for name in (pair["class"], pair["taken for"])}
        kept = [k for k in kept if names[k] in pairs]
    rows = []
    for k in kept:
        whole = max(1, sum(counts[k]))
        cells = [
            {"count": counts[k][j], "tone": round(100 * counts[k][j] / whole), "right": j == k, "for": names[j]}
            for j in kept
        ]
        rows.append({"name": names[k], "cells": cells})
    return {"names": [names[k] for k in kept], "rows": rows, "all": len(kept) == len(names)}


def _examples(examples: Sequence[Mapping[str, Any]], folder: Path) -> list[dict[str, str]]:
    """Pictures as data, by the files that are there."""
    found = []
    for example in examples:
        source = ""
        name = example["picture"]
        if isinstance(name, str) and (path := folder / PICTURES / Path(name).name).is_file():
            source = "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
        found.append({"source": source, "path": example["path"], "confidence": f"{100 * example['confidence']:.0f}"})
    return found
