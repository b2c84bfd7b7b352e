"""The benchmarks by name: names (request.py) and places (places.py), then weights and data are checked, then each benchmark runs
on each weights.

A protocol is a file of its own, named in catalog.py; its settings are in settings.py, what it is given in task.py. Under
torchrun the processes share the benchmarks that train; the others are run by the first process alone.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import nn

from swav import dist, signals
from swav.agreement import code, require_agreement, seen
from swav.data.images import Images
from swav.data.sources.catalog import DATASETS, Splits, as_pillow
from swav.data.sources.pixels import decoding_of
from swav.errors import ConfigError, DataError, NumericsError, Stopped, printable
from swav.evaluation.catalog import CATALOG
from swav.evaluation.places import POSSIBLE, Opened, check_places, open_data, protocols_chosen, require_some
from swav.evaluation.request import Candidate, Problem, Request, lines_of, read_request, refuse
from swav.evaluation.resources import dry_run_row, format_rows
from swav.evaluation.settings import BenchSettings, one_per_seed
from swav.evaluation.task import NoScore, ProtocolModule, Score, Task, subsample
from swav.files import REPORT, FolderGuard, not_essential, out_folder
from swav.network.backbone import ResNet
from swav.output import say
from swav.reporting.page import report
from swav.results.results import Config, DryRunRow, Key, NotRun, Result, Results, now, read_results, write_results
from swav.system import environment_errors, pick_device, share_cpus, versions
from swav.weights import encoder
from swav.weights.encoder import Encoder
from swav.weights.sources import expanded, is_foreign

Weights = str | Path | nn.Module  # an Encoder is a module


class Measured(NamedTuple):
    """What a command came to.

    Attributes:
        results: the content of results.json.
        rows: those of them that this command measured, by their keys.
        not_run: what this command could not run.
    """

    results: Results
    rows: frozenset[Key] = frozenset()
    not_run: tuple[NotRun, ...] = ()


def bench(
    names: str | Sequence[str],
    *,
    weights: Weights | Sequence[Weights],
    data: str | Path,
    out: str | Path,
    dry_run: bool = False,
    **settings: object,
) -> Results:
    """Run benchmarks and merge their results into OUT/results.json after each; at the end the tables and a report are beside it.

    Args:
        names: one benchmark or several, or `all`, where it is no error but listed in `not_run` that data are missing or too few.
        weights: one or several: a source that swav.load takes; an Encoder; or a module that maps normalised images
            [N, 3, S, S] to features [N, F]. An Encoder or a module needs a name, `name="mine"`, which is the `weights` of its rows.
            A copy of it is measured: it is left as it is.
        data: the data set, or a folder of data sets.
        out: folder for results, logs and the state of benchmarks that train.
        dry_run: say what would be run, and for how long; write nothing.
        settings: `protocol` (published, own or smoke; else the number of classes decides), `seeds`, `name` (one for each of the
            weights), `size`, `precision` ...; those of one benchmark by its name, as `knn={"k": 5}` or `linear_stages={"epochs": 28}`: see swav.evaluation.settings. And what weight files of other
            projects do not say, as `model`, and modules do not say, `mean` and `std`: see swav.config.WeightOptions.

    Returns:
        The content of results.json (of a dry run: what is there, and the rows in `dry_run`).

    Raises:
        ConfigError: a name, a setting or a weight source is unknown, a module has no name or gives no features, a batch cannot
            be parted among the processes, or a k of a benchmark asked for by name is larger than the bank.
        DataError: the data of a benchmark asked for by name is missing or at fault, or under `all` nothing at all could be run.
        CheckpointError: weights are damaged.
        MachineError: there is no such device, or one of several processes is lost.
        Stopped: a signal asked for an end; trained steps, features and results are saved.
    """
    return measure(names, weights=weights, data=data, out=out, dry_run=dry_run, **settings).results


def measure(
    names: str | Sequence[str],
    *,
    weights: Weights | Sequence[Weights],
    data: str | Path,
    out: str | Path,
    dry_run: bool = False,
    **settings: object,
) -> Measured:
    """As bench, with its errors; also returns which of the results this call measured, and which are of earlier ones."""
    out, root = out_folder(out), Path(data).expanduser()
    sources, modules = _sources(weights, settings.get("name"))
    request = read_request([names] if isinstance(names, str) else names, sources, settings)
    suite, labels, everything = request.suite, request.labels, request.everything
    first = next(iter(request.candidates.values()))[0].settings
    device = {name: pick_device(candidates[0].settings.device) for name, candidates in request.candidates.items()}
    with dist.process_group(next(iter(device.values()))), environment_errors():
        share_cpus(dist.world_size())
        asked = {"benchmarks": list(request.candidates), "--weights": labels, "--data": str(data), "--out": str(out)}
        require_agreement(asked | _shared_settings(request) | {"--dry-run": dry_run} | code())
        dist.on_rank0(lambda: check_places(request, root, out, dry_run, modules))
        earlier = read_results(out).results
        encoders = _encoders(list(labels), modules, request.options, first.size)
        opened = dist.on_rank0(lambda: open_data(request, root, None if dry_run else out))
        require_some(opened, root)
        splits = opened.splits
        read = {f"data of {name}": [seen(split, 0) for split in splits[name]] for name in splits}
        require_agreement(read | {f"weights of {network.name}": network.sha256 for network in encoders})
        runs = {
            name: one_per_seed(opened.chosen[name].settings, suite.seeds, len(train), len(val))
            for name, (train, val) in splits.items()
        }
        tasks = [
            (name, task_of(network, splits[name], opened.chosen[name]._replace(settings=seeded), device[name], out))
            for network in encoders
            for name in runs
            for seeded in runs[name]
        ]
        chosen, impossible = dist.on_rank0(lambda: _possible(tasks, everything, opened.problems))
        tasks, absent = [tasks[i] for i in chosen], [*request.absent, *opened.absent, *impossible]
        if dist.rank() == 0:
            _announce(encoders, request, opened, [name for name in runs if len(runs[name]) < suite.seeds])
            compare_decoding(encoders, [task.settings for _, task in tasks])
        if dry_run:
            foretold = _foretold(tasks, absent, out)
        _require_tasks(tasks, [*opened.absent, *impossible], root)
        if dry_run:
            return Measured(foretold)
        if dist.rank() == 0:
            absent = _never_run(absent, earlier, request)
            write_results(out, [], absent)  # a folder that cannot be written to is found before the work
        guard, measured, failed = FolderGuard(out), list[Result](), list[NotRun]()
        with signals.work(), _pages_of_what_is_done(out):
            for i, (name, task) in enumerate(tasks, start=1):
                dist.stop_together()
                dist.say(f"{i} of {len(tasks)}: {name} of {labels[task.encoder.name]}{_which(name, task, runs[name])}")
                dist.on_rank0(guard.check)
                with guard.explaining() if dist.rank() == 0 else nullcontext():
                    rows, lacking = _run(name, task, labels[task.encoder.name], everything)
                    dist.on_rank0(guard.check)
                    if dist.rank() == 0:
                        write_results(out, rows, lacking, make=False)
                measured += rows
                failed += lacking
                if rows:
                    signals.note_saved()
        _require_tasks(measured, [*opened.absent, *impossible, *failed], root)
        results = dist.on_rank0(lambda: read_results(out))
        return Measured(results, frozenset(row.key for row in measured), (*absent, *failed))


@contextmanager
def _pages_of_what_is_done(out: Path) -> Iterator[None]:
    """Write tables and report at the end of the work inside, and where a signal ends it."""
    try:
        yield
    except Stopped:
        if dist.rank() == 0:
            with not_essential(f"{out}/{REPORT}"):
                report(out)
        raise
    if dist.rank() == 0:
        report(out)


def _which(name: str, task: Task[Any], seeded: Sequence[BenchSettings]) -> str:
    """The protocol, and of several seeds which."""
    return f", protocol {task.protocol}" + (f", seed {task.settings.seed}" if len(seeded) > 1 else "")


def protocol_of(name: str, protocol: str = "published") -> ProtocolModule:
    """Return the module of a benchmark's protocol."""
    return cast(ProtocolModule, importlib.import_module(CATALOG[name].module_of(protocol)))


def _shared_settings(request: Request) -> dict[str, Any]:
    """What all processes must have in common: all but `workers`, which follow from a machine's cores."""
    of_benches = {
        f"{name}.{key}": value
        for name, candidates in request.candidates.items()
        for candidate in reversed(candidates)
        for key, value in candidate.settings.model_dump(mode="json", exclude={"workers"}).items()
    }
    return request.suite.model_dump(mode="json") | of_benches | dict(request.options)


def _announce(encoders: Sequence[Encoder], request: Request, opened: Opened, fixed: Sequence[str]) -> None:
    """Say how weights and data were read, which protocols the data decided, and which benchmarks no other seed would change."""
    announce_inputs(encoders, [split for both in opened.splits.values() for split in both])
    for line in protocols_chosen(request, opened):
        say(line)
    if fixed:
        say(f"run once (deterministic): {', '.join(fixed)}")


def announce_inputs(encoders: Sequence[Encoder], splits: Sequence[Images]) -> None:
    """Say how weight files were read, what was left out of the data, and what is odd about them."""
    for network in encoders:
        if network.provenance:
            say(network.provenance)
    for note in dict.fromkeys(split.note for split in splits if split.left_out):
        say(f"data: {note}")
    for warning in dict.fromkeys(text for split in splits for text in split.warnings):
        say(f"warning: {warning}")


def compare_decoding(encoders: Sequence[Encoder], settings: Sequence[BenchSettings]) -> None:
    """Say where weights were trained on images that were read in another way than these are going to be."""
    for network in encoders:
        for key, there in network.decoding._asdict().items():
            here = sorted({str(getattr(chosen, key)) for chosen in settings} - {str(there)})
            if here:
                say(
                    f"note: {network.name} was trained on images read with {key}={there}, and here it is {', '.join(here)}; "
                    f"where these images are of that kind, add {key}={there}"
                )


def _never_run(absent: Sequence[NotRun], earlier: Sequence[Result], request: Request) -> list[NotRun]:
    """Those of which no earlier run has results, as from another --data; of the others it is said that these stay."""
    there = {
        (row.bench, row.weights)
        for row in earlier
        if row.bench in CATALOG and row.protocol in CATALOG[row.bench].protocols_for(request.suite.protocol)
    }
    found = []
    for row in absent:
        if all((row.bench, each) in there for each in ([row.weights] if row.weights else request.labels)):
            of = f" of {row.weights}" if row.weights else ""
            say(f"{row.bench}{of}: not run now, its earlier results stay: {row.reason}")
        else:
            found.append(row)
    return found


def _require_tasks(there: Sequence[object], absent: Sequence[NotRun], data: Path) -> None:
    """Refuse to end as though something had been measured.

    Raises:
        DataError: nothing could be run, though there were data: a line for each reason but missing data.
    """
    if not there:
        with_data = [row for row in absent if row.expected != DATASETS[CATALOG[row.bench].settings.data].expected]
        lines = lines_of((row.bench, row.reason) for row in with_data)
        raise DataError(
            "\n".join([f"{printable(str(data))}: expected data that a benchmark can use, found none", *lines])
        )


def _run(name: str, task: Task[Any], label: str, everything: bool) -> tuple[list[Result], list[NotRun]]:
    """One benchmark of one set of weights: by all processes together, or by the first while the others wait."""
    run, distributed = protocol_of(name, task.protocol).run, CATALOG[name].is_distributed(task.protocol)
    task.encoder.to(task.device)
    try:
        scores = run(task) if distributed else dist.on_rank0(lambda: _by_itself(run, task))
    except (ConfigError, DataError, NumericsError) as error:  # as of a bank that undecodable images left smaller than k
        of_one = isinstance(error, DataError) and distributed and dist.is_active()
        if not everything or of_one:  # of one process: the others still wait for it in the benchmark
            raise
        return [], [NotRun(bench=name, reason=str(error), expected=POSSIBLE, weights=task.encoder.name)]
    finally:
        task.encoder.cpu()  # makes room for the next
    rows = [_result(name, task, score, label) for score in scores if isinstance(score, Score)]
    lacking = [
        NotRun(bench=name, reason=score.reason, expected=score.expected, metric=score.metric)
        for score in scores
        if isinstance(score, NoScore)
    ]
    return rows, lacking


def _by_itself(run: Callable[[Task[Any]], Sequence[Score | NoScore]], task: Task[Any]) -> Sequence[Score | NoScore]:
    with dist.single_process():
        return run(task)


def _possible(
    tasks: Sequence[tuple[str, Task[Any]]], everything: bool, others: Sequence[Problem]
) -> tuple[list[int], list[NotRun]]:
    """Places of the tasks that pass their benchmark's check; under `all` also those that do not, elsewhere these are one
    error, with the other problems that are known.

    Several processes take the first one's word: a file of samples may be on its machine only.
    """
    possible, problems = list[int](), dict[tuple[str, str], Problem]()
    for i, (name, task) in enumerate(tasks):
        try:
            check_size(name, task)
            protocol_of(name, task.protocol).check(task)
        except (ConfigError, DataError) as error:
            problems[name, task.encoder.name] = (name, error)
        else:
            possible.append(i)
    if not everything:
        refuse([*others, *problems.values()])
    return possible, [
        NotRun(bench=name, reason=str(error), expected=POSSIBLE, weights=weights)
        for (name, weights), (_, error) in problems.items()
    ]


def check_size(name: str, task: Task[Any]) -> None:
    """Refuse a network that does not take images of this size, as a transformer whose patches do not divide it."""
    if isinstance(task.encoder.trunk, ResNet):  # takes all
        return
    try:
        with torch.no_grad():
            task.encoder(task.one_image())
    except Exception as error:  # a model may raise anything at a size that it was not made for
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        size, own = task.settings.size, task.encoder.size
        advice = f"use another {name}.size" if size == own else f"use {name}.size={own}"
        raise ConfigError(f"{task.encoder.name}: does not take images of {size} pixels ({reason}); {advice}") from None


def _sources(weights: Weights | Sequence[Weights], name: object) -> tuple[list[str], dict[str, nn.Module]]:
    """Weight sources, a module by the name that it is given; and the modules by these names."""
    given = [weights] if isinstance(weights, str | Path | nn.Module) else list(weights)
    names = [name] if isinstance(name, str) else list(name) if isinstance(name, list | tuple) else []
    sources, modules = list[str](), dict[str, nn.Module]()
    for i, each in enumerate(given):
        if not isinstance(each, nn.Module):
            sources.append(expanded(str(each)))
            continue
        if len(names) != len(given):
            raise ConfigError(
                f"name: expected a name for each of the weights, as one is a module, found {len(names)} for {len(given)}; "
                "give name='mine', or a list"
            )
        modules[str(names[i])] = each
        sources.append(str(names[i]))
    if modules and len(set(sources)) < len(sources):
        raise ConfigError(f"name: expected different names, found {', '.join(sources)}")
    return sources, modules


def _encoders(
    sources: Sequence[str], modules: Mapping[str, nn.Module], options: Mapping[str, Any], size: int
) -> list[Encoder]:
    """Options are for foreign files and modules; where there is none, the first says that it has no use for them."""
    takers = [source for source in sources if _takes_options(source, modules)] or sources[:1]
    found = []
    for source in sources:
        its = options if source in takers else {}
        if source in modules:
            found.append(encoder.of_module(modules[source], source, size, its))
        else:
            found.append(encoder.load(source, **its))
    return found


def _takes_options(source: str, modules: Mapping[str, nn.Module]) -> bool:
    return not isinstance(modules[source], Encoder) if source in modules else is_foreign(source)


def task_of(network: Encoder, splits: Splits, chosen: Candidate, device: torch.device, out: Path) -> Task[Any]:
    settings = chosen.settings
    if chosen.protocol == "own" and "size" not in settings.model_fields_set:
        settings = settings.model_copy(update={"size": network.size})
    how = decoding_of(settings)
    train = subsample(splits[0].decoded(how), settings.train_images, settings.seed)
    undivided = splits[0] is splits[1]
    val = train if undivided else subsample(splits[1].decoded(how), settings.score_images, settings.seed)
    return Task(network, *as_pillow((train, val)), settings, chosen.protocol, device, out)


def _result(name: str, task: Task[Any], score: Score, label: str) -> Result:
    config = {
        **task.settings.model_dump(mode="json"),
        "workers": task.workers,
        "device": str(task.device),
        "data": [task.train.note, task.val.note],
        "data_fingerprints": [task.train.fingerprint, task.val.fingerprint],
        "damaged_images": sum(len(images.damaged) for images in {task.train, task.val}),  # read as far as Pillow does
        "network": task.encoder.settings,
        "mean": task.encoder.mean,
        "std": task.encoder.std,
    }
    optional = {"spread": score.spread, "interval": score.interval}
    return Result(
        bench=name,
        metric=score.metric,
        value=score.value,
        unit=score.unit,
        n=score.n,
        protocol=task.protocol,
        comparable=not score.deviations,
        difference=score.deviations,
        seed=task.settings.seed,
        weights=task.encoder.name,
        name=label,
        weights_sha256=task.encoder.sha256,
        versions=versions(),
        config=Config.from_json(config),
        log=score.log,
        measured=now(),
        **{key: value for key, value in optional.items() if value is not None},
    )


def _foretold(tasks: Sequence[tuple[str, Task[Any]]], absent: Sequence[NotRun], out: Path) -> Results:
    """What is there, what each benchmark would take, and what cannot be run."""

    def rows() -> list[DryRunRow]:
        found = [
            dry_run_row(name, task, protocol_of(name, task.protocol).estimate_resources(task)) for name, task in tasks
        ]
        say(format_rows(found, absent))
        return found

    found = dist.on_rank0(rows)
    missing = [NotRun(**dict(row)) for row in absent]  # with every field, as the other rows have them
    return read_results(out).model_copy(update={"dry_run": (*found, *missing)})
