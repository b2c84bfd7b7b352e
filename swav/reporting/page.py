"""report.html: one page that opens offline and says what a run learned, how it went, and with which settings.

Everything on it comes from the files of a run's folder. No script, no link to another machine; the template escapes
every value. A name that is not valid text (a lone surrogate) is shown by its code.
"""

import datetime
import math
import os
import struct
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from swav.config import Recipe
from swav.errors import DataError, counted
from swav.files import PREDICTIONS, REPORT, expand_home
from swav.reporting.curves import Chart, line_chart, number
from swav.reporting.run_folder import RunFolder, read_folder, seconds_trained
from swav.results.console import not_shown
from swav.results.intervals import Interval, unpaired
from swav.results.paired import paired_difference
from swav.results.render import html_templates, write_tables
from swav.results.results import Result, Results, read_damaged_results, summary
from swav.results.units import decimals_of, headline_of, known_metric
from swav.version import swav_version
from swav.weights.exported import FOLDER, RIGHTS, WEIGHTS, usage, which

MAX_BAD_SHOWN = 200

# key of metrics.jsonl, title, unit, factor, a level that the axis reaches down to, what to see in it
CURVES: tuple[tuple[str, str, str, float, float | None, str], ...] = (
    ("loss", "Loss", "nats", 1, None, "At ln K nothing is learned yet; staying there is collapse."),
    ("loss_gap", "Loss below ln K", "nats", 1, 0.0, "Grows as crops of an image agree."),
    (
        "knn_top1",
        "kNN top-1",
        "%",
        1,
        None,
        "Nearest neighbours of frozen features; labels are used for this number only.",
    ),
    (
        "view_retrieval",
        "View retrieval",
        "%",
        1,
        None,
        "How often an image is found by another view of it; the first point is of the weights at the start.",
    ),
    ("prototypes_used", "Prototypes in use", "%", 100, 0.0, "Share that was the first choice of some recent image."),
    ("rankme", "Effective rank", "RankMe", 1, 0.0, "How many directions the embeddings of a batch fill."),
    ("gradient_norm", "Gradient norm", "", 1, 0.0, "Spikes announce trouble."),
    ("images_per_second", "Speed", "images/s", 1, 0.0, "Over all processes."),
    ("data_wait", "Waiting for images", "% of time", 100, 0.0, "Above 30 %: more workers, or smaller files."),
    ("lr", "Learning rate", "", 1, 0.0, "As scheduled."),
)


def report(folder: str | Path, *, other: str | Path | None = None, siblings: bool = False) -> Path:
    """Write the report of a run or of benchmark results, or a comparison of two. Results are also put into the tables of
    the published page (render.write_tables), which the report links.

    Args:
        folder: of the run; the page is written there.
        other: a second run to compare with; the page is then compare.html, and report.html is left alone.
        siblings: put published rows of other methods and trainings into tables.md and tables.tex too; tables.html has them folded.

    Returns:
        Path of the page.

    Raises:
        DataError: a folder is missing, or holds neither a run nor results.
    """
    folder = Path(expand_home(folder))
    runs = [read_folder(folder)] + ([read_folder(Path(expand_home(other)))] if other is not None else [])
    if other is None and (runs[0].results.results or runs[0].results.not_run):
        write_tables(folder, _results_of, siblings)
    page = folder / (REPORT if other is None else "compare.html")
    html = (
        html_templates(Path(__file__).parent / "templates").get_template("report.html").render(_content(runs, folder))
    )
    beside = page.with_name(f".{page.name}.{os.getpid()}.tmp")
    beside.write_bytes(html.encode("utf-8", errors="backslashreplace"))
    beside.replace(page)
    return page


def _results_of(folder: Path) -> Results:
    """Of a folder as a report reads it, damaged or not."""
    return read_damaged_results(folder)[0]


def _content(runs: Sequence[RunFolder], page_folder: Path) -> dict[str, Any]:
    names = _labels(runs)
    return {
        "title": " against ".join(names),
        "runs": [
            {"name": name, "facts": facts(run), "verdict": run.verdict} for name, run in zip(names, runs, strict=True)
        ],
        "problems": [problem for run in runs for problem in run.problems],
        "results": results_table(runs),
        "not_run": [row for run in runs for row in run.results.not_run],
        "tables": [f"tables.{kind}" for kind in ("html", "md", "tex")] if len(runs) == 1 else [],
        "exported": exported(runs[0]) if len(runs) == 1 else None,
        "charts": charts(names, runs),
        "views": views(runs[0]) if len(runs) == 1 else None,
        "predictions": [row for run in runs for row in predictions(run, page_folder)],
        "bad": [line for run in runs for line in run.bad][:MAX_BAD_SHOWN],
        "bad_total": sum(len(run.bad) for run in runs),
        "settings": settings_table(runs),
        "setting_names": names if len(runs) > 1 else ["value"],
        "version": swav_version(),
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


def _labels(runs: Sequence[RunFolder]) -> list[str]:
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def facts(run: RunFolder) -> list[tuple[str, str]]:
    """What a run was, in a few words each; what is not known is left out."""
    settings, state = run.settings, run.state
    steps = [line for line in run.metrics if "loss" in line]
    found: list[tuple[str, str]] = []
    if settings.get("data") is not None:
        count = f"{state['num_images']:,} from " if isinstance(state.get("num_images"), int) else ""
        bad = f"; {counted(len(run.bad), 'file')} could not be read" if run.bad else ""
        found.append(("Images", f"{count}{settings['data']}{bad}"))
    if "backbone" in settings:
        width = "" if settings.get("width") in (None, 1, 1.0) else f", width {settings['width']}"
        found.append(("Network", f"{settings['backbone']}{width}, stem {settings.get('stem')}"))
    if isinstance(settings.get("crops"), list):
        found.append(("Views", " + ".join(f"{crop['count']} × {crop['size']} px" for crop in _crops(settings))))
    if "prototypes" in settings:
        queue = f", queue of {settings['queue_length']}" if settings.get("queue_length") else ""
        found.append(("Prototypes", f"{settings['prototypes']}{queue}"))
    if "optimizer" in settings:
        found.append(
            ("Optimiser", f"{settings['optimizer']}, batch {settings.get('batch')}, learning rate {settings.get('lr')}")
        )
    if "epochs" in settings:
        reached = f"step {steps[-1]['step']:,}, epoch {number(steps[-1].get('epoch') or 0)}" if steps else "no step yet"
        # with a time budget the number of epochs follows from it
        planned = f" in a budget of {settings['hours']} hours" if settings.get("hours") else f" of {settings['epochs']}"
        found.append(("Trained", reached + planned))
    if steps and seconds_trained(steps):
        found.append(("Time", str(datetime.timedelta(seconds=round(seconds_trained(steps))))))
    if isinstance(state.get("versions"), dict):
        found.append(("Versions", ", ".join(f"{name} {version}" for name, version in state["versions"].items())))
    return found


def _crops(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for crop in settings["crops"]:
        if isinstance(crop, dict) and {"count", "size"} <= crop.keys():
            yield crop


def exported(run: RunFolder) -> dict[str, Any] | None:
    """Which weights the run exported, and the Python that uses them."""
    if not run.exported:
        return None
    folder = run.path / FOLDER
    lines = usage(run.exported, folder)
    return {"file": str(folder / WEIGHTS), "which": which(run.exported), "lines": lines, "rights": RIGHTS}


def charts(names: Sequence[str], runs: Sequence[RunFolder]) -> list[Chart]:
    """The curves for which there are numbers."""
    drawn = []
    levels = {_ln_k(run.settings.get("prototypes")) for run in runs}
    level = next(iter(levels)) if len(levels) == 1 else None
    ln_k = (level, "ln K") if level else None
    for key, title, unit, factor, floor, help_text in CURVES:
        series = [(name, _points(run.metrics, key, factor)) for name, run in zip(names, runs, strict=True)]
        reference = ln_k if key == "loss" else None
        drawn.append(line_chart(title, unit, series, help=help_text, floor=floor, reference=reference))
    return [chart for chart in drawn if chart is not None]


def _ln_k(prototypes: Any) -> float | None:
    """The loss of uniform codes; of several sets of prototypes the mean."""
    counts = prototypes if isinstance(prototypes, list) else [prototypes]
    if not counts or not all(isinstance(count, int) and count > 1 for count in counts):
        return None
    return sum(math.log(count) for count in counts) / len(counts)


def _points(metrics: Sequence[Mapping[str, Any]], key: str, factor: float) -> list[tuple[float, float | None]]:
    points: list[tuple[float, float | None]] = []
    for line in metrics:
        if key in line:
            value = line[key]
            x = line.get("epoch")
            points.append(
                (
                    x if isinstance(x, int | float) else line["step"],
                    value * factor if isinstance(value, int | float) else None,
                )
            )
    return points


def results_table(runs: Sequence[RunFolder]) -> dict[str, Any] | None:
    """One row per benchmark, metric and protocol, one column per weights, random weights first; mean and std over seeds. One
    row of each benchmark and protocol is its headline.

    Where there are random weights and one other, the last column is its gain, with an interval where one is known.
    """
    results = [row for run in runs for row in run.results.results]
    folder_of = {id(row): run.path for run in runs for row in run.results.results}
    if not results:
        return None
    weights = sorted({row.weights for row in results}, key=lambda name: (not name.startswith("random:"), name))
    groups: dict[tuple[str, str, str, str], dict[str, list[Result]]] = {}
    for row in results:
        groups.setdefault((row.bench, row.metric, row.protocol, row.unit), {}).setdefault(row.weights, []).append(row)
    gains = len(weights) == 2 and weights[0].startswith("random:") and not weights[1].startswith("random:")
    remarks = sorted({row.remark for row in results if row.comparable is False})
    scores: dict[tuple[str, str], list[str]] = {}
    for bench, metric, protocol, _ in groups:
        scores.setdefault((bench, protocol), []).append(metric)
    rows = []
    for (bench, metric, protocol, unit), by_weights in groups.items():
        alike = [row for found in by_weights.values() for row in found]
        found = [by_weights.get(name, []) for name in weights]
        cells = [summary(its) for its in found]
        digits = decimals_of(metric)
        values = [
            f"{cell.mean:.{digits}f}" + (f" ± {cell.std:.{digits}f}" if cell.count > 1 else "") if cell else "–"
            for cell in cells
        ]
        rows.append(
            {
                "bench": bench,
                "metric": metric,
                "headline": metric == headline_of(scores[bench, protocol]),
                "protocol": protocol,
                "unit": unit,
                "n": " / ".join(sorted({f"{row.n:,}" for row in alike if row.n is not None})),
                "values": values,
                "gain": _gain(found[0], found[1], [folder_of[id(row)] for row in alike]) if gains else None,
                "marks": sorted({remarks.index(row.remark) + 1 for row in alike if row.comparable is False}),
            }
        )
    own = {os.path.realpath(run.path): label for run, label in zip(runs, _labels(runs), strict=True)}
    named = {row.weights: row.name for row in results if row.name != row.weights}
    short = [named.get(name) or _short(name, own, len(runs)) for name in weights]
    hashes = {row.weights: row.weights_sha256[:12] for row in results}
    columns = [
        {"short": label if short.count(label) == 1 else name, "full": name, "sha256": hashes[name]}
        for name, label in zip(weights, short, strict=True)
    ]
    return {"columns": columns, "rows": rows, "gains": gains, "remarks": remarks}


def _gain(random: Sequence[Result], trained: Sequence[Result], folders: Sequence[Path]) -> dict[str, str] | None:
    """By how much trained weights are better than random ones, and its kind: gain or loss where an interval leaves 0 out, none
    where it holds 0, open where none is known. None where a number is missing or no direction is better.

    Args:
        folders: of the results.json that each row is from.
    """
    before, after = summary(random), summary(trained)
    if before is None or after is None:
        return None
    metric = trained[0].metric
    known = known_metric(metric)
    better = True if known is None else known.higher_is_better
    if better is None:
        return None
    difference = after.mean - before.mean if better else before.mean - after.mean
    found = {"text": f"{difference:+.{decimals_of(metric)}f}", "interval": "", "kind": "open"}
    if len(random) > 1 or len(trained) > 1 or (of := _interval(random[0], trained[0], folders)) is None:
        return found
    (low, high), paired = of
    found["interval"] = f"{100 * low:.1f} to {100 * high:.1f}" + ("" if paired else ", not paired")
    found["kind"] = "gain" if low > 0 else "loss" if high < 0 else "none"
    if found["kind"] == "none":
        found["text"] = not_shown(trained[0].n or 0)
    return found


def _interval(random: Result, trained: Result, folders: Sequence[Path]) -> tuple[Interval, bool] | None:
    """The 95 % interval of the difference of two shares of right answers, and whether it is paired over the same images: where
    their logs say which are right. None of other metrics.
    """
    if len(set(folders)) == 1:
        try:
            return paired_difference(random, trained, folders[0]).interval, True
        except DataError:
            pass  # protocols but own keep no such log
    counts = [_right(row) for row in (random, trained)]
    return None if counts[0] is None or counts[1] is None else (unpaired(counts[0], counts[1]), False)


def _right(row: Result) -> tuple[int, int] | None:
    """How many images are right, of how many; None where the value is no share of images."""
    if not row.metric.startswith("top-") or row.unit != "%" or row.value is None or not row.n or row.n < 0:
        return None
    return (round(row.value * row.n / 100), row.n) if 0 <= row.value <= 100 else None


def _short(weights: str, own: Mapping[str, str], num_runs: int) -> str:
    """A column's heading: random, SwAV for the run of this page, else the last part of the name."""
    if weights.startswith("random:"):
        return "random"
    run, asked = (weights.removesuffix("@best"), "best") if weights.endswith("@best") else (weights, "")
    label = own.get(os.path.realpath(run))
    if label is not None:
        return (label if num_runs > 1 else "SwAV") + (f" @{asked}" if asked else "")
    return weights.rstrip("/").rpartition("/")[2]


def views(run: RunFolder) -> dict[str, Any] | None:
    """The picture of the views, where there is one, and what it shows."""
    if run.views is None:
        return None
    kinds = (
        [f"{crop['count']} of {crop['size']} pixels" for crop in _crops(run.settings)]
        if isinstance(run.settings.get("crops"), list)
        else []
    )
    width, height = _size(run.views)
    enlarged = 2 if width <= 400 else 1  # crops of 32 pixels are hard to see
    return {
        "source": "report/views.png",
        "kinds": ", then ".join(kinds),
        "width": width * enlarged,
        "height": height * enlarged,
    }


def _size(png: Path) -> tuple[int, int]:
    """Width and height from a PNG's header; zeros where it has none."""
    with png.open("rb") as file:
        header = file.read(24)
    return struct.unpack(">II", header[16:]) if len(header) == 24 and header.startswith(b"\x89PNG") else (0, 0)


def predictions(run: RunFolder, page_folder: Path) -> list[dict[str, str]]:
    """The pictures of what benchmarks of detection and segmentation predicted: they lie beside their logs."""
    found: dict[str, dict[str, str]] = {}
    for row in run.results.results:
        if row.log and (path := (run.path / row.log).parent / PREDICTIONS).is_file():
            source = os.path.relpath(path, page_folder)
            text = f"{row.bench}, {row.name}, protocol {row.protocol}, seed {row.seed}"
            found.setdefault(source, {"source": urllib.parse.quote(Path(source).as_posix()), "text": text})
    return list(found.values())


def settings_table(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Every setting with its meaning; of two runs, those that differ first."""
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    rows = []
    for key in keys:
        values = [_setting_text(run.settings.get(key, "–")) for run in runs]
        field = Recipe.model_fields.get(str(key))
        rows.append(
            {
                "key": str(key),
                "values": values,
                "meaning": (field.description if field else "") or "",
                "differs": len(set(values)) > 1,
            }
        )
    return sorted(rows, key=lambda row: not row["differs"])


def _setting_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(_setting_text(item) for item in value)
    if isinstance(value, dict):
        return " ".join(f"{key} {_setting_text(item)}" for key, item in value.items())
    return str(value).lower() if isinstance(value, bool) else str(value)
