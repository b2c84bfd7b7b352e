"""Attacks: axes that lie, ticks that are not round, curves that leave the drawing.

Run: pytest tests/reporting/test_curves.py
"""

import math
import random

import pytest

from swav.reporting.curves import BOTTOM, HEIGHT, LEFT, MAX_POINTS, RIGHT, TOP, WIDTH, line_chart, nice_ticks, number


@pytest.mark.parametrize(
    "low,high", [(0, 1), (-0.04, 1.5), (3.2, 3.9), (1e-9, 4e-7), (0, 1e6), (5, 5), (0, 0), (-3, -3), (99.9, 100.0)]
)
def test_ticks_are_few_round_and_enclose_the_values(low, high):
    values, step = nice_ticks(low, high, 4)
    assert values[0] <= low + 1e-12 and values[-1] >= high - 1e-12
    assert 2 <= len(values) <= 7
    assert round(step / 10 ** math.floor(math.log10(step) + 1e-9), 6) in (1, 2, 5)


def corners(text):
    return [tuple(map(float, pair.split(","))) for pair in text.split()]


def test_curves_stay_inside_the_axes_and_keep_their_order():
    draw = random.Random(0)
    chart = line_chart("x", "", [("a", [(i, draw.gauss(0, 1)) for i in range(1000)])])
    assert chart is not None
    (line,) = chart.lines
    points = corners(line.paths[0])
    assert len(points) <= MAX_POINTS and points == sorted(points)
    for x, y in points + corners(line.bands[0]):
        assert LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM


def test_a_spike_stays_visible_in_the_band_of_a_long_curve():
    chart = line_chart("x", "", [("a", [(i, 100.0 if i == 555 else 0.0) for i in range(10_000)])])
    assert chart is not None
    assert min(y for _, y in corners(chart.lines[0].bands[0])) == TOP


def test_heights_are_proportional_to_values():
    chart = line_chart("x", "", [("a", [(0, 0.0), (1, 50.0), (2, 100.0)])])
    assert chart is not None
    ys = [y for _, y in corners(chart.lines[0].paths[0])]
    assert ys[1] == pytest.approx((ys[0] + ys[2]) / 2) and ys[0] > ys[2]


def test_a_lone_point_is_a_dot_and_no_point_is_no_chart():
    chart = line_chart("x", "", [("a", [(1, 2.0)])])
    assert chart is not None and chart.lines[0].dots and not chart.lines[0].paths
    assert line_chart("x", "", [("a", []), ("b", [(1, None), (2, math.nan)])]) is None


def test_numbers_are_short():
    assert [number(x) for x in (0, 0.5, 1234567, 4.57e-8, 41.5)] == ["0", "0.5", "1,234,567", "4.57e-08", "41.5"]
