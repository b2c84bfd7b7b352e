"""What is asked of the benchmarks: names, protocols and settings, without a look at files and without torch.

A wrong name or setting is reported before seconds go into the import of torch, with all else that is wrong with any benchmark.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from swav.config import RENAMED, Auto, WeightOptions
from swav.errors import ConfigError, DataError, did_you_mean
from swav.evaluation.catalog import CATALOG, unknown
from swav.evaluation.settings import PROTOCOLS, BenchSettings, Protocol, SuiteSettings
from swav.recipe_files import validated
from swav.results.results import NotRun

Problem = tuple[str, ConfigError | DataError]  # of a benchmark, by its name; of none where the message says it all


class Candidate(NamedTuple):
    """A protocol that a benchmark may be run by.

    Attributes:
        protocol: its name.
        settings: of the benchmark under it.
        foreign: keys that were given and that only its other candidate has.
    """

    protocol: Protocol
    settings: BenchSettings
    foreign: tuple[str, ...] = ()


class Request(NamedTuple):
    """Settings and names without a contradiction.

    Attributes:
        suite: what is said once, of all benchmarks together.
        candidates: of each benchmark, in the order asked for; more than one where the data decide: published, then own.
        options: what other projects' weight files do not say.
        labels: what tables call each of the weights.
        everything: whether benchmarks without data are no error (`all`).
        absent: benchmarks that do not have the protocol, under `all`.
    """

    suite: SuiteSettings
    candidates: dict[str, tuple[Candidate, ...]]
    options: dict[str, Any]
    labels: dict[str, str]
    everything: bool
    absent: tuple[NotRun, ...] = ()


def refuse(problems: Sequence[Problem]) -> None:
    """Raise all that is wrong, settings before data: what is wrong with one thing only as it is, else a line for each.

    Raises:
        ConfigError, DataError: there is a problem; of several the kind of the first line.
    """
    ordered = sorted(problems, key=lambda problem: not isinstance(problem[1], ConfigError))
    if not ordered:
        return
    lines, first = lines_of((name, str(error)) for name, error in ordered), ordered[0][1]
    if len({str(error) for _, error in ordered}) == 1 and (
        "\n" in str(first) or len({name for name, _ in ordered}) == 1
    ):
        raise first
    raise (ConfigError if isinstance(first, ConfigError) else DataError)("\n".join(lines))


def lines_of(reasons: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each reason, the first of its own, with the benchmarks that it is of, where it does not begin with one."""
    by_text: dict[str, dict[str, None]] = {}
    for name, reason in reasons:
        by_text.setdefault(reason.splitlines()[0].removeprefix(f"{name}: "), {})[name] = None
    return [
        text if any(not name or text.startswith(f"{name}.") for name in names) else f"{', '.join(names)}: {text}"
        for text, names in by_text.items()
    ]


def read_request(names: Sequence[str], weights: Sequence[str], overrides: Mapping[str, Any]) -> Request:
    """Resolve what is asked for; looks at no file.

    Raises:
        ConfigError: a benchmark or a setting is unknown, a value out of range, or there are no weights.
    """
    options, overrides = split_options(overrides)
    suite, candidates = _candidates(names, overrides)
    if not weights:
        raise ConfigError("weights: expected at least one source (a run folder, a checkpoint, random:NAME), found none")
    labels = _labels(list(dict.fromkeys(weights)), suite.name)
    absent = (_no_such_protocol(name, suite.protocol) for name in CATALOG if "all" in names and name not in candidates)
    return Request(suite, candidates, options, labels, "all" in names, tuple(absent))


def split_options(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Separate the options of other projects' weight files (config.WeightOptions) from the settings of benchmarks."""
    options = {key: value for key, value in overrides.items() if key in WeightOptions.model_fields}
    validated(WeightOptions, options, "weights")
    return options, {key: value for key, value in overrides.items() if key not in options}


def resolve(names: Sequence[str], overrides: Mapping[str, Any]) -> tuple[SuiteSettings, dict[str, BenchSettings]]:
    """Return the settings of the benchmarks that are asked for: of several protocols that the data decide between, of the first.

    Args:
        names: of benchmarks, or `all`.
        overrides: a key of SuiteSettings; a key for all of them (`size`); a key for one of them (`knn.k`), which wins, and may
            be given as a mapping (`knn={"k": 5}`, and `linear_stages={...}`, as no keyword of Python holds a hyphen).

    Returns:
        What is said once, and {name: settings} in the order asked for. Under `all` only of benchmarks that have the protocol.

    Raises:
        ConfigError: an unknown benchmark, protocol or key, a protocol that a benchmark asked for by name does not have, or a
            value out of range; all that is wrong, a line for each.
    """
    suite, candidates = _candidates(names, overrides)
    return suite, {name: its[0].settings for name, its in candidates.items()}


def _candidates(
    names: Sequence[str], overrides: Mapping[str, Any]
) -> tuple[SuiteSettings, dict[str, tuple[Candidate, ...]]]:
    problems: list[Problem] = list(unknown(names))
    refuse(problems)  # what is a setting of which follows from the names
    wanted = list(dict.fromkeys(CATALOG if "all" in names else names))
    overrides = _dotted(overrides)
    protocol = _protocol(overrides)
    if protocol != "auto":
        lacking = [name for name in wanted if not CATALOG[name].has(protocol)]
        if "all" not in names:
            rows = [_no_such_protocol(name, protocol) for name in lacking]
            refuse([(row.bench, ConfigError(f"{row.bench}: {row.reason}; use {row.expected}")) for row in rows])
        wanted = [name for name in wanted if name not in lacking]
    once = {key: value for key, value in overrides.items() if key in SuiteSettings.model_fields}
    values: dict[str, dict[str, Any]] = {
        name: dict(CATALOG[name].smoke) if protocol == "smoke" else {} for name in wanted
    }
    for key in sorted(set(overrides) - set(once), key=lambda key: "." in key):  # those for one of them last
        bench, dot, inner = key.rpartition(".")
        try:
            _check_key(key, bench, inner, wanted, protocol)
        except ConfigError as error:
            problems.append(("", error))
            continue
        for name in [bench] if dot else wanted:
            values[name][inner] = overrides[key]
    candidates = dict[str, tuple[Candidate, ...]]()
    for name in wanted:
        try:
            candidates[name] = _of_one(name, protocol, values[name])
        except ConfigError as error:
            problems.append((name, error))
    try:
        suite = validated(SuiteSettings, once, "benchmarks")
    except ConfigError as error:
        problems.append(("benchmarks", error))
    refuse(problems)
    return suite, candidates


def _protocol(overrides: Mapping[str, Any]) -> Protocol | Auto:
    """The protocol that is asked for.

    Raises:
        ConfigError: there is no such.
    """
    protocol = overrides.get("protocol", "auto")
    if protocol == "page":
        raise ConfigError("protocol=page is called protocol=published now")
    if protocol != "auto" and protocol not in PROTOCOLS:
        raise ConfigError(
            f"protocol: expected one of {', '.join(PROTOCOLS)}, found '{protocol}'{did_you_mean(str(protocol), PROTOCOLS)}"
        )
    asked: Protocol | Auto = protocol
    return asked


def _of_one(name: str, asked: Protocol | Auto, values: Mapping[str, Any]) -> tuple[Candidate, ...]:
    """The candidates of a benchmark.

    Raises:
        ConfigError: a value is out of range, or the keys are of protocols that do not go together.
    """
    found = []
    for protocol in CATALOG[name].protocols_for(asked):
        kind = CATALOG[name].settings_of(protocol)
        its = {key: value for key, value in values.items() if key in kind.model_fields}
        foreign = tuple(key for key in values if key not in its)
        found.append(Candidate(protocol, validated(kind, its, name), foreign))
    if all(candidate.foreign for candidate in found):
        of = "; ".join(f"{name}.{found[1 - i].foreign[0]} of protocol {each.protocol}" for i, each in enumerate(found))
        raise ConfigError(
            f"{name}: expected settings of one protocol, found {of}; give protocol= and leave the other out"
        )
    return tuple(found)


def _no_such_protocol(name: str, protocol: Protocol | Auto) -> NotRun:
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


def _fields(name: str, protocol: Protocol | Auto) -> list[str]:
    """Settings of a benchmark under the protocols that it may be run by."""
    kinds = [CATALOG[name].settings_of(each) for each in CATALOG[name].protocols_for(protocol)]
    return list(dict.fromkeys(field for kind in kinds for field in kind.model_fields))


def _check_key(key: str, bench: str, inner: str, wanted: Sequence[str], protocol: Protocol | Auto) -> None:
    """Refuse a key that no benchmark asked for has, with the nearest that one has."""
    if bench and bench not in CATALOG:
        raise ConfigError(f"{key}: unknown benchmark '{bench}'{did_you_mean(bench, CATALOG)}")
    if bench and bench not in wanted:
        raise ConfigError(f"{key}: {bench} is not among the benchmarks asked for ({', '.join(wanted)})")
    shared = [*BenchSettings.model_fields, *SuiteSettings.model_fields]
    if inner in (_fields(bench, protocol) if bench else shared):
        return
    if inner in RENAMED:
        raise ConfigError(f"{key}: {inner} is called {RENAMED[inner]} now")
    shared += WeightOptions.model_fields
    own = [f"{name}.{field}" for name in wanted for field in _fields(name, protocol) if field not in shared]
    by_last = {word.split(".")[-1]: word for word in [*own, *shared]}
    near = difflib.get_close_matches(inner, by_last, n=1, cutoff=0.5)
    hint = f" (did you mean '{by_last[near[0]]}'?)" if near else ""
    raise ConfigError(
        f"unknown key '{key}'{hint}\nfor every benchmark: {', '.join(shared)}\nfor one of them: {', '.join(own)}"
    )


def _labels(weights: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """What tables call each of the weights."""
    if names and len(names) != len(weights):
        raise ConfigError(f"name: expected one for each of the {len(weights)} --weights, found {len(names)}")
    if len(set(names)) < len(names):
        raise ConfigError(f"name: expected different names, found {', '.join(names)}")
    return dict(zip(weights, names or weights, strict=True))
