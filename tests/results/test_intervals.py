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
from swav.results.intervals import PairedDifference, of_share, wilson


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
    one, other = ((right / n, wilson(right, n)) for right, n in (first, second))
    assert intervals.unpaired(one, other) == pytest.approx((low, high), abs=6e-5)
    assert intervals.unpaired(other, one) == pytest.approx((-high, -low), abs=6e-5)


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


def test_an_interval_of_groups_counts_groups_and_of_few_is_wider():
    """An oracle of its own: sums over groups, in plain Python, and Student's quantile from a table."""
    right = [[1, 1, 1, 0], [1, 0], [0, 0, 0], [1, 1, 1, 1, 1], [0, 1]]
    values = np.array([value for group in right for value in group], bool)
    groups = np.array([10 * k for k, group in enumerate(right) for _ in group])
    n, share, student = 16, 10 / 16, 2.776445  # of 4 degrees of freedom
    between = sum(sum(value - share for value in group) ** 2 for group in right) * 5 / 4
    effect = between / (n * share * (1 - share)) * (student / 1.959964) ** 2
    assert effect > 2
    assert of_share(values, groups) == pytest.approx(wilson(10 / effect, 16 / effect), abs=1e-6)
    shuffled = np.random.default_rng(0).permutation(16)
    assert of_share(values[shuffled], groups[shuffled]) == pytest.approx(of_share(values, groups))
    assert of_share(values) == wilson(10, 16)


def test_groups_that_are_all_alike_are_as_many_images_as_groups_and_never_more_than_there_are():
    groups = np.repeat(np.arange(30), 10)
    assert of_share(np.ones(300, bool), groups) == pytest.approx(wilson(30, 30))
    assert of_share(np.arange(300) < 90, np.zeros(300, np.int64)) == pytest.approx(wilson(0.3, 1))
    every_other = np.arange(300) % 2 == 0  # each group has exactly the share of all: it says no more than 300 images
    assert of_share(every_other, groups) == wilson(150, 300)
    with pytest.raises(ValueError, match="n > 0"):
        of_share(np.zeros(0, bool), np.zeros(0, np.int64))


def test_an_interval_of_groups_holds_the_truth_as_often_as_it_says():
    """8 groups of 3 to 19 images, alike within: Wilson's of the images would hold it in half of 400 draws."""
    rng, held, of_images = np.random.default_rng(0), 0, 0
    for _ in range(400):
        sizes = rng.integers(3, 20, 8)
        right = np.concatenate([rng.random(size) < share for size, share in zip(sizes, rng.beta(2, 2, 8), strict=True)])
        low, high = of_share(right, np.repeat(np.arange(8), sizes))
        held += low <= 0.5 <= high
        low, high = of_share(right)
        of_images += low <= 0.5 <= high
    assert 0.92 <= held / 400 <= 0.99 and of_images / 400 < 0.75


def test_a_paired_difference_of_groups_is_that_of_its_groups():
    rng = np.random.default_rng(0)
    first = rng.random(40) < 0.5
    second = first ^ (rng.random(40) < 0.4)
    alone = PairedDifference.of(first, second)
    assert alone == PairedDifference(int((first & ~second).sum()), int((second & ~first).sum()), 40)
    found = PairedDifference.of(np.repeat(first, 10), np.repeat(second, 10), np.repeat(np.arange(40), 10))
    assert found.n == 400 and found.difference == pytest.approx(alone.difference)
    assert found.effect == pytest.approx(10 * 40 / 39 * (2.022691 / 1.959964) ** 2, rel=1e-5)  # Student's, of 39
    scaled = PairedDifference(alone.only_first, alone.only_second, 40, found.effect / 10)
    assert found.interval == pytest.approx(scaled.interval, abs=1e-9)  # ten copies of an image say what one says
    low, high = alone.interval
    assert found.interval[0] < low < high < found.interval[1]


def test_the_p_value_of_groups_is_that_of_the_score_and_never_below_the_exact_one():
    for effect, first, second in [(4.0, 30, 80), (1.0001, 1, 7), (9.0, 0, 0)]:
        found, exact = PairedDifference(first, second, 200, effect), PairedDifference(first, second, 200).p_value
        score = 2 * norm.sf(abs(second - first) / math.sqrt(max(1, first + second) * effect))
        assert found.p_value == pytest.approx(max(score, exact))
    assert PairedDifference(30, 80, 200, 4.0).p_value > 1000 * PairedDifference(30, 80, 200).p_value
