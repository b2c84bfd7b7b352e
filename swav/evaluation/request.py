"""What is asked of the benchmarks, and whether it can be had, as far as it can be known without torch.

A wrong name, setting or path is then reported at once, before seconds go into the import of torch.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swav.data.sources.catalog import DATASETS, Halves, apart
from swav.data.sources.decode import printable, reason_of
from swav.data.sources.walk import may_hold_images
from swav.errors import ConfigError, DataError
from swav.evaluation.settings import (
    BENCH_SETTINGS,
    BenchSettings,
    SuiteSettings,
    resolve,
    split_options,
)
from swav.files import check_writable
from swav.results.results import NotRun, read_results
from swav.weights.sources import check_source


class Request(NamedTuple):
    """Settings and names without a contradiction.

    Attributes:
        suite: what is said once, of all benchmarks together.
        settings: of each benchmark, in the order asked for.
        options: what other projects' weight files do not say.
        labels: what tables call each of the weights.
        everything: whether benchmarks without data are no error (`all`).
    """

    suite: SuiteSettings
    settings: dict[str, BenchSettings]
    options: dict[str, Any]
    labels: dict[str, str]
    everything: bool


def read_request(names: Sequence[str], weights: Sequence[str], overrides: Mapping[str, Any]) -> Request:
    """Resolve what is asked for; looks at no file.

    Raises:
        ConfigError: a benchmark or a setting is unknown, a value out of range, or there are no weights.
    """
    options, overrides = split_options(overrides)
    suite, settings = resolve(names, overrides)
    if not weights:
        raise ConfigError("weights: expected at least one source (a run folder, a checkpoint, random:NAME), found none")
    labels = _labels(list(dict.fromkeys(weights)), suite.name)
    return Request(suite, settings, options, labels, "all" in names)


def check_places(request: Request, data: Path, out: Path, dry_run: bool, modules: Collection[str] = ()) -> None:
    """Refuse a request whose weights, data or folder are not there. Reads no weight and, where there are images, none of them.

    Args:
        modules: names of weights that are modules in memory.

    Raises:
        ConfigError: a weight source names nothing.
        DataError: there is no image, or results.json is none.
        EnvironmentError_: `out` cannot be written.
    """
    for source in request.labels:
        if source not in modules:
            check_source(source)
    allow_missing = request.suite.protocol == "smoke"
    if not may_hold_images(data.expanduser()):
        require_some(*open_halves(request.settings, data, None, allow_missing, request.everything), data)
    elif not request.everything:
        for name in request.settings:
            try:
                DATASETS[BENCH_SETTINGS[name].data].seek(data.expanduser())
            except PermissionError as error:
                raise _locked(error, data) from None
    if not dry_run:
        check_writable(out)
    read_results(out)


def require_some(halves: Mapping[str, Halves], absent: Sequence[NotRun], data: Path) -> None:
    """Refuse to run nothing at all.

    Raises:
        DataError: there are data of no benchmark.
    """
    if not halves:
        raise DataError(
            f"{printable(str(data))}: expected the data of at least one benchmark, found none; check --data ({absent[0].reason})"
        )


def _locked(error: PermissionError, data: Path) -> DataError:
    path = printable(str(error.filename or data))
    return DataError(f"{path}: expected a folder to read, found {reason_of(error)}; check --data")


def _labels(weights: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """What tables call each of the weights."""
    if names and len(names) != len(weights):
        raise ConfigError(f"name: expected one for each of the {len(weights)} --weights, found {len(names)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"name: expected different names, found {', '.join(names)}")
    return dict(zip(weights, names or weights, strict=True))


def open_halves(
    names: Iterable[str], data: Path, cache: Path | None, allow_missing: bool, everything: bool
) -> tuple[dict[str, Halves], list[NotRun]]:
    """The data of each benchmark, opened once per set; under `all` also which are missing, elsewhere an error."""
    opened: dict[str, Halves | DataError] = {}
    halves, absent = dict[str, Halves](), list[NotRun]()
    for name in names:
        wanted = BENCH_SETTINGS[name].data
        if wanted not in opened:
            try:
                opened[wanted] = apart(DATASETS[wanted].find(data, cache, allow_missing))
            except DataError as error:
                opened[wanted] = error
            except PermissionError as error:
                opened[wanted] = _locked(error, data)
        found = opened[wanted]
        if not isinstance(found, DataError):
            halves[name] = found
        elif not everything:
            raise found
        else:
            absent.append(NotRun(name, str(found).splitlines()[0], DATASETS[wanted].expected))
    return halves, absent
