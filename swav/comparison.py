"""`swav compare`: is training on these images worth it? Random weights, given ones, trained from scratch and adapted, side by side.

The trainings see no label, and no choice in them is made by what scores: kNN on the way is off, and which checkpoint is the best
is found without labels. Scored is by protocol own of kNN and linear, and differences are paired over the same images.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swav import checkpoint, dist
from swav.config import DecodingSettings
from swav.errors import ConfigError, DataError, counted, printable_lines
from swav.evaluation.own import require_labels
from swav.evaluation.places import open_data
from swav.evaluation.request import read_request, refuse
from swav.evaluation.runner import bench
from swav.files import CHECKPOINTS, METRICS, out_folder, write_text_durably
from swav.jsonl import is_metrics, read_if_possible
from swav.output import deliver
from swav.reporting.run_folder import seconds_trained
from swav.results.console import aligned, headlines, in_points
from swav.results.intervals import LEVEL, PairedDifference
from swav.results.paired import paired_difference
from swav.results.results import OWN, Result
from swav.system import environment_errors, pick_device
from swav.training.auto import in_words
from swav.training.loop import pretrain
from swav.weights.exported import FOLDER, WEIGHTS
from swav.weights.sources import check_source, expanded

BENCHES = ("knn", "linear")
SCRATCH, ADAPTED = "from scratch", "adapted"  # of the two trainings; their folders are called scratch and adapted
OWN_KEYS = ("data", "init", "hours", "knn_every_epochs")  # that are not for the user to set here
TABLE, CONTENT = "comparison.md", "comparison.json"
FORMAT = 1


class Arm(NamedTuple):
    """Weights that are compared.

    Attributes:
        name: what the table calls them.
        source: the weight source.
        seconds: of training here; None: they were not trained here.
        seen: images that they were trained on here, each as often as it was seen.
        ended: why the training ended by itself, or None.
    """

    name: str
    source: str
    seconds: float | None = None
    seen: int = 0
    ended: str | None = None


def compare(
    data: str | Path,
    *,
    out: str | Path,
    labelled: str | Path | None = None,
    init: str | Path | None = None,
    hours: float | None = None,
    dry_run: bool = False,
    **settings: object,
) -> Path | None:
    """Find out whether training on a folder of images is worth it; the same call again resumes.

    Args:
        data: the images to train on.
        out: folder for the trainings (scratch/, adapted/), results.json, comparison.md and comparison.json.
        labelled: a data set with classes, to score by; None: `data` itself.
        init: existing weights: they are scored as they are, and adapted.
        hours: for each training; None: as long as `auto` finds right.
        dry_run: say what would be trained; write nothing.
        settings: of both trainings, see `pretrain`.

    Returns:
        comparison.md; None of a dry run.

    Raises:
        ConfigError: a setting is unknown or not for the user to set here, or `init` names nothing.
        DataError: images or labels are missing.
        Stopped: a signal asked for an end; the same call resumes.
    """
    out, labelled = out_folder(out), str(data if labelled is None else labelled)
    init = None if init is None else expanded(str(init))
    refuse_own_keys(settings)
    if init is not None:
        check_source(str(init))
    with dist.process_group(pick_device()), environment_errors():
        scored = dist.on_rank0(lambda: _check_labels(Path(labelled), asked=labelled != str(data)))
        plans: dict[str, dict[str, Any]] = {SCRATCH: {}} | ({ADAPTED: {"init": str(init)}} if init is not None else {})
        each = "" if hours is None else f" of {counted(hours, 'hour')}"
        words = f"{counted(len(plans), 'training')}{each}, then {' and '.join(BENCHES)} on {counted(scored, 'image')}"
        dist.say(f"compare: {words}")
        shared = settings | {"data": str(data), "hours": hours, "knn_every_epochs": 0}
        trained = []
        for name, own in plans.items():
            folder = out / name.rpartition(" ")[2]
            dist.say(f"compare: {name}" + ("" if dry_run else f", in {folder}"))
            pretrain("auto", out=folder, dry_run=dry_run, **shared | own)
            if not dry_run:
                trained.append(dist.on_rank0(functools.partial(_arm, name, folder)))
        if dry_run:
            return None
        given = [] if init is None else [Arm("given", str(init))]
        arms = [Arm("random", f"random:{out / 'scratch'}"), *given, *trained]
        sources, names = [arm.source for arm in arms], [arm.name for arm in arms]
        decoding: dict[str, Any] = {key: settings[key] for key in DecodingSettings.model_fields if key in settings}
        found = bench(BENCHES, weights=sources, name=names, data=labelled, out=out, protocol=OWN, **decoding).results
        if dist.rank() == 0:
            _write(arms, headlines(found, sources), out, _budget(hours, settings))
    return out / TABLE


def _check_labels(labelled: Path, asked: bool) -> int:
    """Find out before hours of training whether the labels can be scored by.

    Args:
        asked: the user named them.

    Returns:
        How many images are scored.

    Raises:
        DataError: there are none, or too few of too few classes.
    """
    request = read_request(BENCHES, ["random:resnet18"], {"protocol": OWN})
    try:
        opened = open_data(request, labelled, None)
        refuse(opened.problems)
        train, val = opened.splits[BENCHES[0]]
        assert train.labels is not None
        require_labels(train, train.labels, in_folds=train is val, groups=train.groups)
    except DataError as error:
        if asked:
            raise
        raise DataError(f"{error}\nto score by the labels of other images, give --labelled FOLDER") from error
    return len(val)


def _budget(hours: float | None, settings: Mapping[str, object]) -> str:
    """The budget of each training, as text."""
    if hours is not None:
        return counted(hours, "hour")
    epochs = settings.get("epochs", "auto")
    return counted(epochs, "epoch") if isinstance(epochs, int) else "as long as auto finds right"


def _write(arms: Sequence[Arm], rows: Mapping[str, Mapping[str, Result]], out: Path, budget: str) -> None:
    text = printable_lines(format_comparison(arms, rows, out, budget))
    write_text_durably(out / CONTENT, json.dumps(_content(arms, rows, out, budget), indent=1) + "\n")
    write_text_durably(out / TABLE, text + "\n")
    deliver(f"{text}\n{out / TABLE}")


def refuse_own_keys(settings: Mapping[str, object]) -> None:
    """Refuse settings that compare chooses, so that what trains and what scores share no choice.

    Raises:
        ConfigError: one is given.
    """
    if given := [key for key in OWN_KEYS if key in settings]:
        raise ConfigError(f"{given[0]}: is set by compare itself; use --data, --init or --hours, and leave it out")


def _arm(name: str, run: Path) -> Arm:
    """What a finished training came to: the weights that it exported.

    Raises:
        ConfigError: labels had a part in it.
    """
    newest = checkpoint.newest(run / CHECKPOINTS)
    state = {} if newest is None else checkpoint.read_state(newest)
    if state.get("knn_start") is not None or state.get("best_knn") is not None:
        raise ConfigError(
            f"{run}: expected a training that no label had a part in, found one that was scored by kNN on the way; use another --out"
        )
    lines = read_if_possible(run / METRICS, is_metrics)
    seen = state.get("step", 0) * state.get("recipe", {}).get("batch", 0)
    return Arm(name, str(run / FOLDER / WEIGHTS), seconds_trained(lines), seen, state.get("ended"))


def pairs_of(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Which weights are compared with which: each training with what one has without it, and the two with each other."""
    by_name = {arm.name: arm for arm in arms}
    wanted = [("random", SCRATCH), ("given", SCRATCH), ("given", ADAPTED), (SCRATCH, ADAPTED)]
    return [(by_name[one], by_name[other]) for one, other in wanted if one in by_name and other in by_name]


def judged(differences: Sequence[PairedDifference]) -> str:
    """Judge differences of several benchmarks: those count that are beyond chance, though several were looked at (Holm 1979)."""
    ordered = sorted(differences, key=lambda found: found.p_value)
    signs = set[bool]()
    for place, found in enumerate(ordered):
        if found.p_value > (1 - LEVEL) / (len(ordered) - place):
            break
        signs.add(found.difference > 0)
    return {
        frozenset({True}): "worth it",
        frozenset({False}): "not worth it, it is worse",
        frozenset({True, False}): "not clear, one is better and one worse",
    }.get(frozenset(signs), "not worth it, no difference is shown")


def format_comparison(arms: Sequence[Arm], rows: Mapping[str, Mapping[str, Result]], folder: Path, budget: str) -> str:
    """Format the table and the verdicts.

    Args:
        rows: {benchmark: {weights: row}}.
        folder: that of their results.json.
        budget: of each training, as text.

    Raises:
        DataError: results are of different images, or their logs are missing.
    """
    first = next(iter(rows.values()))
    metrics = [f"{name} {its[arms[0].source].metric} [%]" for name, its in rows.items()]
    table = [["weights", *metrics, "network", "training", "images seen"]]
    for arm in arms:
        values = [f"{its[arm.source].value:.1f}" for its in rows.values()]
        table.append([arm.name, *values, _network(first[arm.source]), _time(arm), f"{arm.seen:,}" if arm.seen else "-"])
    lines = ["## Is training worth it?", "", f"Budget of each training: {budget}.", "", *aligned(table, left=1), ""]
    for one, other in pairs_of(arms):
        found = _differences(one, other, rows, folder)
        gains = ", ".join(f"{name} {in_points(difference)}" for name, difference in found.items())
        spent = f", for {_time(other)}" if other.seconds is not None and one.seconds is None else ""
        verdict = judged(list(found.values()))
        lines.append(f"- {other.name}, against {_called(one)}: {verdict}: {gains}{spent}")
    lines += [f"- {arm.name}: the training ended by itself: {arm.ended}" for arm in arms if arm.ended]
    return "\n".join(
        [
            *lines,
            "",
            f"Points of % on {first[arms[0].source].n:,} images, with 95 % intervals paired over these images. They say nothing of another",
            "training run, which would give other numbers. Protocol own; no label was seen in training. A verdict counts what is",
            "beyond chance in kNN and linear together (Holm).",
        ]
    )


def _network(row: Result) -> str:
    """Network and size of the images, which may differ between weights."""
    its = row.config.network
    width = "" if its.width in (None, 1) else f" x {its.width}"
    return f"{its.backbone}{width}, {row.config.size} px"


def _called(arm: Arm) -> str:
    names = {"random": "random weights", "given": f"the given weights ({arm.source})", SCRATCH: "training from scratch"}
    return names.get(arm.name, arm.name)


def _time(arm: Arm) -> str:
    return "-" if arm.seconds is None else in_words(arm.seconds)


def _differences(
    one: Arm, other: Arm, rows: Mapping[str, Mapping[str, Result]], folder: Path
) -> dict[str, PairedDifference]:
    return {name: paired_difference(its[one.source], its[other.source], folder) for name, its in rows.items()}


def _content(
    arms: Sequence[Arm], rows: Mapping[str, Mapping[str, Result]], folder: Path, budget: str
) -> dict[str, Any]:
    """What comparison.json holds."""
    weights = [
        arm._asdict()
        | {name: its[arm.source].value for name, its in rows.items()}
        | {"weights_sha256": next(iter(rows.values()))[arm.source].weights_sha256}
        for arm in arms
    ]
    differences = []
    for one, other in pairs_of(arms):
        found = _differences(one, other, rows, folder)
        its = {
            name: {"points": 100 * each.difference, "interval": [100 * end for end in each.interval], "p": each.p_value}
            for name, each in found.items()
        }
        differences.append({"of": other.name, "over": one.name, "verdict": judged(list(found.values()))} | its)
    return {"format": FORMAT, "budget": budget, "weights": weights, "differences": differences}
