"""A run's folder as a report sees it: whatever is there is read, whatever is missing is left out, whatever is damaged is said.

A report must be had from a run that died, was killed, or has not begun: nothing here insists on a file.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from swav.errors import ConfigError, DataError, counted
from swav.files import BAD_FILES, CONFIG, METRICS, REPORT_PARTS
from swav.jsonl import Sound, is_bad_file, is_metrics, read_lines
from swav.results.results import FILE as RESULTS
from swav.results.results import Results, read_damaged_results
from swav.strict_yaml import read_yaml
from swav.weights.exported import FOLDER, FORMAT, WEIGHTS, read_description


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """What was found in the folder of a run, or of benchmark results.

    Attributes:
        settings: config.yaml.
        metrics: lines of metrics.jsonl.
        bad: lines of bad_files.jsonl ("file", "reason").
        results: what can be read of results.json.
        state: state.json of the newest checkpoint.
        verdict: report/verdict.json ("state", "advice").
        exported: the description of the weights in export/; empty without.
        views: the picture of the views, or None.
        problems: what could not be read.
    """

    path: Path
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    bad: list[dict[str, Any]]
    results: Results
    state: dict[str, Any]
    verdict: dict[str, Any]
    exported: dict[str, Any]
    views: Path | None
    problems: list[str]

    @property
    def name(self) -> str:
        return self.path.resolve().name


def read_folder(path: Path) -> RunFolder:
    """Read what a report needs.

    Raises:
        DataError: the folder is missing, or holds neither a run nor results.
    """
    if not path.is_dir():
        raise DataError(
            f"{path}: expected the folder of a run or of results, found {'a file' if path.exists() else 'nothing there'}; check the path"
        )
    if not any((path / name).is_file() for name in (CONFIG, METRICS, RESULTS)):
        raise DataError(
            f"{path}: expected config.yaml, metrics.jsonl or results.json in it, found none; give the --out of `swav pretrain` or `swav bench`"
        )
    results, problems = read_damaged_results(path)
    states = sorted(path.glob("checkpoints/step_*/state.json"))
    views = path / REPORT_PARTS / "views.png"
    return RunFolder(
        path=path,
        settings=_read_settings(path / CONFIG, problems),
        metrics=_read_lines(path / METRICS, problems, is_metrics),
        bad=_read_lines(path / BAD_FILES, problems, is_bad_file),
        results=results,
        state=_read_object(states[-1], problems) if states else {},
        verdict=_read_object(path / REPORT_PARTS / "verdict.json", problems),
        exported=_described(path),
        views=views if views.is_file() else None,
        problems=problems,
    )


def _described(path: Path) -> dict[str, Any]:
    found = read_description(path / FOLDER / WEIGHTS)
    return found if found is not None and found["format"] == FORMAT else {}


def seconds_trained(metrics: list[dict[str, Any]]) -> float:
    """Seconds over all resumes: the clock of metrics.jsonl starts again at each."""
    total = before = 0.0
    for line in metrics:
        now = line.get("seconds")
        if isinstance(now, int | float):
            total += now - before if now >= before else now
            before = now
    return total


def _read_settings(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return read_yaml(path.read_text(encoding="utf-8", errors="surrogateescape"), path.name)
    except ConfigError as error:
        problems.append(str(error))
        return {}


def _read_object(path: Path, problems: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except ValueError as error:
        problems.append(f"{path.name}: not JSON ({error})")
        return {}
    if isinstance(value, dict):
        return value
    problems.append(f"{path.name}: expected a JSON object, found {type(value).__name__}")
    return {}


def _read_lines(path: Path, problems: list[str], sound: Sound) -> list[dict[str, Any]]:
    """One JSON object a line; a last line cut short by a kill is passed over in silence, any other is counted."""
    try:
        lines = read_lines(path, sound)
    except OSError as error:
        problems.append(f"{path.name}: cannot be read ({error.strerror})")
        return []
    if lines.damaged:
        problems.append(f"{path.name}: {counted(lines.damaged, 'line')} could not be read")
    return lines.values
