"""results.json: what was measured and what was not. It is read and written here only; what has been read is typed.

One file per folder, {"format": 1, "results": [...], "not_run": [...]}. A new result replaces an older one with the same
benchmark, metric, weights, protocol and seed. A row that was read is written back as it was, with the fields that this version
does not know. No torch here: reports answer at once.
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    Strict,
    ValidationError,
    model_serializer,
)

from swav.errors import DataError, MachineError, NumericsError, counted
from swav.files import FileLock, remove_leftovers, warn, write_text_durably

FILE = "results.json"
FORMAT = 1  # of the file; one that names none is of format 1
OWN = "own"  # the protocol whose rows have a spread and an interval
KEY = ("bench", "metric", "weights", "protocol", "seed")
Key = tuple[str | int, ...]  # values of these

Number = Annotated[float, Strict()]  # pydantic would take the text "70" for one
Finite = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Flag = Annotated[bool, Strict()]  # and "yes" for true


AnyObject = TypeVar("AnyObject", bound="StoredObject")


class StoredObject(BaseModel):
    """An object of the file. Its known fields are typed; the JSON that it was read from is what is written back.

    `UNKNOWN`: values of fields that the JSON lacks, as an older version wrote it, or has in another type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)
    UNKNOWN: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    _json: dict[str, Any] | None = PrivateAttr(None)
    _lacking: frozenset[str] = PrivateAttr(frozenset())

    @classmethod
    def from_json(cls: type[AnyObject], found: Mapping[str, Any]) -> AnyObject:
        """Read an object, whatever it has or lacks."""
        known = {key: value for key, value in found.items() if key in cls.model_fields and not _is_no_number(value)}
        try:
            read = cls.model_validate({**cls.UNKNOWN, **known})
        except ValidationError as error:
            for problem in error.errors():
                known.pop(str(problem["loc"][0]), None)
            read = cls.model_validate({**cls.UNKNOWN, **known})
        read._json, read._lacking = dict(found), frozenset(cls.model_fields) - frozenset(known)
        return read

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        if self._json is not None:
            return self._json
        return {key: getattr(self, key) for key in type(self).model_fields if key in self.model_fields_set}

    def has(self, fields: Iterable[str]) -> bool:
        """Whether the file has all of these fields, in their types."""
        return self._lacking.isdisjoint(fields)

    def changed(self: AnyObject, **fields: Any) -> AnyObject:
        """Return a copy with other values of some fields."""
        copy = self.model_copy(update=fields)
        if self._json is not None:
            copy._json = {**self._json, **fields}
        return copy


class NetworkFacts(StoredObject):
    """What tables show of a network.

    Attributes:
        backbone: its name, or empty.
        width: factor of the channels.
        epochs, batch: of the pre-training; None where the weights do not say them.
        channels: rgb, or bgr for weights that were trained on that.
    """

    backbone: str = ""
    width: Number = 1.0
    epochs: int | float | str | None = None
    batch: int | float | str | None = None
    channels: str = "rgb"


class Config(StoredObject):
    """Settings, data and network of a result. The file has all of them; fields are here for what tables show.

    Attributes:
        network: what built it.
        mean, std: of the normalisation; None where unknown.
        size: side of the images [pixels]; None where unknown.
    """

    network: Annotated[NetworkFacts, BeforeValidator(lambda value: _read(NetworkFacts, value))] = NetworkFacts()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None


class Result(StoredObject):
    """One number and all that it depends on. A field that its file lacks is empty or None.

    Attributes:
        bench, metric: what was measured.
        value, unit: the number; always finite, or None where the file has no finite one.
        n: images scored.
        protocol: published, own or smoke.
        comparable: whether it may stand beside published numbers.
        difference: why not.
        seed: of what was drawn.
        weights, weights_sha256: the source, as the user gave it, and the tensors.
        versions: of swav and what it computes with.
        config: every setting, and the data.
        log: path of what was written on the way, relative to the folder, or None.
        name: what tables call these weights.
        spread: sample standard deviation of the value over parts of the training images, in its unit; None: not measured, and
            not in the file.
        interval: lower and upper end of the value's 95 % interval over the scored images, in its unit; None likewise.
        measured: when, as `now` has it; of a repetition with the same outcome the first time. None: unknown, as of rows of
            earlier versions, and not in the file.
    """

    UNKNOWN = MappingProxyType(
        dict.fromkeys(("bench", "metric", "unit", "protocol", "difference", "weights", "weights_sha256", "name"), "")
        | {"value": None, "n": None, "comparable": None, "seed": 0, "versions": {}, "config": {}, "log": None}
    )

    bench: str
    metric: str
    value: Number | None
    unit: str
    n: int | None
    protocol: str
    comparable: Flag | None
    difference: str
    seed: int
    weights: str
    weights_sha256: str
    versions: dict[str, str]
    config: Annotated[Config, BeforeValidator(lambda value: _read(Config, value))]
    log: str | None
    name: str
    spread: Finite | None = None
    interval: tuple[Finite, Finite] | None = None
    measured: str | None = None

    def model_post_init(self, context: Any) -> None:
        """Refuse a number that is none.

        Raises:
            NumericsError: the value is not finite.
        """
        if self.value is not None and not math.isfinite(self.value):
            raise NumericsError(f"{self.bench} {self.metric}: expected a finite number, found {self.value}")

    @property
    def key(self) -> Key:
        """What no two rows of a file have in common."""
        return tuple(getattr(self, part) for part in KEY)

    @property
    def label(self) -> str:
        """What tables call the weights."""
        return self.name or self.weights

    @property
    def remark(self) -> str:
        """Why the result is not comparable."""
        return self.difference or "images, classes or protocol differ from the published ones"

    @property
    def settings_text(self) -> str:
        """All that the result depends on, as JSON in ASCII."""
        stored = self.model_dump()
        kept = ("bench", "protocol", "seed", "weights", "weights_sha256", "versions", "config")
        return json.dumps({key: stored.get(key) for key in kept}, indent=1) + "\n"

    @property
    def settings_file(self) -> str:
        """Where `settings_text` is kept, relative to the folder. The metrics of one benchmark share a file."""
        digest = hashlib.sha256(self.settings_text.encode()).hexdigest()[:12]
        return f"configs/{re.sub('[^a-z0-9-]', '', self.bench)}-{digest}.json"


class NotRun(StoredObject):
    """A benchmark, or one metric of it, that could not be run, why, and what it would take.

    `metric` is given only where the rest of the benchmark has run, `weights` only where others have.
    """

    UNKNOWN = MappingProxyType(dict.fromkeys(("bench", "reason", "expected"), ""))

    bench: str
    reason: str
    expected: str
    metric: str = ""
    weights: str = ""


class DryRunRow(BaseModel):
    """What one benchmark of one set of weights would take.

    Attributes:
        protocol: by which it would be run.
        data: what there is to learn from and to score.
        images: how many, as `120 + 30`, or `150 in folds`.
        hours, memory_gb, disk_gb: as estimated; memory beside the network's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bench: str
    weights: str
    seed: int
    protocol: str
    data: str
    images: str
    hours: float
    memory_gb: float
    disk_gb: float


class Results(BaseModel):
    """The content of a results.json.

    Attributes:
        format: of the file.
        results, not_run: its rows.
        dry_run: of a dry run only, and never in a file: what each benchmark would take, then what could not be run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    results: tuple[Result, ...] = ()
    not_run: tuple[NotRun, ...] = ()
    dry_run: tuple[DryRunRow | NotRun, ...] = ()

    _others: dict[str, Any] = PrivateAttr(default_factory=dict)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Results":
        """Read a document; what is no row is left out."""
        results, not_run = (
            [row for row in rows if isinstance(row, dict)] if isinstance(rows := found.get(key), list) else []
            for key in ("results", "not_run")
        )
        read = cls(
            results=tuple(Result.from_json(_translated(row)) for row in results),
            not_run=tuple(map(NotRun.from_json, not_run)),
        )
        read._others = {key: value for key, value in found.items() if key not in ("format", "results", "not_run")}
        return read

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        rows = {"format": self.format, "results": list(self.results), "not_run": list(self.not_run)}
        return rows | self._others | ({"dry_run": list(self.dry_run)} if "dry_run" in self.model_fields_set else {})


def _read(kind: type[StoredObject], value: Any) -> Any:
    return kind.from_json(value) if isinstance(value, dict) else value


def _is_no_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _translated(row: dict[str, Any]) -> dict[str, Any]:
    """`page` was the name of protocol `published` before 0.1.0."""
    return {**row, "protocol": "published"} if row.get("protocol") == "page" else row


def now() -> str:
    """The time, in UTC: `2026-10-02T14:05:33Z`."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# -- reading


def read_results(folder: Path) -> Results:
    """Return the content of a folder's results.json; no rows where there is none.

    Raises:
        DataError: the file is not what this module writes, or of a newer format. (It is never overwritten then.)
        MachineError: it cannot be read.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Results()
    except OSError as error:
        raise MachineError(f"{path}: cannot be read just now ({error.strerror}); try again") from None
    except ValueError as error:
        raise DataError(f"{path}: expected JSON, found: {error}; move it away or use another --out") from None
    if problem := _unknown_format(content):
        raise DataError(f"{path}: {problem}, or use another --out")
    found = _if_ours(content)
    if found is None:
        raise DataError(f"{path}: expected lists 'results' and 'not_run', found another JSON; use another --out")
    return found


def read_damaged_results(folder: Path) -> tuple[Results, list[str]]:
    """Return what can be read of a folder's results.json, for reports: they show whatever there is. And what is wrong with it."""
    path = folder / FILE
    if not path.is_file():
        return Results(), []
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except ValueError as error:
        return Results(), [f"{FILE}: not JSON ({error})"]
    if not isinstance(content, dict):
        return Results(), [f"{FILE}: expected a JSON object, found {type(content).__name__}"]
    if problem := _unknown_format(content):
        return Results(), [f"{FILE}: {problem}"]
    found = Results.from_json(content)
    return found.model_copy(update={"results": tuple(row for row in found.results if row.has(["bench"]))}), []


def _unknown_format(content: Any) -> str | None:
    """What is wrong with the number of the format, and what to do."""
    found = content.get("format", FORMAT) if isinstance(content, dict) else FORMAT
    if type(found) is int and found > FORMAT:
        return f"expected format {FORMAT} or older, found format {found}, which a newer swav wrote; update swav"
    if type(found) is not int or found < 1:
        return f"expected format {FORMAT}, found {found!r}; move the file away"
    return None


def _if_ours(content: Any) -> Results | None:
    """The content of a file that this module wrote; None of another JSON."""
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("results", "not_run")):
        return None
    if not all(isinstance(row, dict) for row in [*content["results"], *content["not_run"]]):
        return None
    read = Results.from_json(content)
    ours = all(row.has(KEY) for row in read.results) and all(row.has(["bench"]) for row in read.not_run)
    return read if ours else None


# -- writing


def write_results(
    folder: Path, results: Iterable[Result], not_run: Iterable[NotRun] = (), make: bool = True
) -> Results:
    """Merge results into a folder's results.json, in one durable step. Others that write there wait meanwhile.

    What could not be run is forgotten once its benchmark has results of the same file. Weights have one name in it, the last
    that they were given.

    Args:
        make: the folder if it is not there. (One that was there when the work began, and is gone, is not made again.)

    Returns:
        The content of the file.

    Raises:
        DataError: there is a results.json that is none, or of a newer format.
        MachineError: the folder cannot be written.
    """
    try:
        with results_lock(folder, base=None if make else folder):
            content = _merged(read_results(folder), list(results), not_run)
            text = json.dumps(content.model_dump(), indent=1, allow_nan=False) + "\n"
            write_text_durably(folder / FILE, text)
    except OSError as error:
        raise MachineError(f"{folder / FILE}: cannot be written ({error}); make room, or use another --out") from None
    return Results.from_json(json.loads(text))


@contextlib.contextmanager
def results_lock(folder: Path, base: Path | None) -> Iterator[None]:
    """Inside, no other process writes to a folder's results.json or its tables; what a killed one left of it is removed.

    Args:
        base: see FileLock.

    Raises:
        OSError: the folder cannot be written.
    """
    with FileLock(folder / ".results.lock", waiting_for=f"the results in {folder}", base=base):
        remove_leftovers(folder / FILE)
        yield


def _merged(before: Results, new: Sequence[Result], not_run: Iterable[NotRun]) -> Results:
    now = {(row.bench, row.weights, row.protocol): row.weights_sha256 for row in new}
    kept = []
    for row in before.results:
        sha = now.get((row.bench, row.weights, row.protocol))
        if sha is None or sha == row.weights_sha256:
            kept.append(row)
    if dropped := len(before.results) - len(kept):
        warn(f"{FILE}: {counted(dropped, 'row')} of earlier weights of the same name replaced: no mean mixes the two")
    rows = {row.key: row for row in kept}
    rows |= {row.key: row for row in new if row.key not in rows or _outcome(row) != _outcome(rows[row.key])}
    missing = {(row.bench, row.metric, row.weights): row for row in [*before.not_run, *not_run]}
    done = {(row.bench, metric, weights) for row in new for metric in ("", row.metric) for weights in ("", row.weights)}
    return before.model_copy(
        update={
            "results": _with_one_name_each(rows.values(), [*before.results, *new]),
            "not_run": tuple(row for what, row in missing.items() if what not in done),
        }
    )


def _outcome(row: Result) -> str:
    """All of a row but when it was measured."""
    return json.dumps(row.model_dump() | {"measured": None}, sort_keys=True)


def _with_one_name_each(rows: Iterable[Result], in_order: Iterable[Result]) -> tuple[Result, ...]:
    """The rows, with the last name that each weights was given; without this a new name would part a row in two."""
    names = {row.weights: row.name for row in in_order if row.name not in ("", row.weights)}
    return tuple(row.changed(name=names[row.weights]) if row.weights in names else row for row in rows)


# -- several seeds


@dataclasses.dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation (0 for one) and number of results."""

    mean: float
    std: float
    count: int


def summary(rows: Iterable[Result]) -> Summary | None:
    """Summarise results that differ by the seed only; None where there is no number."""
    values = [row.value for row in rows if row.value is not None]
    if not values:
        return None
    return Summary(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values))
