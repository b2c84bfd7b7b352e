"""The tables of the page that swav is to fill: same tables, columns and order; our rows, then the published ones.

No format here: `page_tables` says what stands in which cell, render.py writes it down. What may not be compared with
published numbers (other images, classes or protocol) stands in a table of its own below, with the reason.
"""

from collections.abc import Iterable, Mapping, Sequence

from swav.results.layout import (
    BEST_STAGE,
    BEYOND,
    OWN_DATA,
    PAGE,
    PAGE_ROW,
    PUBLISHED,
    SIBLING,
    Cell,
    Column,
    Link,
    Source,
    Table,
    TableLayout,
    TableRow,
)
from swav.results.published import Published
from swav.results.results import OWN, Result, Results
from swav.results.rows import Notes, ScoreName, backbone_name, best_stage, groups_of, our_rows, score_of, scores_shown


def page_tables(content: Results, published: Sequence[Published]) -> tuple[Table, ...]:
    """Fill the page's tables.

    Args:
        content: of a results.json; a row without a finite value is passed over.
        published: rows of papers and model zoos, in the order in which they are to stand.

    Returns:
        The page's tables, then those that the page does not have, as far as there is a row for them. Each is followed by
        one of the results that are not comparable, where there are any. At the end those of protocol own have a table.
    """
    own = [row for row in content.results if row.protocol == OWN]
    rest = [row for row in content.results if row.protocol != OWN]
    groups = groups_of(rest)
    tables = []
    for layout in (*PAGE, *_unlisted(rest)):
        known = [row for row in published if scores_shown(layout, _published_numbers(row))]
        above, below = Notes(), Notes()
        comparable, others = our_rows(layout, groups, content.not_run, above, below)
        kinds = {
            kind: [row for row in known if _kind(row, published) == kind] for kind in (PAGE_ROW, PUBLISHED, SIBLING)
        }
        rows = [*comparable, *(_published_row(layout, row, kind) for kind, alike in kinds.items() for row in alike)]
        if rows or layout.of_the_page:
            tables.append(_table(layout, True, rows, above))
        if others:
            tables.append(_table(layout, False, others, below))
    return (*tables, *_own_table(own))


def _own_table(results: Sequence[Result]) -> list[Table]:
    """Benchmarks of protocol own side by side, a column per metric but top-5; none where there are no results."""
    names = dict.fromkeys((row.bench, row.metric, row.unit) for row in results if not row.metric.startswith("top-5"))
    # one decimal: a cell has the interval beside the number
    columns = tuple(Column(f"{bench} {metric}", bench, metric, 1, unit) for bench, metric, unit in names)
    layout = TableLayout(OWN_DATA, "", "", columns, of_the_page=False)
    notes = Notes()
    rows = our_rows(layout, groups_of(results), (), Notes(), notes)[1]
    return [_table(layout, False, rows, notes)] if rows else []


def _unlisted(results: Sequence[Result]) -> list[TableLayout]:
    """Return a table for each benchmark with results that stands in none of the page's: its metrics are the columns."""
    listed = {column.bench for layout in PAGE for column in layout.columns}
    metrics: dict[str, dict[str, str]] = {}  # and their units
    for row in results:
        if row.bench not in listed:
            metrics.setdefault(row.bench, {})[row.metric] = row.unit
    return [
        TableLayout(
            BEYOND,
            bench,
            "",
            tuple(Column(name, bench, name, unit=unit) for name, unit in names.items()),
            of_the_page=False,
        )
        for bench, names in metrics.items()
    ]


def _table(layout: TableLayout, comparable: bool, rows: Iterable[TableRow], notes: Notes) -> Table:
    texts, numbers, last = len(layout.labels), len(layout.columns), len(layout.last)
    return Table(
        section=layout.section,
        title=layout.title,
        sentence=layout.sentence,
        comparable=comparable,
        headings=(*layout.labels, *(column.heading for column in layout.columns), *layout.last),
        numeric=(False,) * texts + (True,) * numbers + (False,) * last,
        rows=tuple(rows),
        notes=tuple(notes.notes),
    )


# -- rows of papers and model zoos


def _published_numbers(row: Published) -> dict[ScoreName, float]:
    return {(bench, metric): value for bench, metrics in row.values.items() for metric, value in metrics.items()}


def _kind(row: Published, published: Sequence[Published]) -> str:
    """Whether a row is the page's, the same training as measured by others, or another method or training."""
    if row.page:
        return PAGE_ROW
    page = next((each for each in published if each.page), None)
    same = page is not None and _training(row) == _training(page)
    return PUBLISHED if same else SIBLING


def _training(row: Published) -> tuple[str, str, int | None, int | None]:
    return row.method, row.backbone, row.epochs, row.batch


def _published_row(layout: TableLayout, row: Published, kind: str) -> TableRow:
    numbers = _published_numbers(row)
    labels = [row.config or row.label] if row.page else [row.label]
    if len(layout.labels) > 1:
        counts = ("/" if count is None else str(count) for count in (row.epochs, row.batch))
        labels = [row.method, backbone_name(row.backbone), *counts]
    cells = []
    for column in layout.columns:
        if column.metric == BEST_STAGE:
            cells.append(best_stage(column.bench, numbers) or "/")
        else:
            score = score_of(column, numbers) or _of_best_stage(column, numbers)
            cells.append("/" if score is None else _as_published(numbers[score], column.decimals))
    short = row.source.partition(",")[0]
    links = [Cell("", links=(Link(short, row.url),)) if row.url else Cell(short) for _ in layout.last]
    named = f"{row.label} ({row.config})" if row.config else row.label
    source = Source(f"{named}: {row.source}" + (f". {row.note}" if row.note else ""), row.url)
    return TableRow(kind, (*map(Cell, [*labels, *cells]), *links), source)


def _of_best_stage(column: Column, numbers: Mapping[ScoreName, float]) -> ScoreName | None:
    """Low-shot numbers of a row whose best layer is not the last one are of that layer; its note says so."""
    score = column.bench, f"{column.metric} {best_stage('svm', numbers)}"
    return score if column.bench == "lowshot" and score in numbers else None


def _as_published(value: float, decimals: int) -> str:
    """With the page's decimals, but never rounded."""
    written = len(repr(float(value)).partition(".")[2])
    return f"{value:.{max(decimals, written)}f}" if float(value) != round(value) else f"{value:.{decimals}f}"
