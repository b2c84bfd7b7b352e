"""The benchmarks by name: settings, weights and data are checked in this order, then each benchmark runs on each weights.

A protocol is a file of its own, named in BENCHES; its settings are in settings.py, what it is given in task.py.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from swav import dist
from swav.data import lists, voc
from swav.data.images import Images, labelled_halves
from swav.errors import ConfigError, DataError
from swav.evaluation import inat18, knn, linear, linear_stages, lowshot, places205, semisup, svm
from swav.evaluation.settings import (
    BenchSettings,
    LowshotSettings,
    Protocol,
    SvmSettings,
    TrainSettings,
    resolve,
    split_options,
)
from swav.evaluation.task import NoScore, Score, Task, drawn
from swav.features import pooled_features, stage_features_of
from swav.network import encoder
from swav.network.encoder import Encoder
from swav.reporting.results import NotRun, Result, read_results, table, write_results
from swav.runtime import pick_device, versions

BENCHES: dict[str, Callable[[Task[Any]], Sequence[Score | NoScore]]] = {
    "knn": knn.run,
    "linear": linear.run,
    "linear-stages": linear_stages.run,
    "places205": places205.run,
    "inat18": inat18.run,
    "semisup": semisup.run,
    "svm": svm.run,
    "lowshot": lowshot.run,
}
CHECKS: dict[str, Callable[[Task[Any]], None]] = {  # before any is run
    "knn": knn.check,
    "linear": linear.check,
    "linear-stages": linear_stages.check,
    "places205": places205.check,
    "inat18": inat18.check,
    "semisup": semisup.check,
    "svm": svm.check,
    "lowshot": lowshot.check,
}

# Folders of this name are looked for where ROOT is a folder of data sets.
DATA_SETS = ("imagenet", "imagenette")
POSSIBLE = "more training images, or other settings"
LABELLED = "a labelled data set under --data: train/CLASS/ beside val/CLASS/ (or test/), class folders, a CSV path,label[,split], or CIFAR"
EXPECTED_VOC = f"PASCAL VOC 2007 as VOCdevkit/VOC2007 under --data: {voc.HOW}"
EXPECTED: dict[str, str] = {
    "knn": LABELLED,
    "linear": LABELLED,
    "linear-stages": LABELLED,
    "places205": f"Places205 as Places205/ under --data: {lists.HOW_PLACES205}",
    "inat18": f"iNaturalist 2018 as iNaturalist2018/ under --data: {lists.HOW_INAT18}",
    "semisup": LABELLED,
    "svm": EXPECTED_VOC,
    "lowshot": EXPECTED_VOC,
}

Halves = tuple[Images, Images]


def _labelled(root: Path, cache: Path | None, protocol: Protocol) -> Halves:
    return labelled_halves(_root(root), cache)


# What a benchmark learns from and what it scores; each finds its data set at ROOT or below it.
DATA: dict[str, Callable[[Path, Path | None, Protocol], Halves]] = {
    "knn": _labelled,
    "linear": _labelled,
    "linear-stages": _labelled,
    "places205": lists.places205_halves,
    "inat18": lists.inat18_halves,
    "semisup": _labelled,
    "svm": voc.classification_halves,
    "lowshot": voc.classification_halves,
}


def bench(
    names: Sequence[str],
    weights: Sequence[str],
    data: str | Path,
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Runs benchmarks and merges their results into OUT/results.json after each.

    Args:
        names: of benchmarks, or `all`, where it is no error but listed in `not_run` that data are missing or too few.
        weights: sources, as swav.load takes them.
        data: the labelled data set, or a folder of data sets.
        out: folder for results, logs and the state of benchmarks that train.
        overrides: `protocol`, `size`, `knn.k` ...; see swav.evaluation.settings. And what other projects' weight files
            do not say, as `model`; see swav.config.WeightOptions.
        dry_run: say what would be run, and for how long; write nothing.

    Returns:
        The content of results.json (of a dry run: what is there, and the rows under `dry_run`).

    Raises:
        ConfigError: a name, a setting or a weight source is unknown, there are several processes, or a k of a benchmark
            asked for by name is larger than the bank.
        DataError: the data of a benchmark asked for by name is missing, or less than a batch.
        CheckpointError: weights are damaged.
    """
    out = Path(out)
    options, overrides = split_options(overrides or {})
    protocol, settings = resolve(names, overrides)
    if (processes := dist.launched_world_size()) > 1:  # each would write the same files
        raise ConfigError(
            f"swav bench: expected one process, found {processes}; start it without torchrun (it uses one GPU, and all cores)"
        )
    if not weights:
        raise ConfigError("weights: expected at least one source (a run folder, a checkpoint, random:NAME), found none")
    read_results(out)  # a file that is none is found before the work
    devices = {name: pick_device(chosen.device) for name, chosen in settings.items()}
    encoders = _encoders(list(dict.fromkeys(weights)), options)
    everything = "all" in names
    halves, missing = _halves(settings, Path(data), None if dry_run else out, protocol, everything)
    tasks = [
        (name, _task(network, halves[name], chosen, protocol, devices[name], out))
        for network in encoders
        for name, chosen in settings.items()
        if name in halves
    ]
    tasks, absent = _possible(tasks, everything)
    absent = [*missing, *absent]
    for network in encoders:
        if network.story:
            print(network.story, file=sys.stderr)
    if dry_run:
        rows = [_forecast(name, task) for name, task in tasks]
        print(_rendered(rows), file=sys.stderr)
        told = _told(read_results(out), absent)
        return told | {"dry_run": rows + told["dry_run"]}
    write_results(out, [], absent)  # a folder that cannot be written to is found before the work
    for name, task in tasks:
        task.encoder.to(task.device)
        try:
            scores = BENCHES[name](task)
        except ConfigError as error:  # a bank that undecodable images left smaller than k
            if not everything:
                raise
            write_results(out, [], [NotRun(name, str(error), POSSIBLE)])
            continue
        finally:
            task.encoder.cpu()  # makes room for the next
        write_results(
            out,
            [_result(name, task, score) for score in scores if isinstance(score, Score)],
            [
                NotRun(name, score.reason, score.expected, score.metric)
                for score in scores
                if isinstance(score, NoScore)
            ],
        )
    return read_results(out)


def _halves(
    names: Iterable[str], data: Path, cache: Path | None, protocol: Protocol, everything: bool
) -> tuple[dict[str, Halves], list[NotRun]]:
    """The data of each benchmark, opened once per kind; under `all` also which are missing, elsewhere an error."""
    opened: dict[Callable[..., Halves], Halves | DataError] = {}
    halves, absent = dict[str, Halves](), list[NotRun]()
    for name in names:
        find = DATA[name]
        if find not in opened:
            try:
                opened[find] = find(data, cache, protocol)
            except DataError as error:
                opened[find] = error
        found = opened[find]
        if not isinstance(found, DataError):
            halves[name] = found
        elif not everything:
            raise found
        else:
            absent.append(NotRun(name, str(found).splitlines()[0], EXPECTED[name]))
    return halves, absent


def _possible(
    tasks: Sequence[tuple[str, Task[Any]]], everything: bool
) -> tuple[list[tuple[str, Task[Any]]], list[NotRun]]:
    """The tasks that pass their benchmark's check; under `all` also those that do not, elsewhere these are an error."""
    possible, absent = [], dict[str, NotRun]()
    for name, task in tasks:
        try:
            CHECKS[name](task)
        except (ConfigError, DataError) as error:
            if not everything:
                raise
            absent[name] = NotRun(name, str(error), POSSIBLE)
        else:
            possible.append((name, task))
    return possible, list(absent.values())


def _encoders(sources: Sequence[str], options: Mapping[str, Any]) -> list[Encoder]:
    """Options are for the foreign ones; where there is none, the first says that it has no use for them."""
    foreign = [source for source in sources if encoder.is_foreign(source)] or sources[:1]
    return [encoder.load(source, **(options if source in foreign else {})) for source in sources]


def _root(data: Path) -> Path:
    """The data set itself, or the one to use in a folder of data sets."""
    if not (data / "train").is_dir():
        for name in DATA_SETS:
            if (data / name / "train").is_dir():
                return data / name
    return data


def _task(
    network: Encoder, halves: tuple[Images, Images], settings: BenchSettings, protocol: Protocol, device: Any, out: Path
) -> Task[Any]:
    train = drawn(halves[0], settings.train_images, settings.seed)
    score = drawn(halves[1], settings.score_images, settings.seed)
    return Task(network, train, score, settings, protocol, device, out)


def _result(name: str, task: Task[Any], score: Score) -> Result:
    config = {
        **task.settings.model_dump(mode="json"),
        "workers": task.workers,
        "device": str(task.device),
        "data": [task.train.note, task.score.note],
        "data_fingerprints": [task.train.fingerprint, task.score.fingerprint],
        "network": task.encoder.settings,
        "mean": task.encoder.mean,
        "std": task.encoder.std,
    }
    return Result(
        bench=name,
        metric=score.metric,
        value=score.value,
        unit="%",
        n=score.n,
        protocol=task.protocol,
        comparable=not score.difference,
        difference=score.difference,
        seed=task.settings.seed,
        weights=task.encoder.name,
        weights_sha256=task.encoder.sha256,
        versions=versions(),
        config=config,
        log=score.log,
    )


def _forecast(name: str, task: Task[Any]) -> dict[str, Any]:
    """What a benchmark would take, from the time of its first images on this machine."""
    sample = drawn(task.train, 64, seed=0)
    task.encoder.to(task.device)
    stages = isinstance(task.settings, SvmSettings | LowshotSettings)
    values = 0  # per image, on disk
    if stages:
        view = torch.zeros(1, task.settings.size, task.settings.size, 3, dtype=torch.uint8)
        values = sum(one.shape[1] for one in stage_features_of(task.encoder, view, task.device))
    began = time.monotonic()
    features = pooled_features(
        task.encoder,
        sample,
        task.settings.size,
        workers=0,
        device=task.device,
        precision=task.settings.precision,
    ).features
    seconds = (time.monotonic() - began) / len(sample)
    task.encoder.cpu()
    trains = isinstance(task.settings, TrainSettings)
    passes = task.settings.epochs if isinstance(task.settings, TrainSettings) else 1
    kept = len(task.score) + (0 if trains else len(task.train))
    disk = 4 * features.shape[1] * task.num_classes * 4 if trains else 4 * values * kept
    # of SVMs: a stage's features, and some matrices between all training images in float64
    memory = 4 * kept * (values / max(1, len(task.encoder.stage_channels))) + 40 * len(task.train) ** 2
    return {
        "bench": name,
        "weights": task.encoder.name,
        "data": f"{task.train.note}: {len(task.train)}; {task.score.note}: {len(task.score)}",
        "hours": round(seconds * (passes * len(task.train) + len(task.score)) / 3600, 3),
        "memory_gb": round((memory if stages else kept * features.shape[1] * 4) / 1e9, 3),
        "disk_gb": round(disk / 1e9, 3),
    }


def _rendered(rows: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(
        f"{row['bench']} of {row['weights']}: at most {row['hours']:.2f} h, {row['memory_gb']:.2f} GB of memory beside the network's, "
        f"{row['disk_gb']:.2f} GB of disk; {row['data']}"
        for row in rows
    )


def _told(before: dict[str, list[dict[str, Any]]], absent: Sequence[NotRun]) -> dict[str, Any]:
    missing = [dataclasses.asdict(row) for row in absent]
    if missing:
        print(table({"results": [], "not_run": missing}), file=sys.stderr)
    return before | {"dry_run": missing}
