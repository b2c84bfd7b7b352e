"""Results as a Markdown table for the terminal: a row per benchmark and metric, the weights side by side; then the remarks."""

from collections.abc import Iterable, Sequence

from swav.results.results import NotRun, Result, summary
from swav.results.units import decimals_of


def format_results(results: Sequence[Result], not_run: Iterable[NotRun] = ()) -> str:
    """Format results, and what could not be run.

    Of several seeds the table shows the mean, the standard deviation (over n - 1) and their number.
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
        body = [(*key, *(_cell(values.get(column, ())) for column in columns)) for key, values in cells.items()]
        lines += _aligned([head, *body], left=3)
    lines += [f"{label}: {words}" for label, words in _normalisations(results).items()]
    lines += [f"not comparable with published numbers: {remark}" for remark in remarks]
    for lack in not_run:
        of = f" of {lack.weights}" if lack.weights else ""
        what = f"{lack.bench} {lack.metric}".rstrip() + of
        lines.append(f"not run: {what}: {lack.reason}; needs {lack.expected}")
    return "\n".join(lines)


def _cell(rows: Sequence[Result]) -> str:
    """A number; of several seeds their mean, standard deviation and number; of none a dash."""
    found = summary(rows)
    if found is None:
        return "-"
    digits = decimals_of(rows[0].metric)
    return f"{found.mean:.{digits}f}" + (f" ± {found.std:.{digits}f} (n={found.count})" if found.count > 1 else "")


def _normalisations(results: Iterable[Result]) -> dict[str, str]:
    """How each weights' images were normalised: a wrong normalisation lowers every score, and nothing else shows it."""
    words: dict[str, str] = {}
    for row in results:
        mean, std = row.config.mean, row.config.std
        if mean is not None and std is not None:
            turned = " (trained on BGR, turned to RGB)" if row.config.network.channels == "bgr" else ""
            words[row.label] = f"normalised by mean {list(mean)}, std {list(std)}{turned}"
    return words


def _aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
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
