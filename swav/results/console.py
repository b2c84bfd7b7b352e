"""Results as a Markdown table for the terminal: a row per benchmark and metric, the weights side by side; then the remarks."""

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from swav.errors import DataError, counted
from swav.results.intervals import PairedDifference
from swav.results.paired import paired_difference
from swav.results.results import OWN, Key, NotRun, Result, summary
from swav.results.units import decimals_of

EXPLAINED = (
    "in brackets: 95 % interval over the scored images; standard deviation over five parts of the training images (each "
    "lacks a fifth), or over the five folds where every image is scored"
)


EARLIER = "†"  # beside a number of an earlier command


def format_results(
    results: Sequence[Result], not_run: Iterable[NotRun] = (), measured: Collection[Key] | None = None
) -> str:
    """Format results, and what could not be run.

    Of several seeds the table shows the mean, the standard deviation (over n - 1) and their number; of protocol own the 95 %
    interval over the scored images, and the spread over parts of the training images.

    Args:
        measured: which rows are of the command that asks; the others are marked, with their date. None: no difference is made.
    """
    columns = {row.weights: row.label for row in results}
    units = sorted({row.unit for row in results})
    cells: dict[tuple[str, ...], dict[str, list[Result]]] = {}
    remarks: dict[str, None] = {}
    for row in results:
        metric = row.metric if len(units) == 1 else f"{row.metric} [{row.unit}]"
        count = "-" if row.n is None else f"{row.n:,}"
        cells.setdefault((row.bench, metric, row.protocol, count), {}).setdefault(row.weights, []).append(row)
        if row.comparable is not True:
            remarks[f"{row.bench}: {row.difference}"] = None
    lines = []
    if results:
        head = ("bench", f"metric [{units[0]}]" if len(units) == 1 else "metric", "protocol", "n", *columns.values())
        body = [
            (*key, *(_cell(values.get(column, ()), measured) for column in columns)) for key, values in cells.items()
        ]
        lines += aligned([head, *body], left=3)
    lines += _of_earlier_commands(results, measured)
    if any(row.protocol == OWN and row.interval is not None for row in results):
        lines.append(EXPLAINED)
    lines += [f"{label}: {words}" for label, words in _normalisations(results).items()]
    lines += [f"not comparable with published numbers: {remark}" for remark in remarks]
    for lack in not_run:
        of = f" of {lack.weights}" if lack.weights else ""
        what = f"{lack.bench} {lack.metric}".rstrip() + of
        lines.append(f"not run: {what}: {lack.reason}; needs {lack.expected}")
    return "\n".join(lines)


def _of_earlier_commands(results: Sequence[Result], measured: Collection[Key] | None) -> list[str]:
    """What the mark says: which numbers this command has not measured, and when they were."""
    of: dict[str, dict[str, None]] = {}
    for row in results:
        if _is_earlier(row, measured):
            when = f"{row.measured[:10]} {row.measured[11:16]} UTC" if row.measured else "date unknown"
            of.setdefault(when, {})[f"{row.bench} of {row.label}"] = None
    return [
        f"{EARLIER} from an earlier command, not measured now ({when}): {', '.join(names)}"
        for when, names in sorted(of.items())
    ]


def _is_earlier(row: Result, measured: Collection[Key] | None) -> bool:
    return measured is not None and row.key not in measured


def _cell(rows: Sequence[Result], measured: Collection[Key] | None) -> str:
    """A number; of several seeds their mean, standard deviation and number; of none a dash. A mark where an earlier command has
    a part in it.
    """
    found = summary(rows)
    if found is None:
        return "-"
    digits = decimals_of(rows[0].metric)
    mark = f" {EARLIER}" if any(_is_earlier(row, measured) for row in rows) else ""
    if found.count > 1:
        return f"{found.mean:.{digits}f} ± {found.std:.{digits}f} (n={found.count}){mark}"
    return f"{found.mean:.{digits}f}" + _uncertainty(rows[0], digits) + mark


def _uncertainty(row: Result, digits: int) -> str:
    """Interval and spread of a result of protocol own."""
    if row.protocol != OWN or row.interval is None:
        return ""
    spread = "" if row.spread is None else f"; {row.spread:.{digits}f}"
    return f" ({row.interval[0]:.{digits}f} to {row.interval[1]:.{digits}f}{spread})"


def _normalisations(results: Iterable[Result]) -> dict[str, str]:
    """How each weights' images were normalised: a wrong normalisation lowers every score, and nothing else shows it."""
    words: dict[str, str] = {}
    for row in results:
        mean, std = row.config.mean, row.config.std
        if mean is not None and std is not None:
            turned = " (trained on BGR, turned to RGB)" if row.config.network.channels == "bgr" else ""
            words[row.label] = f"normalised by mean {list(mean)}, std {list(std)}{turned}"
    return words


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """A Markdown table that is also a table to the eye; the first `left` columns are texts, the others numbers."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    padded = [
        [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return [f"| {' | '.join(row)} |" for row in (padded[0], rule, *padded[1:])]


# -- differences


def format_differences(
    results: Sequence[Result], weights: Sequence[str], folder: Path, measured: Collection[Key] | None = None
) -> str:
    """Format how far results of protocol own differ from those of random weights, or else of the first, on the same images.

    Of each benchmark top-1 is compared, of kNN at k=20, or at the nearest k that all weights have.

    Args:
        results: of one results.json.
        weights: as they were given.
        folder: that of the results.json.
        measured: which rows are of the command that asks, and are compared; None: all.

    Returns:
        A line per benchmark and weights; empty where there is nothing to compare.
    """
    first, *others = sorted(dict.fromkeys(weights), key=lambda name: not name.startswith("random:"))
    rows_now = [row for row in results if not _is_earlier(row, measured)]
    lines = [
        f"{bench} {rows[first].metric}, {rows[each].label}: difference to {rows[first].label}: "
        + format_difference(rows[first], rows[each], folder)
        for bench, rows in headlines(rows_now, [first, *others]).items()
        for each in others
        if each in rows
    ]
    if lines:
        lines.append("differences: points of %, with 95 % intervals, paired over the same images")
    return "\n".join(lines)


def headlines(results: Sequence[Result], weights: Sequence[str]) -> dict[str, dict[str, Result]]:
    """Of each benchmark under protocol own the rows by which weights are compared: top-1, of kNN at k=20, or at the nearest k that
    the first weights and some others have.

    Returns:
        {benchmark: {weights: row}}, without benchmarks that have nothing to compare.
    """
    first, *others = dict.fromkeys(weights)
    by: dict[str, dict[str, dict[str, Result]]] = {}  # bench, metric, weights
    for row in sorted(results, key=lambda row: -row.seed):  # the lowest seed stays
        if row.protocol == OWN and row.metric.startswith("top-1") and row.value is not None:
            by.setdefault(row.bench, {}).setdefault(row.metric, {})[row.weights] = row
    found = {}
    for bench, metrics in by.items():
        shared = [metric for metric, rows in metrics.items() if first in rows and len(rows.keys() & set(others))]
        if shared:
            found[bench] = metrics[min(shared, key=_distance_from_20)]
    return found


def _distance_from_20(metric: str) -> tuple[int, int]:
    found = re.search(r"k=(\d+)", metric)
    k = int(found[1]) if found else 20
    return abs(k - 20), k


def format_difference(first: Result, second: Result, folder: Path) -> str:
    """As `+7.1 (4.9 to 9.3)`, or `none (-1.2 to 2.0): no difference that 50 images can show` where the interval holds 0; or why it
    is not known.
    """
    try:
        found = paired_difference(first, second, folder)
        return in_points(found) + (f": {not_shown(found.n)}" if found.is_none else "")
    except DataError as error:
        return f"unknown: {error}"


def not_shown(n: int) -> str:
    """What an interval says that holds 0."""
    return f"no difference that {counted(n, 'image')} can show"


def in_points(found: PairedDifference) -> str:
    """As `+7.1 (4.9 to 9.3)` points, or `none (-1.2 to 2.0)` where the interval holds 0."""
    low, high = found.interval
    value = "none" if found.is_none else f"{100 * found.difference:+.1f}"
    return f"{value} ({100 * low:.1f} to {100 * high:.1f})"
