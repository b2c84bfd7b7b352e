"""Whether weights, data and folder of a request are there, and which protocols the data decide; without torch.

All that is missing is reported together, a line for each benchmark.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from swav.data.sources.catalog import DATASETS, DataSet, Splits, require_disjoint
from swav.data.sources.decode import reason_of
from swav.data.sources.walk import may_hold_images
from swav.errors import ConfigError, DataError, printable
from swav.evaluation.catalog import CATALOG
from swav.evaluation.request import Candidate, Problem, Request, refuse
from swav.evaluation.settings import PROTOCOLS, Protocol
from swav.files import check_writable, is_run, refuse_inside
from swav.results.results import NotRun, read_results
from swav.weights.sources import check_source

POSSIBLE = "more training images, or other settings"


class Opened(NamedTuple):
    """The data of each benchmark that can be run.

    Attributes:
        splits: to learn from, to score. One object in both places: all images of a set that is scored in folds.
        chosen: the protocol and its settings.
        absent: benchmarks that cannot be run, under `all`.
        problems: why others cannot be run, which were asked for by name.
    """

    splits: dict[str, Splits]
    chosen: dict[str, Candidate]
    absent: list[NotRun]
    problems: list[Problem]


def check_places(request: Request, data: Path, out: Path, dry_run: bool, modules: Collection[str] = ()) -> None:
    """Refuse a request whose weights, data or folder are not there. Reads no weight and, where there are images, none of them.

    Args:
        modules: names of weights that are modules in memory.

    Raises:
        ConfigError: a weight source names nothing, or `out` is new and inside of the data.
        DataError: there is no image, or results.json is none.
        MachineError: `out` cannot be written.
    """
    for source in request.labels:
        if source not in modules:
            check_source(source)
    if not may_hold_images(data.expanduser()):
        opened = open_data(request, data, None)
        refuse(opened.problems)
        require_some(opened, data)
    elif not request.everything:
        problems: list[Problem] = []
        for name in request.candidates:
            try:
                DATASETS[CATALOG[name].settings.data].seek(data.expanduser())
            except PermissionError as error:
                problems.append((name, _locked(error, data)))
            except DataError as error:
                problems.append((name, error))
        refuse(problems)
    if not dry_run:
        check_writable(out)
    refuse_inside(out, data, resumes=bool(read_results(out).results) or is_run(out))


def require_some(opened: Opened, data: Path) -> None:
    """Refuse to run nothing at all.

    Raises:
        ConfigError, DataError: there are data of no benchmark.
    """
    if opened.splits:
        return
    refuse(opened.problems)
    raise DataError(
        f"{printable(str(data))}: expected the data of at least one benchmark, found none; check --data "
        f"({opened.absent[0].reason})"
    )


def _locked(error: PermissionError, data: Path) -> DataError:
    path = printable(str(error.filename or data))
    return DataError(f"{path}: expected a folder to read, found {reason_of(error)}; check --data")


def open_data(request: Request, data: Path, cache: Path | None) -> Opened:
    """Open the data of each benchmark, once per set, and choose the protocols that the number of classes decides.

    Under protocol own a set that has no split for scoring is not divided: both splits are one object, of all its images.

    Args:
        cache: where what is found out about the files is kept; None: in the user's cache folder.
    """
    sets = _DataSets(data, cache)
    opened, problems = Opened({}, {}, [], []), list[Problem]()
    for name, candidates in request.candidates.items():
        try:
            chosen, splits = _choose(name, candidates, sets)
            if request.everything and request.suite.protocol == "auto":
                _refuse_other_classes(name, splits)
        except (ConfigError, DataError) as error:
            problems.append((name, error))
        else:
            opened.chosen[name], opened.splits[name] = chosen, splits
    if request.everything:
        opened.absent.extend(_not_run(name, error) for name, error in problems)
    else:
        opened.problems.extend(problems)
    return opened


class OtherClasses(DataError):
    """A benchmark that has no protocol own would be run on data for which others take theirs."""


def _not_run(name: str, error: DataError | ConfigError) -> NotRun:
    """Why a benchmark cannot be run, and what it would take."""
    if isinstance(error, OtherClasses):
        expected = " or ".join(f"protocol={each}" for each in PROTOCOLS if CATALOG[name].has(each))
    else:
        expected = DATASETS[CATALOG[name].settings.data].expected if isinstance(error, DataError) else POSSIBLE
    return NotRun(bench=name, reason=str(error).splitlines()[0], expected=expected)


class _DataSets:
    """The data sets below --data, each opened once; also one that cannot be opened is tried once."""

    def __init__(self, data: Path, cache: Path | None):
        self._data, self._cache = data, cache
        self._opened: dict[tuple[str, bool], Splits | DataError] = {}

    def splits(self, name: str, protocol: Protocol) -> Splits:
        """Of a benchmark under a protocol.

        Raises:
            DataError: they are missing or at fault.
        """
        wanted = CATALOG[name].settings.data
        of = DATASETS[wanted]
        whole = protocol == "own" and of.find_undivided is not None
        there = self._opened.get((wanted, True))
        if not whole and isinstance(there, tuple) and there[0] is not there[1]:
            return there  # it has splits: there was nothing to divide
        if (wanted, whole) not in self._opened:
            self._opened[wanted, whole] = self._open(of, whole, protocol == "smoke")
        found = self._opened[wanted, whole]
        if isinstance(found, DataError):
            raise found
        return found

    def _open(self, of: DataSet, whole: bool, allow_missing: bool) -> Splits | DataError:
        try:
            if whole and of.find_undivided is not None:
                return require_disjoint(of.find_undivided(self._data, self._cache))
            return require_disjoint(of.find(self._data, self._cache, allow_missing))
        except DataError as error:
            return error
        except PermissionError as error:
            return _locked(error, self._data)


def _choose(name: str, candidates: Sequence[Candidate], sets: _DataSets) -> tuple[Candidate, Splits]:
    """The protocol, and the data as it takes them.

    Raises:
        ConfigError: a setting is not of it.
        DataError: the data are missing or at fault.
    """
    if len(candidates) == 1:
        return candidates[0], sets.splits(name, candidates[0].protocol)
    published, own = candidates
    splits = sets.splits(name, own.protocol)
    chosen = published if _has_published_classes(name, splits) else own
    if chosen.foreign:
        other = own if chosen is published else published
        raise ConfigError(
            f"{name}.{chosen.foreign[0]}: expected a setting of protocol {chosen.protocol}, by which {name} is run as the data have "
            f"{_class_count(name, splits)}, found one of protocol {other.protocol}; use protocol={other.protocol}, or leave it out"
        )
    return chosen, splits if chosen is own else sets.splits(name, chosen.protocol)


def _has_published_classes(name: str, splits: Splits) -> bool:
    return len(splits[0].classes or ()) == CATALOG[name].settings.published["classes"]


def _class_count(name: str, splits: Splits) -> str:
    found, published = len(splits[0].classes or ()), CATALOG[name].settings.published["classes"]
    return (
        f"the published {published:,} classes"
        if found == published
        else f"{found:,} classes (published: {published:,})"
    )


def _refuse_other_classes(name: str, splits: Splits) -> None:
    """Refuse a benchmark without protocol own on data for which others of the same set take theirs.

    Raises:
        OtherClasses: it is one, and they are such.
    """
    of_set = [each for each in CATALOG.values() if each.settings.data == CATALOG[name].settings.data]
    decided = any(len(each.protocols_for("auto")) > 1 for each in of_set)
    if decided and CATALOG[name].own is None and not _has_published_classes(name, splits):
        raise OtherClasses(f"the data have {_class_count(name, splits)}, and it has no protocol own to score them by")


def protocols_chosen(request: Request, opened: Opened) -> list[str]:
    """Say which protocol the data decided, and why."""
    lines: dict[str, list[str]] = {}
    for name, chosen in opened.chosen.items():
        if len(request.candidates[name]) > 1:
            other = next(each.protocol for each in request.candidates[name] if each is not chosen)
            why = f"as the data have {_class_count(name, opened.splits[name])}; protocol={other} asks for the other"
            lines.setdefault(f"protocol {chosen.protocol}, {why}", []).append(name)
    return [f"{', '.join(names)}: {text}" for text, names in lines.items()]
