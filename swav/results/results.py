"""results.json: what was measured, what was not, and both as a table.

One file per folder, {"results": [...], "not_run": [...]}. A new result takes the place of an older one with the same
benchmark, metric, weights, protocol and seed. No torch here: reports answer at once.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from swav.errors import DataError, EnvironmentError_, NumericsError, counted
from swav.files import FileLock, remove_leftovers, warn, write_text_durably

FILE = "results.json"
Json = Mapping[str, Any]
KEY = ("bench", "metric", "weights", "protocol", "seed")


@dataclasses.dataclass(frozen=True)
class Result:
    """One number and all that it depends on.

    Attributes:
        bench, metric: what was measured.
        value, unit: the number; always finite.
        n: images scored.
        protocol: published or smoke.
        comparable: whether it may stand beside published numbers.
        difference: why not.
        seed: of what was drawn.
        weights, weights_sha256: the source, as the user gave it, and the tensors.
        name: what tables call these weights.
        versions: of swav and what it computes with.
        config: every setting, and the data.
        log: path of what was written on the way, relative to the folder, or None.
    """

    bench: str
    metric: str
    value: float
    unit: str
    n: int
    protocol: str
    comparable: bool
    difference: str
    seed: int
    weights: str
    weights_sha256: str
    versions: Mapping[str, str]
    config: Mapping[str, Any]
    log: str | None
    name: str

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise NumericsError(f"{self.bench} {self.metric}: expected a finite number, found {self.value}")


@dataclasses.dataclass(frozen=True)
class NotRun:
    """A benchmark, or one metric of it, that could not be run, why, and what it would take; of all weights, or of one."""

    bench: str
    reason: str
    expected: str
    metric: str = ""
    weights: str = ""


def read_results(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The content of a folder's results.json; empty lists where there is none.

    Raises:
        DataError: the file is not what this module writes. (It is never overwritten then: it may be dear to someone.)
        EnvironmentError_: it cannot be read.
    """
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"results": [], "not_run": []}
    except OSError as error:
        raise EnvironmentError_(f"{path}: cannot be read just now ({error.strerror}); try again") from None
    except ValueError as error:
        raise DataError(f"{path}: expected JSON, found: {error}; move it away or use another --out") from None
    if not _looks_right(content):
        raise DataError(f"{path}: expected lists 'results' and 'not_run', found another JSON; use another --out")
    for row in content["results"]:
        if row.get("protocol") == "page":  # its name before 0.1.0
            row["protocol"] = "published"
    return {"results": content["results"], "not_run": content["not_run"]}


def write_results(
    folder: Path, results: Iterable[Result], not_run: Iterable[NotRun] = (), make: bool = True
) -> dict[str, Any]:
    """Merges results into a folder's results.json, in one durable step. Others that write there wait meanwhile.

    What could not be run is forgotten once its benchmark has results of the same file. Weights have one name in it, the last
    that they were given.

    Args:
        make: the folder if it is not there. (One that was there when the work began, and is gone, is not made again.)

    Returns:
        The content of the file.

    Raises:
        DataError: there is a results.json that is none.
        EnvironmentError_: the folder cannot be written.
    """
    try:
        with results_lock(folder, base=None if make else folder):
            content = _merged(read_results(folder), [dataclasses.asdict(result) for result in results], not_run)
            write_text_durably(folder / FILE, json.dumps(content, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise EnvironmentError_(
            f"{folder / FILE}: cannot be written ({error}); make room, or use another --out"
        ) from None
    return content


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


def _merged(before: Json, new: list[dict[str, Any]], not_run: Iterable[NotRun]) -> dict[str, Any]:
    now = {(row["bench"], row["weights"], row["protocol"]): row["weights_sha256"] for row in new}
    kept = []
    for row in before["results"]:
        sha = now.get((row["bench"], row["weights"], row["protocol"]))
        if sha is None or sha == row.get("weights_sha256"):
            kept.append(row)
    if dropped := len(before["results"]) - len(kept):
        warn(f"{FILE}: {counted(dropped, 'row')} of earlier weights of the same name replaced: no mean mixes the two")
    rows = {_key(row): row for row in [*kept, *new]}
    missing = {_lack(row): row for row in [*before["not_run"], *map(_told, not_run)]}
    done = {
        (row["bench"], metric, weights)
        for row in new
        for metric in ("", row["metric"])
        for weights in ("", row["weights"])
    }
    return {
        "results": _with_one_name_each(rows.values(), [*before["results"], *new]),
        "not_run": [row for what, row in missing.items() if what not in done],
    }


def _with_one_name_each(rows: Iterable[Json], in_order: Iterable[Json]) -> list[dict[str, Any]]:
    """The rows, with the last name that each weights was given; without this a new name would part a row in two."""
    names = {row["weights"]: row["name"] for row in in_order if row.get("name") not in (None, "", row["weights"])}
    return [{**row, "name": names[row["weights"]]} if row["weights"] in names else dict(row) for row in rows]


def table(content: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Results as a Markdown table: a row per benchmark and metric, the weights side by side; then the remarks.

    Of several seeds it shows the mean, the standard deviation (over n - 1) and their number.
    """
    results = content["results"]
    columns = {str(row["weights"]): label_of(row) for row in results}
    cells: dict[tuple[str, ...], dict[str, list[Json]]] = {}
    remarks: dict[str, dict[str, None]] = {}
    for row in results:
        name = (str(row["bench"]), str(row["metric"]), str(row["protocol"]), f"{row['n']:,}")
        cells.setdefault(name, {}).setdefault(str(row["weights"]), []).append(row)
        if not row["comparable"]:
            remarks.setdefault(f"{row['bench']}: {row['difference']}", {})[str(row["metric"])] = None
    lines = []
    if results:
        units = sorted({str(row["unit"]) for row in results})
        head = ("bench", f"metric [{', '.join(units)}]", "protocol", "n", *columns.values())
        body = [(*name, *(_cell(values.get(column, ())) for column in columns)) for name, values in cells.items()]
        lines += _aligned([head, *body], left=3)
    lines += [f"{weights}: {words}" for weights, words in _normalisations(results).items()]
    lines += [f"not comparable with published numbers: {remark}" for remark in remarks]
    for row in content["not_run"]:
        of = f" of {row['weights']}" if row.get("weights") else ""
        what = f"{row['bench']} {row.get('metric', '')}".rstrip() + of
        lines.append(f"not run: {what}: {row['reason']}; needs {row['expected']}")
    return "\n".join(lines)


def label_of(row: Mapping[str, Any]) -> str:
    """What tables call the weights of a row: `name`, where the file is not older than it."""
    return str(row.get("name") or row["weights"])


def _cell(rows: Sequence[Json]) -> str:
    """A number; of several seeds their mean, standard deviation and number; of none a dash."""
    found = mean_and_spread(rows)
    if found is None:
        return "-"
    mean, deviation, count = found
    return f"{mean:.2f}" if count == 1 else f"{mean:.2f} ± {deviation:.2f} (n={count})"


def _normalisations(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """How each weights' images were normalised: weights that see wrongly normalised images score less, and don't say why."""
    words: dict[str, str] = {}
    for row in results:
        config = row.get("config", {})
        if "mean" in config and "std" in config:
            channels = config.get("network", {}).get("channels", "rgb")
            turned = " (trained on BGR, turned to RGB)" if channels == "bgr" else ""
            words[label_of(row)] = f"normalised by mean {list(config['mean'])}, std {list(config['std'])}{turned}"
    return words


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """A Markdown table that is also a table to the eye; the first `left` columns are texts, the others numbers."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    padded = [
        [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return [f"| {' | '.join(row)} |" for row in (padded[0], rule, *padded[1:])]


def _told(what: NotRun) -> dict[str, Any]:
    """As a row of the file: `metric` is there only where the rest of the benchmark has run, `weights` where others have."""
    return {key: value for key, value in dataclasses.asdict(what).items() if value or key not in ("metric", "weights")}


def _lack(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["bench"], row.get("metric", ""), row.get("weights", "")


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[part] for part in KEY)


def _looks_right(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    halves = {"results": KEY, "not_run": ("bench",)}
    return all(
        isinstance(content.get(half), list)
        and all(isinstance(row, dict) and set(keys) <= set(row) for row in content[half])
        for half, keys in halves.items()
    )


# -- one row, read by whoever shows it: a field may be missing


def config_name(row: Json) -> str:
    """Where the resolved settings of a result are kept, relative to its folder. The metrics of one benchmark share a file."""
    digest = hashlib.sha256(config_text(row).encode()).hexdigest()[:12]
    return f"configs/{re.sub('[^a-z0-9-]', '', text(row, 'bench'))}-{digest}.json"


def config_text(row: Json) -> str:
    """All that a result depends on, as JSON in ASCII."""
    kept = ("bench", "protocol", "seed", "weights", "weights_sha256", "versions", "config")
    return json.dumps({key: row.get(key) for key in kept}, indent=1) + "\n"


def text(row: Json, key: str) -> str:
    """A field as text; empty where it is missing."""
    value = row.get(key)
    return "" if value is None else str(value)


def remark(row: Json) -> str:
    """Why a result is not comparable."""
    return text(row, "difference") or "images, classes or protocol differ from the published ones"


def mean_and_spread(rows: Iterable[Json]) -> tuple[float, float, int] | None:
    """Mean, sample standard deviation (0 for one) and count of the finite values; None where there is none."""
    values = [row["value"] for row in rows if has_number(row)]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values)


def has_number(row: Json) -> bool:
    return isinstance(row.get("value"), int | float) and math.isfinite(row["value"])
