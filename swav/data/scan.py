"""`swav data scan`: reads every image of a data set to the last pixel, once, and says what it found."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from swav.data.contrast import Look, findings, look, seen
from swav.data.images import Images
from swav.data.sample import sampled, threads_for
from swav.data.sources.decode import Unreadable, decode
from swav.data.sources.layouts import DataLayout, find_layout
from swav.data.sources.open import labelled_splits, open_images
from swav.data.sources.pixels import AS_STORED, Decoding
from swav.data.sources.walk import NOT_READ, UNPACK, warn_of_foreign
from swav.errors import DataError, counted, printable
from swav.progress import FIRST_SECONDS, Progress

EXAMPLES = 5  # of duplicates, and of unreadable files on the terminal
THREADS = 8  # they overlap the waiting for the disk
CHUNK = 256  # images between two reports of progress


class Reading(NamedTuple):
    """What reading an image to its end gave: a hash of its content if asked for, what it looks like, and the reason if it is
    unreadable."""

    digest: bytes | None
    look: Look | None
    reason: str | None


def scan(
    path: str | Path,
    cache: Path | None = None,
    how: Decoding = AS_STORED,
) -> dict[str, Any]:
    """Count images, formats, sizes, duplicates and unreadable files, and say what would be trained on and scored.

    Every image is decoded, as only this finds the truncated ones.

    Args:
        cache: folder for the index of headers; None: the user's cache folder.
        how: stored values become RGB.

    Returns:
        A dict that JSON can hold.

    Raises:
        DataError: there is no path, no image, no readable image.
    """
    layout = find_layout(path)
    images = open_images(layout, "all", cache).decoded(how)
    trained_on = open_images(layout, "train", cache) if layout.val else images
    readings = _read_all(images)
    unreadable = [*images.bad, *((images.name(i), r.reason) for i, r in enumerate(readings) if r.reason)]
    same = _duplicates(images, readings)
    faults = findings([reading.look for reading in readings if reading.look is not None], how, looked_at="")
    names_trained_on = {trained_on.name(i) for i in range(len(trained_on))}
    return {
        "path": str(path),
        "layout": layout.kind,
        "images": len(images),
        "bytes": _total_bytes(images),
        "trained_on": {
            "images": len(trained_on),
            "left_out": len(trained_on.bad),  # by their headers, before the first step
            "damaged": len({name for name, _ in unreadable} & names_trained_on),  # found so on the way
            "note": trained_on.note,
        },
        "scored": _scored(layout, cache),
        # of formats that are not read, those of the whole are said
        "warnings": [
            *(text for text in trained_on.warnings if text not in warn_of_foreign(trained_on.others)),
            *warn_of_foreign(images.others),
        ],
        "classes": _classes(images),
        "formats": _counts(images, "format"),
        "modes": _counts(images, "mode"),
        **{side: _spread(images.rows[side]) for side in ("width", "height")},
        "duplicates": {
            "files": sum(len(group) - 1 for group in same),
            "in_both_splits": sum(0 < sum(name in names_trained_on for name in group) < len(group) for group in same)
            if layout.val
            else 0,
            "examples": same[:EXAMPLES],
        },
        "faults": [finding._asdict() for finding in faults],
        "unreadable": [{"name": name, "reason": reason} for name, reason in unreadable],
        "passed_over": dict(sorted(images.others.items(), key=lambda item: (-item[1], item[0]))),
        "advice": {extension: NOT_READ[extension] for extension in sorted(images.others) if extension in NOT_READ},
    }


def render_scan(found: dict[str, Any]) -> str:
    """What `scan` returned, as lines for a terminal."""
    scored, classes, same = found["scored"], found["classes"], found["duplicates"]
    trained_on = f"{found['trained_on']['images']} images: {found['trained_on']['note']}" + _lacking(
        found["trained_on"]
    )
    rows = [
        ("images", f"{found['images']} in {_megabytes(found['bytes'])}"),
        ("trained on", trained_on),
        ("scored", f"{scored['images']} images: {scored['note']}" if scored["images"] else f"none: {scored['note']}"),
        *(("warning", text) for text in found["warnings"]),
        ("classes", _class_line(classes) if classes else "none"),
        ("formats", _count_line(found["formats"])),
        ("modes", _count_line(found["modes"])),
        *((side, "{min} to {max} pixels, median {median:g}".format(**found[side])) for side in ("width", "height")),
        ("duplicates", _duplicate_line(same)),
        *(("", " = ".join(printable(name) for name in group[:EXAMPLES])) for group in same["examples"]),
        ("unreadable", str(len(found["unreadable"]) or "none")),
        *(("", f"{printable(bad['name'])}: {bad['reason']}") for bad in found["unreadable"][:EXAMPLES]),
    ]
    if len(found["unreadable"]) > EXAMPLES:
        rows.append(("", f"and {len(found['unreadable']) - EXAMPLES} more (all with --json)"))
    if found["passed_over"]:
        rows.append(("other files", _count_line(found["passed_over"])))
    rows += [("warning", finding["text"]) for finding in found["faults"]]
    rows += [("", f"{ext} is not read: {advice}") for ext, advice in found["advice"].items() if advice == UNPACK]
    return "\n".join([printable(found["path"]), *(f"  {key:<12}{text}" for key, text in rows)])


def _read_all(images: Images) -> list[Reading]:
    sizes = images.rows["size"]
    values, counts = np.unique(sizes, return_counts=True)
    shared = np.isin(sizes, values[counts > 1])  # only files of the same size can have the same content
    closely = set(sampled(len(images)))
    readings: list[Reading] = []
    pool = ThreadPoolExecutor(threads_for(images.rows, THREADS))
    with Progress("reading images", len(images), delay=FIRST_SECONDS) as progress, pool:
        for start in range(0, len(images), CHUNK):
            chunk = range(start, min(start + CHUNK, len(images)))
            readings += pool.map(lambda i: _read(images, i, bool(shared[i]), i in closely), chunk)
            progress.update(chunk.stop)
    return readings


def _read(images: Images, i: int, hashed: bool, closely: bool) -> Reading:
    digest, name = None, images.name(i)
    try:
        content = images.read_bytes(i)
        digest = hashlib.sha256(content).digest() if hashed else None
        if images.in_memory:
            return Reading(digest, look(name, seen(images.read(i)), None), None)
        its = seen(decode(content, name, how=images.how))
        return Reading(digest, look(name, its, content, images.how, with_alpha=closely), None)
    except Unreadable as error:
        return Reading(digest, None, error.reason)


def _duplicates(images: Images, readings: list[Reading]) -> list[list[str]]:
    groups = defaultdict(list)
    for i, reading in enumerate(readings):
        if reading.digest is not None:
            groups[reading.digest].append(images.name(i))
    return [names for names in groups.values() if len(names) > 1]


def _lacking(trained_on: dict[str, Any]) -> str:
    """What cannot be read of the images to train on, as a run says it."""
    left_out, damaged = trained_on["left_out"], trained_on["damaged"]
    text = f"; {left_out} unreadable left out" if left_out else ""
    more = " more" if left_out else ""
    return text + (f"; {damaged}{more} damaged, in whose place others are read" if damaged else "")


def _scored(path: DataLayout, cache: Path | None) -> dict[str, Any]:
    try:
        score = labelled_splits(path, cache)[1]
    except DataError as error:
        return {"images": 0, "note": str(error)}
    return {"images": len(score), "note": score.note}


def _classes(images: Images) -> dict[str, Any] | None:
    if images.labels is None or images.classes is None:
        return None
    sizes = np.bincount(images.labels, minlength=len(images.classes)).tolist()
    return {"count": len(sizes), "images": dict(zip(images.classes, sizes, strict=True))}


def _total_bytes(images: Images) -> int:
    if not images.in_memory:
        return int(images.rows["size"].sum())
    return sum({images.name(i).partition("#")[0]: int(images.rows["size"][i]) for i in range(len(images))}.values())


def _counts(images: Images, field: str) -> dict[str, int]:
    counts = Counter(images.rows[field].tolist())
    return {value.decode(): count for value, count in counts.most_common()}


def _spread(values: Sequence[int] | np.ndarray) -> dict[str, float]:
    return {"min": int(np.min(values)), "median": float(np.median(values)), "max": int(np.max(values))}


def _count_line(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {printable(name) or 'without extension'}" for name, count in counts.items())


def _class_line(classes: dict[str, Any]) -> str:
    by_size = sorted(classes["images"].items(), key=lambda item: item[1])
    (least, fewest), (most, largest) = by_size[0], by_size[-1]
    return f"{classes['count']}, from {fewest} images ({printable(least)}) to {largest} ({printable(most)})"


def _duplicate_line(same: dict[str, Any]) -> str:
    if not same["files"]:
        return "none"
    leak = (
        f"; {same['in_both_splits']} times in both splits, which flatters the score" if same["in_both_splits"] else ""
    )
    count = same["files"]
    return f"{counted(count, 'file')} {'repeats' if count == 1 else 'repeat'} the content of another{leak}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
