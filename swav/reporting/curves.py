"""Line charts as geometry: numbers in, coordinates for the template out. Nothing here knows HTML."""

import dataclasses
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 360, 190  # of the drawing, with room for the axes [units of the SVG]
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 24
FEW = 12  # points up to which each gets a dot
MAX_POINTS = 120  # a longer curve is drawn as the mean of equal parts, with a band from least to greatest

Point = tuple[float, float | None]  # (x, y); None or a value that is not finite is a gap


@dataclasses.dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclasses.dataclass(frozen=True)
class Hit:
    """A point that answers the mouse: a strip of the drawing, a mark and a text."""

    left: float
    width: float
    x: float
    y: float
    text: str


@dataclasses.dataclass(frozen=True)
class Line:
    """One series. `paths` and `bands` are lists of corners, a list per piece between gaps; `dots` are lone or few points."""

    name: str
    paths: list[str]
    bands: list[str]
    dots: list[tuple[float, float]]
    hits: list[Hit]


@dataclasses.dataclass(frozen=True)
class Chart:
    title: str
    unit: str
    help: str
    x_name: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    reference: Tick | None
    last: str
    summary: str


@dataclasses.dataclass(frozen=True)
class _Bucket:
    x: float
    mean: float
    low: float
    high: float


def line_chart(
    title: str,
    unit: str,
    series: Sequence[tuple[str, Sequence[Point]]],
    *,
    help: str = "",
    x_name: str = "epoch",
    floor: float | None = None,
    reference: tuple[float, str] | None = None,
) -> Chart | None:
    """Lays out one or more series on common axes.

    Args:
        title: of the chart.
        unit: of the values.
        series: name and points of each, in the order of x.
        help: what the reader should see in it.
        x_name: what x counts.
        floor: a value that the y axis must reach down to.
        reference: a level to draw as a dashed line, and its name.

    Returns:
        The chart, or None where no series has a finite value.
    """
    buckets = [(name, _buckets(points)) for name, points in series]
    known = [bucket for _, row in buckets for bucket in row if bucket is not None]
    if not known:
        return None
    levels = [bucket.low for bucket in known] + [bucket.high for bucket in known]
    levels += [floor] if floor is not None else []
    levels += [reference[0]] if reference else []
    y_values, y_step = nice_ticks(min(levels), max(levels), 4)
    x_low, x_high = min(x for _, points in series for x, _ in points), max(x for _, points in series for x, _ in points)
    x_values, x_step = nice_ticks(x_low, x_high, 5)
    x_values = [x for x in x_values if x_low <= x <= x_high] or [x_low]

    def place_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * ((x - x_low) / (x_high - x_low) if x_high > x_low else 0.5)

    def place_y(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_values[0]) / (y_values[-1] - y_values[0])

    lines = []
    for name, row in buckets:
        text = f"{name}, " if len(buckets) > 1 else ""
        pieces = _pieces(row)
        few = sum(len(piece) for piece in pieces) <= FEW
        lines.append(
            Line(
                name,
                paths=[
                    _corners([(place_x(b.x), place_y(b.mean)) for b in piece]) for piece in pieces if len(piece) > 1
                ],
                bands=[
                    _corners(
                        [(place_x(b.x), place_y(b.low)) for b in piece]
                        + [(place_x(b.x), place_y(b.high)) for b in piece[::-1]]
                    )
                    for piece in pieces
                    if any(b.high > b.low for b in piece)
                ],
                dots=[
                    (round(place_x(b.x), 1), round(place_y(b.mean), 1))
                    for piece in pieces
                    if few or len(piece) == 1
                    for b in piece
                ],
                hits=_hits(
                    [
                        (place_x(b.x), place_y(b.mean), f"{text}{x_name} {number(b.x)}: {number(b.mean)} {unit}")
                        for b in row
                        if b
                    ]
                ),
            )
        )
    finite = [[y for _, y in points if y is not None and math.isfinite(y)] for _, points in series]
    first, lasts = next(values[0] for values in finite if values), [number(values[-1]) for values in finite if values]
    return Chart(
        title=title,
        unit=unit,
        help=help,
        x_name=x_name,
        x_ticks=[Tick(round(place_x(x), 1), tick_text(x, x_step)) for x in x_values],
        y_ticks=[Tick(round(place_y(y), 1), tick_text(y, y_step)) for y in y_values],
        lines=lines,
        reference=Tick(round(place_y(reference[0]), 1), reference[1]) if reference else None,
        last=" / ".join(lasts),
        summary=f"{title} over {x_name}s: {number(first)} at first, {' and '.join(lasts)} {unit} at last",
    )


def nice_ticks(low: float, high: float, wanted: int) -> tuple[list[float], float]:
    """Round numbers (1, 2 or 5 times a power of ten) that enclose low and high, and the step between them."""
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high)):
        span = abs(low) or 1.0
        low, high = low - span / 2, high + span / 2
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= wanted)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)], step


def tick_text(value: float, step: float) -> str:
    """Return the shortest text that distinguishes neighbouring ticks."""
    return number(round(value / step) * step) if value else "0"


def number(value: float) -> str:
    """Four significant digits, thousands set apart; very small numbers with an exponent."""
    if abs(value) >= 1e7 or 0 < abs(value) < 1e-3:
        return f"{value:.3g}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _buckets(points: Sequence[Point]) -> list[_Bucket | None]:
    size = math.ceil(len(points) / MAX_POINTS) if points else 1
    return [_bucket(points[i : i + size]) for i in range(0, len(points), size)]


def _bucket(points: Sequence[Point]) -> _Bucket | None:
    values = [y for _, y in points if y is not None and math.isfinite(y)]
    if not values:
        return None
    return _Bucket(sum(x for x, _ in points) / len(points), sum(values) / len(values), min(values), max(values))


def _pieces(row: Sequence[_Bucket | None]) -> list[list[_Bucket]]:
    """The runs of buckets between gaps."""
    pieces: list[list[_Bucket]] = [[]]
    for bucket in row:
        if bucket is None:
            pieces.append([])
        else:
            pieces[-1].append(bucket)
    return [piece for piece in pieces if piece]


def _corners(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _hits(marks: Sequence[tuple[float, float, str]]) -> list[Hit]:
    """A strip around every mark, up to halfway to its neighbours."""
    hits = []
    for i, (x, y, text) in enumerate(marks):
        left = (marks[i - 1][0] + x) / 2 if i else LEFT
        right = (x + marks[i + 1][0]) / 2 if i + 1 < len(marks) else WIDTH - RIGHT
        hits.append(Hit(round(left, 1), round(right - left, 1), round(x, 1), round(y, 1), text))
    return hits
