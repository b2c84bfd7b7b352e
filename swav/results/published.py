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
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config

from swav.errors import DataError, did_you_mean
from swav.results.units import PERCENT, metric_of

FILE = "published.toml"
_STAGE = r"(feature\d+( \(.+\))?|best layer)"  # a name in brackets: stages of backbones that are no ResNets

# The scores of each benchmark, named as `swav bench` writes them into results.json.
SCORE_NAMES = {
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


Text = Annotated[str, Field(min_length=1)]  # pydantic takes no number for a text
Number = Annotated[int, Field(ge=1, strict=True)]  # nor, asked to be strict, true for 1
Value = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Scores = Annotated[Mapping[str, Value], Field(min_length=1)]


@with_config(ConfigDict(extra="forbid"))
@dataclasses.dataclass(frozen=True)
class Published:
    """One network's published numbers.

    Attributes:
        label: how it is shown; no other row has it.
        method, backbone: what was trained.
        source: document, table and row.
        values: benchmark -> metric -> number, in the metric's unit.
        epochs, batch: of the pre-training; None where unknown, or where labels were used.
        page: whether it is the row of the page that the suite fills.
        note: where its protocol differs from ours, or empty.
        config: the source's own name of it, or empty.
        url: of the source, or empty.
    """

    label: Text
    method: Text
    backbone: Text
    source: Text
    values: Mapping[str, Scores]
    epochs: Number | None = None
    batch: Number | None = None
    page: Annotated[bool, Field(strict=True)] = False
    note: str = ""
    config: str = ""
    url: str = ""


_CHECKED = TypeAdapter(Published)


@functools.cache
def read_published() -> tuple[Published, ...]:
    """All rows of the packaged file, in its order; the page's is the first.

    Raises:
        DataError: as parse_published.
    """
    return parse_published(importlib.resources.files("swav.results").joinpath(FILE).read_text(encoding="utf-8"))


def parse_published(text: str) -> tuple[Published, ...]:
    """Rows of a text in the format of published.toml.

    Raises:
        DataError: not TOML; a field that is missing, unknown or of another type; an unknown benchmark or metric; a value
            that is negative or above 100 %; a label twice; any row but the first, or not the first, is the page's.
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
    try:
        found = _CHECKED.validate_python(row)
    except ValidationError as error:
        problem = error.errors()[0]
        key = " ".join(map(str, problem["loc"]))
        near = did_you_mean(key, Published.__dataclass_fields__) if problem["type"].startswith("unexpected") else ""
        raise DataError(f"{where}: {key}: {problem['msg']}, found {problem['input']!r}{near}") from None
    for bench, scores in found.values.items():
        if bench not in SCORE_NAMES:
            raise DataError(f"{where}: unknown benchmark '{bench}'{did_you_mean(bench, SCORE_NAMES)}")
        for metric, value in scores.items():
            if not re.fullmatch(SCORE_NAMES[bench], metric):
                raise DataError(f"{where}: {bench}: expected a metric like '{SCORE_NAMES[bench]}', found '{metric}'")
            if metric_of(metric).unit == PERCENT and value > 100:
                raise DataError(f"{where}: {bench} {metric}: expected at most 100 %, found {value:g}")
    values = {bench: MappingProxyType(dict(scores)) for bench, scores in found.values.items()}
    return dataclasses.replace(found, values=MappingProxyType(values))


def _pages(rows: tuple[Published, ...]) -> str:
    return ", ".join(str(place) for place, row in enumerate(rows, start=1) if row.page) or "none"
