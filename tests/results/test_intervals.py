"""Attacks: an interval that is too narrow, of the wrong side, or unsound where few images differ; a p-value that is not exact.

Oracles: values that are printed elsewhere, SciPy's, and a maximum-likelihood search that shares no formula with ours.
Run: pytest tests/results/test_intervals.py
"""

import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import binomtest, norm

from swav.results import intervals
from swav.results.intervals import PairedDifference, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),  # Newcombe 1998 (Statistics in Medicine 17, 857), table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval_is_the_printed_one(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("right", "n"), [(0, 7), (7, 7), (3, 7), (499, 500), (31_000, 50_000)])
def test_wilsons_interval_is_scipys(right, n):
    found = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((found.low, found.high), abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),  # Newcombe 1998 (Statistics in Medicine 17, 873), table II, method 10
    [
        ((48, 80), (56, 70), 0.0524, 0.3339),
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((2, 7), (6, 7), 0.0582, 0.8062),
        ((0, 29), (5, 56), -0.0381, 0.1926),
        ((0, 20), (0, 10), -0.1611, 0.2775),
        ((0, 10), (10, 10), 0.6075, 1.0),
    ],
)
def test_the_unpaired_interval_is_the_printed_one(first, second, low, high):
    assert intervals.unpaired(first, second) == pytest.approx((low, high), abs=6e-5)
    assert intervals.unpaired(second, first) == pytest.approx((-high, -low), abs=6e-5)


def test_the_paired_interval_is_the_printed_one(monkeypatch):
    """Fagerland, Lydersen and Laake 2014: airway hyper-responsiveness of 21 children, 1 7 1 12; and two runs of R's
    PropCIs::scoreci.mp at 90 %."""
    assert PairedDifference(1, 7, 21).interval == pytest.approx((0.026, 0.517), abs=5e-4)
    monkeypatch.setattr(intervals, "Z", norm.ppf(0.95))
    assert PairedDifference(28, 25, 618).interval == pytest.approx((-0.0247, 0.0148), abs=5e-5)
    assert PairedDifference(41, 48, 549).interval == pytest.approx((-0.0157, 0.0414), abs=5e-5)


def score(b: int, c: int, n: int, difference: float) -> float:
    """The score test of a difference: nuisance by a search for the largest likelihood, variance by the multinomial law."""

    def loss(q: float) -> float:  # q: share that the first alone has right
        shares = (q + difference, q, 1 - 2 * q - difference)
        return -sum(k * math.log(max(p, 1e-300)) for k, p in zip((b, c, n - b - c), shares, strict=True))

    low, high = max(0.0, -difference), (1 - difference) / 2
    q = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-14}).x
    return float((b - c - n * difference) / math.sqrt(n * (2 * q + difference - difference**2)))


@pytest.mark.parametrize(("b", "c", "n"), [(12, 2, 50), (2, 12, 50), (5, 1, 9), (300, 220, 10_000), (40, 20, 160)])
def test_the_paired_interval_is_that_of_a_searched_likelihood(b, c, n):
    low, high = PairedDifference(c, b, n).interval
    seen, z = (b - c) / n, norm.ppf(0.975)
    assert low == pytest.approx(brentq(lambda d: score(b, c, n, d) - z, -0.999, seen), abs=1e-6)
    assert high == pytest.approx(brentq(lambda d: score(b, c, n, d) + z, seen, 0.999), abs=1e-6)


def test_where_nothing_or_all_differs_the_interval_is_sound():
    z2 = norm.ppf(0.975) ** 2
    assert PairedDifference(0, 0, 100).interval == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)))
    assert PairedDifference(0, 0, 100).is_none and PairedDifference(0, 0, 100).p_value == 1
    low, high = PairedDifference(0, 10, 10).interval
    assert high == 1 and 0 < low < 1
    assert PairedDifference(10, 0, 10).interval == pytest.approx((-1.0, -low))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 9), (9, 3), (220, 300), (12_000, 13_000)])
def test_the_p_value_is_the_exact_binomial_one(first, second):
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert PairedDifference(first, second, 50_000).p_value == pytest.approx(expected, rel=1e-9)


def test_none_is_said_exactly_where_mcnemars_statistic_is_small():
    for first in range(0, 12):
        for second in range(first + 1, 25):
            significant = (second - first) / math.sqrt(first + second) > norm.ppf(0.975)
            assert PairedDifference(first, second, 60).is_none != significant


@pytest.mark.parametrize(("n", "shares"), [(60, (0.10, 0.04)), (500, (0.15, 0.10)), (200, (0.03, 0.03))])
def test_about_95_of_100_intervals_hold_the_true_difference(n, shares):
    rng, held = np.random.default_rng(0), 0
    draws = rng.multinomial(n, [*shares, 1 - sum(shares)], size=1000)
    for second, first, _ in draws.tolist():
        low, high = PairedDifference(first, second, n).interval
        held += low <= shares[0] - shares[1] <= high
    assert 0.93 <= held / 1000 <= 0.98  # 95 % and its error of .7 % for 1,000 draws; few images: somewhat above


@pytest.mark.parametrize("counts", [(-1, 0, 5), (3, 3, 5), (0, 0, 0)])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match="expected counts"):
        PairedDifference(*counts)


@pytest.mark.parametrize(("right", "n"), [(1, 0), (-1, 3), (4, 3)])
def test_a_share_of_none_is_refused(right, n):
    with pytest.raises(ValueError, match="expected 0 <= right"):
        wilson(right, n)
