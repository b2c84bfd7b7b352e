"""Our rows of the page's tables: which results may stand in one row, what is said of them, and what could not be run."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from swav.results.layout import BEST_STAGE, OURS, Cell, Column, Link, TableLayout, TableRow
from swav.results.results import OWN, NetworkFacts, NotRun, Result, summary
from swav.results.units import decimals_of

ScoreName = tuple[str, str]  # bench, metric


class Notes:
    """The notes of one table, numbered in the order of their first use."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def mark(self, words: str) -> int:
        if words not in self.notes:
            self.notes.append(words)
        return self.notes.index(words) + 1


# -- numbers: of a result file or of a paper, by benchmark and metric


def score_of(column: Column, found: Iterable[ScoreName]) -> ScoreName | None:
    """The score that a column shows: its metric, or that of a network whose stages have names, as `feature3 (blocks.7)`."""
    for bench, metric in found:
        if bench == column.bench and (metric == column.metric or metric.startswith(f"{column.metric} (")):
            return bench, metric
    return None


def scores_shown(layout: TableLayout, found: Iterable[ScoreName]) -> list[ScoreName]:
    found = list(found)
    return [score for column in layout.columns if (score := score_of(column, found)) is not None]


def best_stage(bench: str, means: Mapping[ScoreName, float]) -> str | None:
    """The stage whose mAP is that of the best layer, else the highest; None where no stage is known."""
    stages = {metric: mean for (of, metric), mean in means.items() if of == bench and metric.startswith("mAP feature")}
    best = means.get((bench, "mAP best layer"))
    if not stages or best is None:
        return None
    chosen = next((metric for metric, mean in stages.items() if mean == best), max(stages, key=lambda m: stages[m]))
    return chosen.removeprefix("mAP ")


def backbone_name(backbone: str, width: float = 1) -> str:
    """As the page writes it: ResNet50."""
    name = re.sub(r"^resnet(?=\d)", "ResNet", backbone)
    return name if width == 1 else f"{name} (width {width:g})"


# -- our rows


@dataclasses.dataclass(frozen=True)
class Group:
    """Results that may stand in one row: of the same tensors and protocol, all comparable or none."""

    name: str
    weights: str
    sha256: str
    protocol: str
    comparable: bool
    rows: list[Result] = dataclasses.field(default_factory=list)

    @property
    def named_weights(self) -> tuple[str, str]:
        return self.name, self.weights


def groups_of(results: Iterable[Result]) -> list[Group]:
    """Group the results that have a number."""
    groups: dict[tuple[str, str, str, str, bool], Group] = {}
    for row in results:
        if row.value is None:
            continue
        comparable = row.comparable is True and row.protocol == "published"
        key = (row.label, row.weights, row.weights_sha256, row.protocol, comparable)
        groups.setdefault(key, Group(*key)).rows.append(row)
    return list(groups.values())


def _rows_of(group: Group, layout: TableLayout) -> list[dict[ScoreName, list[Result]]]:
    """A group's results by what they measure, the seeds in a list. Those that differ by more (the number of epochs of a
    smoke protocol) are never averaged: the next row has them."""
    found: dict[ScoreName, dict[str, list[Result]]] = {}
    benches = {column.bench for column in layout.columns}
    for row in group.rows:
        if row.bench in benches:
            found.setdefault((row.bench, row.metric), {}).setdefault(row.remark, []).append(row)
    depth = max(map(len, found.values()), default=0)
    alike = [{score: list(by.values())[i] for score, by in found.items() if i < len(by)} for i in range(depth)]
    return [rows for rows in alike if scores_shown(layout, rows)]


def our_rows(
    layout: TableLayout, groups: Sequence[Group], not_run: Sequence[NotRun], above: Notes, below: Notes
) -> tuple[list[TableRow], list[TableRow]]:
    """Rows beside published ones, and rows that may not stand there; what could not be run says why."""
    names = {group.weights: group.name for group in groups}
    known = dict.fromkeys([group.named_weights for group in groups])
    for lack in not_run:
        if lack.weights:
            known.setdefault((names.get(lack.weights, lack.weights), lack.weights))
    ambiguous = {name for name, weights in known if any(name == other and weights != its for other, its in known)}
    rows: dict[bool, list[TableRow]] = {True: [], False: []}
    for name, weights in known or [("not run", "")]:
        label = f"{name} ({weights})" if name in ambiguous else name
        mine = [
            (group, found)
            for group in groups
            if group.named_weights == (name, weights)
            for found in _rows_of(group, layout)
        ]
        measured = {score for _, found in mine for score in found}
        reasons = {
            column: why
            for column in layout.columns
            if score_of(column, measured) is None and (why := _reasons(column, not_run, weights))
        }
        alone: list[tuple[Group | None, Mapping[ScoreName, list[Result]]]] = [(None, {})] if reasons else []
        for group, found in mine or alone:
            comparable = group is None or group.comparable
            said = {column: reasons.get(column) or [_absent(column, found, measured)] for column in layout.columns}
            rows[comparable].append(_our_row(layout, label, group, found, said, above if comparable else below))
    return rows[True], rows[False]


def _reasons(column: Column, not_run: Iterable[NotRun], weights: str) -> list[str]:
    """Why a column of some weights is empty."""
    words = []
    for lack in not_run:
        meant = lack.metric == "" or score_of(column, [(lack.bench, lack.metric)]) is not None
        if lack.bench == column.bench and meant and lack.weights in ("", weights):
            needed = f"; needs {lack.expected}" if lack.expected else ""
            words.append(f"{lack.bench} was not run: {lack.reason}{needed}")
    return words


def _absent(column: Column, found: Iterable[ScoreName], measured: Iterable[ScoreName]) -> str:
    """Why a row has no number in a column, where no run failed."""
    if score_of(column, measured) is not None:
        return f"{column.bench}: under another protocol, or of other images; in another row"
    if any(bench == column.bench for bench, _ in found):
        return f"{column.bench} gave no number of this column; its config says what was asked for"
    return f"{column.bench} was not asked for: swav bench {column.bench}"


def _our_row(
    layout: TableLayout,
    label: str,
    group: Group | None,
    found: Mapping[ScoreName, list[Result]],
    reasons: Mapping[Column, list[str]],
    notes: Notes,
) -> TableRow:
    shown = {score: found[score] for score in scores_shown(layout, found)}
    marks, links = _remarks(layout, group, found, shown, notes), _links(group, shown)
    label += _suffix(group, shown)
    means = {score: numbers.mean for score, rows in found.items() if (numbers := summary(rows)) is not None}
    cells = []
    for column in layout.columns:
        score = score_of(column, found)
        written = "–"
        if column.metric == BEST_STAGE:
            written = best_stage(column.bench, means) or written
        elif score is not None:
            written = _mean(found[score], column.decimals)
        why = tuple(notes.mark(words) for words in reasons.get(column, ())) if written == "–" else ()
        cells.append(Cell(written, why))
    if len(layout.labels) == 1:
        return TableRow(OURS, (Cell(label, marks, links), *cells))
    settings = map(Cell, _network(shown))
    return TableRow(
        OURS, (Cell(label, marks), *settings, *cells, *(Cell("" if links else "–", (), links) for _ in layout.last))
    )


def _mean(rows: Sequence[Result], decimals: int) -> str:
    found = summary(rows)
    assert found is not None  # only rows with numbers are in a group
    if found.count == 1:
        (row,) = (row for row in rows if row.value is not None)
        between = row.interval if row.protocol == OWN else None
        ends = "" if between is None else f" ({between[0]:.{decimals}f} to {between[1]:.{decimals}f})"
        return f"{found.mean:.{decimals}f}{ends}"
    decimals = max(decimals_of(rows[0].metric), decimals)
    return f"{found.mean:.{decimals}f} ± {found.std:.{decimals}f}"


def _suffix(group: Group | None, shown: Mapping[ScoreName, Sequence[Result]]) -> str:
    """What a label must say beside the name: another protocol, and over how many seeds a mean goes."""
    if group is None:
        return ""
    protocol = "" if group.protocol == "published" else f", {group.protocol}"
    counts = dict[str, set[int]]()
    for (bench, _), rows in shown.items():
        counts.setdefault(bench, set()).add(len(rows))
    if all(count == {1} for count in counts.values()):
        return protocol
    ranges = {bench: "–".join(map(str, sorted({min(found), max(found)}))) for bench, found in counts.items()}
    if len(set(ranges.values())) == 1:
        return f"{protocol}, {next(iter(ranges.values()))} seeds"
    return f"{protocol}, seeds: " + ", ".join(f"{bench} {count}" for bench, count in ranges.items())


def _network(shown: Mapping[ScoreName, Sequence[Result]]) -> tuple[str, str, str]:
    """Backbone, epochs and batch of the pre-training, as far as the weights say them."""
    configs = [row.config for rows in shown.values() for row in rows]
    network = next((config.network for config in configs if config.has(["network"])), NetworkFacts())
    epochs, batch = ("–" if count in (None, "") else str(count) for count in (network.epochs, network.batch))
    return backbone_name(network.backbone, network.width) or "–", epochs, batch


def _remarks(
    layout: TableLayout,
    group: Group | None,
    found: Mapping[ScoreName, Sequence[Result]],
    shown: Mapping[ScoreName, Sequence[Result]],
    notes: Notes,
) -> tuple[int, ...]:
    """Notes of a row as a whole: whose numbers they are, why they are not comparable, what its stages are."""
    if group is None:
        return ()
    words = [f"{group.name}: weights {group.weights}, SHA-256 {group.sha256 or 'unknown'}"]
    several = len({column.bench for column in layout.columns}) > 1
    if not group.comparable:
        for (bench, _), rows in shown.items():
            other = "" if group.protocol == "published" or rows[0].difference else f"protocol {group.protocol}"
            words.append((f"{bench}: " if several else "") + "not comparable: " + (other or rows[0].remark))
    words += [*_stages(layout, found), *_spreads(group, shown)]
    return tuple(notes.mark(each) for each in dict.fromkeys(words))


def _stages(layout: TableLayout, found: Mapping[ScoreName, Sequence[Result]]) -> list[str]:
    """Names of stages of a backbone that is no ResNet, and the numbers of those for which the page has no column."""
    if not any(column.name.startswith("Feature") for column in layout.columns):
        return []
    named, beyond = [], []
    for (_, metric), rows in found.items():
        stage = re.fullmatch(r"top-1 (feature\d+)(?: \((.*)\))?", metric)
        if stage is None:
            continue
        if not any(column.metric == f"top-1 {stage[1]}" for column in layout.columns):
            beyond.append(f"{stage[0].removeprefix('top-1 ')}: {_mean(rows, decimals_of(metric))}")
        elif stage[2]:
            named.append(f"{stage[1].capitalize()} is {stage[2]}")
    return [f"stages: {', '.join([*named, *beyond])}"] if named or beyond else []


def _spreads(group: Group, shown: Mapping[ScoreName, Sequence[Result]]) -> list[str]:
    """The spread of each number of protocol own; of several seeds their own deviation is in the cell."""
    if group.protocol != OWN:
        return []
    spreads = [
        f"{bench} {metric} {rows[0].spread:.2f}"
        for (bench, metric), rows in shown.items()
        if len(rows) == 1 and rows[0].spread is not None
    ]
    parts = "standard deviation over five parts of the training images, or over the folds"
    return [f"{group.name}: {parts}: {', '.join(spreads)}"] if spreads else []


def _links(group: Group | None, shown: Mapping[ScoreName, Sequence[Result]]) -> tuple[Link, ...]:
    """The settings, the logs and the tensors behind a row."""
    if group is None:
        return ()
    rows = [row for alike in shown.values() for row in alike]
    links = _files("config", [(row, row.settings_file) for row in rows])
    links += _files("log", [(row, row.log) for row in rows if row.log])
    if group.sha256:
        links.append(Link(group.sha256[:12], title=f"SHA-256 of the weights: {group.sha256}"))
    return tuple(links)


def _files(kind: str, files: Sequence[tuple[Result, str]]) -> list[Link]:
    """One link a file; benchmark and seed are in its text where it would not be clear."""
    paths: dict[str, Result] = {}
    for row, path in files:
        paths.setdefault(path, row)
    benches = {row.bench for row in paths.values()}
    links = []
    for path, row in paths.items():
        alike = sum(other.bench == row.bench for other in paths.values())
        bench = f"{row.bench} " if len(benches) > 1 else ""
        seed = f" seed {row.seed}" if alike > 1 else ""
        links.append(Link(f"{bench}{kind}{seed}", path))
    return links
