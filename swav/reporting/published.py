"""Numbers of papers and model zoos (published.toml), which stand beside one's own in the benchmark tables.

No number is in code: the file has them, each with its document, table and row. No torch here.
"""

import dataclasses
import functools
import importlib.resources
import re
import tomllib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from swav.errors import DataError, did_you_mean

FILE = "published.toml"
_STAGE = r"(feature\d+( \(.+\))?|best layer)"  # a name in brackets: stages of trunks that are no ResNets

# The metrics of each benchmark, named as `swav bench` writes them into results.json.
METRICS = {
    "svm": rf"mAP {_STAGE}",
    "lowshot": r"mAP k=\d+( feature\d+)?",
    "linear-stages": rf"top-[15] {_STAGE}",
    "linear": r"top-[15]",
    "places205": rf"top-[15] {_STAGE}",
    "inat18": rf"top-[15] {_STAGE}",
    "knn": r"top-[15] k=\d+",
    "detect-voc": r"AP(50|75)?",
    "detect-coco": r"(box|mask) AP(50|75)?",
    "segment-voc": r"mIoU",
    "segment-cityscapes": r"mIoU",
    "semisup": r"top-[15] (1|10|100)%",
}


@dataclasses.dataclass(frozen=True)
class Published:
    """One network's published numbers.

    Attributes:
        label: how it is shown; no other row has it.
        method, backbone: what was trained.
        source: document, table and row.
        values: benchmark -> metric -> number [%].
        epochs, batch: of the pre-training; None where unknown, or where labels were used.
        page: whether it is the row of the page that the suite fills.
        note: where its protocol differs from ours, or empty.
        config: the source's own name of it, or empty.
        url: of the source, or empty.
    """

    label: str
    method: str
    backbone: str
    source: str
    values: Mapping[str, Mapping[str, float]]
    epochs: int | None = None
    batch: int | None = None
    page: bool = False
    note: str = ""
    config: str = ""
    url: str = ""


_REQUIRED: dict[str, type] = {"label": str, "method": str, "backbone": str, "source": str, "values": dict}
_OPTIONAL: dict[str, type] = {"epochs": int, "batch": int, "page": bool, "note": str, "config": str, "url": str}
_SHOWN: dict[type, str] = {str: "a text", dict: "a table", int: "a positive whole number", bool: "true or false"}


@functools.cache
def read_published() -> tuple[Published, ...]:
    """All rows of the packaged file, in its order; the page's is the first.

    Raises:
        DataError: as parse_published.
    """
    return parse_published(importlib.resources.files("swav").joinpath(FILE).read_text(encoding="utf-8"))


def page_row() -> Published:
    """The row of the page that `swav bench all` fills."""
    return read_published()[0]


def parse_published(text: str) -> tuple[Published, ...]:
    """Rows of a text in the format of published.toml.

    Raises:
        DataError: not TOML; a field that is missing, unknown or of another type; an unknown benchmark or metric; a value
            that is no percentage; a label twice; any row but the first, or not the first, is the page's.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise DataError(f"{FILE}: expected TOML, found: {error}") from None
    found = content.get("row")
    if (
        set(content) != {"row"}
        or not isinstance(found, list)
        or not all(isinstance(row, dict) for row in found or [None])
    ):
        raise DataError(f"{FILE}: expected tables [[row]] and nothing else, found {', '.join(content) or 'nothing'}")
    rows = tuple(_row(row, place) for place, row in enumerate(found, start=1))
    labels = [row.label for row in rows]
    for place, label in enumerate(labels):
        if label in labels[:place]:
            raise DataError(f"{FILE}: expected every label once, found '{label}' twice")
    if [row.page for row in rows] != [place == 0 for place in range(len(rows))]:
        raise DataError(f"{FILE}: expected 'page = true' in the first row only, found it in {_pages(rows)}")
    return rows


def _row(row: Mapping[str, Any], place: int) -> Published:
    where = f"{FILE}, row {place} ({row.get('label', 'without label')})"
    fields = _REQUIRED | _OPTIONAL
    for name in row:
        if name not in fields:
            raise DataError(f"{where}: unknown field '{name}'{did_you_mean(name, fields)}")
    for name, kind in fields.items():
        if name not in row and name in _OPTIONAL:
            continue
        if not _says_something(row.get(name), kind):
            raise DataError(f"{where}: {name}: expected {_SHOWN[kind]}, found {row.get(name)!r}")
    values = {bench: MappingProxyType(_metrics(metrics, bench, where)) for bench, metrics in row["values"].items()}
    return Published(**{**row, "values": MappingProxyType(values)})


def _says_something(value: Any, kind: type) -> bool:
    """Whether a field has its type (True is an int to Python, not here) and is neither empty nor below 1."""
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        return False
    return kind is bool or (value >= 1 if isinstance(value, int) else bool(value))


def _metrics(metrics: Any, bench: str, where: str) -> dict[str, float]:
    """{metric: percent} of one benchmark, checked."""
    if bench not in METRICS:
        raise DataError(f"{where}: unknown benchmark '{bench}'{did_you_mean(bench, METRICS)}")
    if not isinstance(metrics, dict) or not metrics:
        raise DataError(f"{where}: {bench}: expected a table of metrics, found {metrics!r}")
    for metric, value in metrics.items():
        if not re.fullmatch(METRICS[bench], metric):
            raise DataError(f"{where}: {bench}: expected a metric like '{METRICS[bench]}', found '{metric}'")
        # NaN is neither above nor below anything
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
            raise DataError(f"{where}: {bench} {metric}: expected a number from 0 to 100 [%], found {value!r}")
    return {metric: float(value) for metric, value in metrics.items()}


def _pages(rows: tuple[Published, ...]) -> str:
    return ", ".join(str(place) for place, row in enumerate(rows, start=1) if row.page) or "none"
