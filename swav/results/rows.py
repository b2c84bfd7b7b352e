"""Our rows of the page's tables: which results may stand in one row, what is said of them, and what could not be run."""

import dataclasses
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swav.results.layout import BEST_STAGE, Cell, Column, Layout, Link, Row
from swav.results.results import Json, config_name, has_number, mean_and_spread, remark, text

What = tuple[str, str]  # bench, metric


class Notes:
    """The notes of one table, numbered in the order of their first use."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def mark(self, words: str) -> int:
        if words not in self.notes:
            self.notes.append(words)
        return self.notes.index(words) + 1


# -- numbers: of a result file or of a paper, by benchmark and metric


def metric_of(column: Column, found: Iterable[What]) -> What | None:
    """What a column shows: its metric, or that of a trunk whose stages have names of their own, as `feature3 (blocks.7)`."""
    for bench, metric in found:
        if bench == column.bench and (metric == column.metric or metric.startswith(f"{column.metric} (")):
            return bench, metric
    return None


def metrics_shown(layout: Layout, found: Iterable[What]) -> list[What]:
    found = list(found)
    return [what for column in layout.columns if (what := metric_of(column, found)) is not None]


def best_stage(bench: str, means: Mapping[What, float]) -> str | None:
    """The stage whose mAP is that of the best layer, else the highest; None where no stage is known."""
    stages = {what[1]: mean for what, mean in means.items() if what[0] == bench and what[1].startswith("mAP feature")}
    best = means.get((bench, "mAP best layer"))
    if not stages or best is None:
        return None
    chosen = next((metric for metric, mean in stages.items() if mean == best), max(stages, key=lambda m: stages[m]))
    return chosen.removeprefix("mAP ")


def backbone_name(backbone: str, width: Any = 1) -> str:
    """As the page writes it: ResNet50."""
    name = re.sub(r"^resnet(?=\d)", "ResNet", backbone)
    return name if width in (None, 1) else f"{name} (width {width:g})"


# -- our rows


@dataclasses.dataclass(frozen=True)
class Group:
    """Results that may stand in one row: of the same tensors and protocol, all comparable or none."""

    name: str
    weights: str
    sha256: str
    protocol: str
    comparable: bool
    rows: list[Json] = dataclasses.field(default_factory=list)

    @property
    def who(self) -> What:
        return self.name, self.weights


def groups_of(results: Iterable[Json]) -> list[Group]:
    groups: dict[tuple[Any, ...], Group] = {}
    for row in results:
        if not has_number(row):
            continue
        protocol = text(row, "protocol")
        key = (
            text(row, "name") or text(row, "weights"),
            text(row, "weights"),
            text(row, "weights_sha256"),
            protocol,
            row.get("comparable") is True and protocol == "published",
        )
        groups.setdefault(key, Group(*key)).rows.append(row)
    return list(groups.values())


def _rows_of(group: Group, layout: Layout) -> list[dict[What, list[Json]]]:
    """A group's results by what they measure, the seeds in a list. Those that differ by more (the number of epochs of a
    smoke protocol) are never averaged: the next row has them."""
    found: dict[What, dict[str, list[Json]]] = {}
    benches = {column.bench for column in layout.columns}
    for row in group.rows:
        if text(row, "bench") in benches:
            found.setdefault((text(row, "bench"), text(row, "metric")), {}).setdefault(remark(row), []).append(row)
    depth = max(map(len, found.values()), default=0)
    alike = [{what: list(by.values())[i] for what, by in found.items() if i < len(by)} for i in range(depth)]
    return [rows for rows in alike if metrics_shown(layout, rows)]


def our_rows(
    layout: Layout, groups: Sequence[Group], not_run: Sequence[Json], above: Notes, below: Notes
) -> tuple[list[Row], list[Row]]:
    """Rows beside published ones, and rows that may not stand there; what could not be run says why."""
    names = {group.weights: group.name for group in groups}
    known = dict.fromkeys([group.who for group in groups])
    for row in not_run:
        if weights := text(row, "weights"):
            known.setdefault((text(row, "name") or names.get(weights, weights), weights))
    ambiguous = {name for name, weights in known if any(name == other and weights != its for other, its in known)}
    rows: dict[bool, list[Row]] = {True: [], False: []}
    for who in known or [("not run", "")]:
        label = f"{who[0]} ({who[1]})" if who[0] in ambiguous else who[0]
        mine = [(group, found) for group in groups if group.who == who for found in _rows_of(group, layout)]
        measured = {what for _, found in mine for what in found}
        reasons = {
            column: why
            for column in layout.columns
            if metric_of(column, measured) is None and (why := _reasons(column, not_run, who[1]))
        }
        for group, found in mine:
            notes = above if group.comparable else below
            rows[group.comparable].append(_our_row(layout, label, group, found, reasons, notes))
        if reasons and not mine:
            rows[True].append(_our_row(layout, label, None, {}, reasons, above))
    return rows[True], rows[False]


def _reasons(column: Column, not_run: Iterable[Json], weights: str) -> list[str]:
    """Why a column of some weights is empty."""
    words = []
    for row in not_run:
        bench, metric = text(row, "bench"), text(row, "metric")
        meant = metric == "" or metric_of(column, [(bench, metric)]) is not None
        if bench == column.bench and meant and text(row, "weights") in ("", weights):
            needs = f"; needs {row['expected']}" if text(row, "expected") else ""
            words.append(f"{bench} was not run: {text(row, 'reason')}{needs}")
    return words


def _our_row(
    layout: Layout,
    label: str,
    group: Group | None,
    found: Mapping[What, list[Json]],
    reasons: Mapping[Column, list[str]],
    notes: Notes,
) -> Row:
    shown = {what: found[what] for what in metrics_shown(layout, found)}
    marks, links = _remarks(layout, group, found, shown, notes), _links(group, shown)
    label += _suffix(group, shown)
    means = {what: statistics.fmean(row["value"] for row in rows) for what, rows in found.items()}
    cells = []
    for column in layout.columns:
        what = metric_of(column, found)
        written = "–"
        if column.metric == BEST_STAGE:
            written = best_stage(column.bench, means) or written
        elif what is not None:
            written = _mean(found[what], column.decimals)
        why = tuple(notes.mark(words) for words in reasons.get(column, ())) if written == "–" else ()
        cells.append(Cell(written, why))
    if len(layout.labels) == 1:
        return Row("ours", (Cell(label, marks, links), *cells))
    settings = map(Cell, _network(shown))
    return Row(
        "ours", (Cell(label, marks), *settings, *cells, *(Cell("" if links else "–", (), links) for _ in layout.last))
    )


def _mean(rows: Sequence[Json], decimals: int) -> str:
    found = mean_and_spread(rows)
    assert found is not None  # only rows with numbers are in a group
    mean, spread, count = found
    return f"{mean:.{decimals}f}" if count == 1 else f"{mean:.{max(2, decimals)}f} ± {spread:.{max(2, decimals)}f}"


def _suffix(group: Group | None, shown: Mapping[What, Sequence[Json]]) -> str:
    """What a label must say beside the name: another protocol, and over how many seeds a mean goes."""
    if group is None:
        return ""
    protocol = "" if group.protocol == "published" else f", {group.protocol}"
    counts = dict[str, set[int]]()
    for (bench, _), rows in shown.items():
        counts.setdefault(bench, set()).add(len(rows))
    if all(count == {1} for count in counts.values()):
        return protocol
    told = {bench: "–".join(map(str, sorted({min(found), max(found)}))) for bench, found in counts.items()}
    if len(set(told.values())) == 1:
        return f"{protocol}, {next(iter(told.values()))} seeds"
    return f"{protocol}, seeds: " + ", ".join(f"{bench} {count}" for bench, count in told.items())


def _network(shown: Mapping[What, Sequence[Json]]) -> tuple[str, str, str]:
    """Backbone, epochs and batch of the pre-training, as far as the weights say them."""
    configs = [row["config"] for rows in shown.values() for row in rows if isinstance(row.get("config"), dict)]
    found = [config["network"] for config in configs if isinstance(config.get("network"), dict)]
    network: Json = found[0] if found else {}
    backbone, width = text(network, "backbone"), network.get("width", 1)
    name = backbone_name(backbone, width if isinstance(width, int | float) else 1)
    return name or "–", text(network, "epochs") or "–", text(network, "batch") or "–"


def _remarks(
    layout: Layout,
    group: Group | None,
    found: Mapping[What, Sequence[Json]],
    shown: Mapping[What, Sequence[Json]],
    notes: Notes,
) -> tuple[int, ...]:
    """Notes of a row as a whole: whose numbers they are, why they are not comparable, what its stages are."""
    if group is None:
        return ()
    words = [f"{group.name}: weights {group.weights}, SHA-256 {group.sha256 or 'unknown'}"]
    several = len({column.bench for column in layout.columns}) > 1
    if not group.comparable:
        for (bench, _), rows in shown.items():
            other = "" if group.protocol == "published" or text(rows[0], "difference") else f"protocol {group.protocol}"
            words.append((f"{bench}: " if several else "") + "not comparable: " + (other or remark(rows[0])))
    words += _stages(layout, found)
    return tuple(notes.mark(each) for each in dict.fromkeys(words))


def _stages(layout: Layout, found: Mapping[What, Sequence[Json]]) -> list[str]:
    """Names of stages of a trunk that is no ResNet, and the numbers of those for which the page has no column."""
    if not any(column.heading.startswith("Feature") for column in layout.columns):
        return []
    named, beyond = [], []
    for (_, metric), rows in found.items():
        stage = re.fullmatch(r"top-1 (feature\d+)(?: \((.*)\))?", metric)
        if stage is None:
            continue
        if not any(column.metric == f"top-1 {stage[1]}" for column in layout.columns):
            beyond.append(f"{stage[0].removeprefix('top-1 ')}: {_mean(rows, 2)}")
        elif stage[2]:
            named.append(f"{stage[1].capitalize()} is {stage[2]}")
    return [f"stages: {', '.join([*named, *beyond])}"] if named or beyond else []


def _links(group: Group | None, shown: Mapping[What, Sequence[Json]]) -> tuple[Link, ...]:
    """The settings, the logs and the tensors behind a row."""
    if group is None:
        return ()
    rows = [row for alike in shown.values() for row in alike]
    links = [*_files("config", [(row, config_name(row)) for row in rows])]
    links += _files("log", [(row, text(row, "log")) for row in rows if text(row, "log")])
    if group.sha256:
        links.append(Link(group.sha256[:12], title=f"SHA-256 of the weights: {group.sha256}"))
    return tuple(links)


def _files(kind: str, files: Sequence[tuple[Json, str]]) -> list[Link]:
    """One link a file; benchmark and seed are in its text where it would not be clear."""
    paths: dict[str, Json] = {}
    for row, path in files:
        paths.setdefault(path, row)
    benches = {text(row, "bench") for row in paths.values()}
    links = []
    for path, row in paths.items():
        alike = sum(text(other, "bench") == text(row, "bench") for other in paths.values())
        bench = f"{text(row, 'bench')} " if len(benches) > 1 else ""
        seed = f" seed {text(row, 'seed')}" if alike > 1 else ""
        links.append(Link(f"{bench}{kind}{seed}", path))
    return links
