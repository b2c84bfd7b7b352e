"""What is asked of the benchmarks, and whether it can be had, as far as it can be known without torch.

A wrong name, setting or path is then reported at once, before seconds go into the import of torch.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swav.config import RENAMED, WeightOptions
from swav.data.sources.catalog import DATASETS, Splits, require_disjoint
from swav.data.sources.decode import printable, reason_of
from swav.data.sources.walk import may_hold_images
from swav.errors import ConfigError, DataError, did_you_mean
from swav.evaluation.catalog import CATALOG, require_known
from swav.evaluation.settings import PROTOCOLS, BenchSettings, Protocol, SuiteSettings
from swav.files import check_writable
from swav.recipe_files import validated
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
        absent: benchmarks that do not have the protocol, under `all`.
    """

    suite: SuiteSettings
    settings: dict[str, BenchSettings]
    options: dict[str, Any]
    labels: dict[str, str]
    everything: bool
    absent: tuple[NotRun, ...] = ()


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
    absent = (_no_such_protocol(name, suite.protocol) for name in CATALOG if "all" in names and name not in settings)
    return Request(suite, settings, options, labels, "all" in names, tuple(absent))


def split_options(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the options of other projects' weight files (config.WeightOptions) from the settings of benchmarks."""
    options = {key: value for key, value in overrides.items() if key in WeightOptions.model_fields}
    validated(WeightOptions, options, "weights")
    return options, {key: value for key, value in overrides.items() if key not in options}


def resolve(names: Sequence[str], overrides: Mapping[str, Any]) -> tuple[SuiteSettings, dict[str, BenchSettings]]:
    """Return the settings of the benchmarks that are asked for.

    Args:
        names: of benchmarks, or `all`.
        overrides: a key of SuiteSettings; a key for all of them (`size`); a key for one of them (`knn.k`), which wins, and may
            be given as a mapping (`knn={"k": 5}`, and `linear_stages={...}`, as no keyword of Python holds a hyphen).

    Returns:
        What is said once, and {name: settings} in the order asked for. Under `all` only of benchmarks that have the protocol.

    Raises:
        ConfigError: an unknown benchmark, protocol or key, a protocol that a benchmark asked for by name does not have, or a
            value out of range.
    """
    wanted = list(dict.fromkeys(CATALOG if "all" in names else names))
    require_known(names)
    overrides = _dotted(overrides)
    protocol = overrides.get("protocol", "published")
    if protocol == "page":
        raise ConfigError("protocol=page is called protocol=published now")
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"protocol: expected one of {', '.join(PROTOCOLS)}, found '{protocol}'{did_you_mean(str(protocol), PROTOCOLS)}"
        )
    if "protocol" in overrides:
        lacking = [name for name in wanted if not CATALOG[name].has(protocol)]
        if lacking and "all" not in names:
            row = _no_such_protocol(lacking[0], protocol)
            raise ConfigError(f"{row.bench}: {row.reason}; use {row.expected}")
        wanted = [name for name in wanted if name not in lacking]
    once = {key: value for key, value in overrides.items() if key in SuiteSettings.model_fields}
    values: dict[str, dict[str, Any]] = {
        name: dict(CATALOG[name].smoke) if protocol == "smoke" else {} for name in wanted
    }
    for key in sorted(set(overrides) - set(once), key=lambda key: "." in key):  # those for one of them last
        bench, dot, inner = key.rpartition(".")
        chosen = [bench] if dot else wanted
        _check_key(key, bench, inner, wanted, protocol)
        for name in chosen:
            values[name][inner] = overrides[key]
    settings = {name: validated(CATALOG[name].settings_of(protocol), values[name], name) for name in wanted}
    return validated(SuiteSettings, once, "benchmarks"), settings


def _no_such_protocol(name: str, protocol: str) -> NotRun:
    """Why a benchmark is not run under a protocol that it does not have."""
    has = [each for each in PROTOCOLS if CATALOG[name].has(each)]
    reason = f"expected a protocol that it has, found {protocol}"
    others = [each for each in CATALOG if CATALOG[each].has(protocol)]
    if len(others) < len(CATALOG) / 2:
        reason += f", which only {', '.join(others)} {'have' if len(others) > 1 else 'has'}"
    return NotRun(bench=name, reason=reason, expected=" or ".join(f"protocol={each}" for each in has))


def _dotted(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Write the settings of one benchmark that are given as a mapping with a key each: `knn.k`."""
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        bench = key if key in CATALOG else key.replace("_", "-")
        if isinstance(value, Mapping):
            its = {f"{bench}.{inner}": its_value for inner, its_value in value.items()}
        elif bench in CATALOG:
            raise ConfigError(f"{key}: expected settings of this benchmark, as {key}={{'size': 224}}, found {value!r}")
        else:
            its = {key: value}
        if twice := sorted(its.keys() & found.keys()):
            raise ConfigError(
                f"{twice[0]}: given twice, found {found[twice[0]]!r} and {its[twice[0]]!r}; give one of them"
            )
        found |= its
    return found


def _check_key(key: str, bench: str, inner: str, wanted: Sequence[str], protocol: str) -> None:
    """Refuse a key that no benchmark asked for has, with the nearest that one has."""
    if bench and bench not in CATALOG:
        raise ConfigError(f"{key}: unknown benchmark '{bench}'{did_you_mean(bench, CATALOG)}")
    if bench and bench not in wanted:
        raise ConfigError(f"{key}: {bench} is not among the benchmarks asked for ({', '.join(wanted)})")
    shared = [*BenchSettings.model_fields, *SuiteSettings.model_fields]
    if inner in (CATALOG[bench].settings_of(protocol).model_fields if bench else shared):
        return
    if inner in RENAMED:
        raise ConfigError(f"{key}: {inner} is called {RENAMED[inner]} now")
    shared += WeightOptions.model_fields
    fields = {name: CATALOG[name].settings_of(protocol).model_fields for name in wanted}
    own = [f"{name}.{field}" for name in wanted for field in fields[name] if field not in shared]
    by_last = {word.split(".")[-1]: word for word in [*own, *shared]}
    near = difflib.get_close_matches(inner, by_last, n=1, cutoff=0.5)
    hint = f" (did you mean '{by_last[near[0]]}'?)" if near else ""
    raise ConfigError(
        f"unknown key '{key}'{hint}\nfor every benchmark: {', '.join(shared)}\nfor one of them: {', '.join(own)}"
    )


def check_places(request: Request, data: Path, out: Path, dry_run: bool, modules: Collection[str] = ()) -> None:
    """Refuse a request whose weights, data or folder are not there. Reads no weight and, where there are images, none of them.

    Args:
        modules: names of weights that are modules in memory.

    Raises:
        ConfigError: a weight source names nothing.
        DataError: there is no image, or results.json is none.
        MachineError: `out` cannot be written.
    """
    for source in request.labels:
        if source not in modules:
            check_source(source)
    if not may_hold_images(data.expanduser()):
        require_some(*open_splits(request.settings, data, None, request.suite.protocol, request.everything), data)
    elif not request.everything:
        for name in request.settings:
            try:
                DATASETS[CATALOG[name].settings.data].seek(data.expanduser())
            except PermissionError as error:
                raise _locked(error, data) from None
    if not dry_run:
        check_writable(out)
    read_results(out)


def _found(name: str, data: Path, cache: Path | None, asked: Protocol) -> Splits:
    of, protocol = DATASETS[CATALOG[name].settings.data], CATALOG[name].protocol_for(asked)
    if protocol == "own" and of.find_undivided is not None:
        return of.find_undivided(data, cache)
    return of.find(data, cache, protocol == "smoke")


def require_some(splits: Mapping[str, Splits], absent: Sequence[NotRun], data: Path) -> None:
    """Refuse to run nothing at all.

    Raises:
        DataError: there are data of no benchmark.
    """
    if not splits:
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


def open_splits(
    names: Iterable[str], data: Path, cache: Path | None, protocol: Protocol, everything: bool
) -> tuple[dict[str, Splits], list[NotRun]]:
    """The data of each benchmark, opened once per set; under `all` also which are missing, elsewhere an error.

    Under protocol own a set that has no split for scoring is not divided: both splits are one object, of all its images.
    """
    opened: dict[str, Splits | DataError] = {}
    splits, absent = dict[str, Splits](), list[NotRun]()
    for name in names:
        wanted = CATALOG[name].settings.data
        if wanted not in opened:
            try:
                opened[wanted] = require_disjoint(_found(name, data, cache, protocol))
            except DataError as error:
                opened[wanted] = error
            except PermissionError as error:
                opened[wanted] = _locked(error, data)
        its = opened[wanted]
        if not isinstance(its, DataError):
            splits[name] = its
        elif not everything:
            raise its
        else:
            reason = str(its).splitlines()[0]
            absent.append(NotRun(bench=name, reason=reason, expected=DATASETS[wanted].expected))
    return splits, absent
