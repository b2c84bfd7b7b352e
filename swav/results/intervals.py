"""95 % intervals of shares, and of the difference of two shares, over the same images or over others. Counts in, numbers out.

They are of the images: another sample of them would move the number so. Of another training run they say nothing.
"""

import dataclasses
import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Int64

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)

Interval = tuple[float, float]


def wilson(right: float, n: float) -> Interval:
    """The interval of a share of right answers, 0..1.

    Raises:
        ValueError: n is not positive, or more are right than there are.

    Source: Wilson 1927 (Journal of the American Statistical Association 22, 209), without a correction for continuity.
    """
    if not 0 <= right <= n or not n:
        raise ValueError(f"expected 0 <= right <= n and n > 0, found {right} of {n}")
    share, weight = right / n, Z * Z / n
    middle = (share + weight / 2) / (1 + weight)
    half = Z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    return (max(0.0, middle - half) if right else 0.0), (min(1.0, middle + half) if right < n else 1.0)


def of_groups(right: Bool[np.ndarray, " N"], groups: Int64[np.ndarray, " N"]) -> Interval:
    """The interval of a share of right answers whose images come in groups, 0..1: Wilson's, of as many independent images as tell
    as much as these (n over the design effect; where all are right or wrong, of as many as there are groups).

    Raises:
        ValueError: there is no image.

    Source: Korn and Graubard 1998 (Survey Methodology 24, 193), with Wilson's interval in the place of the exact one.
    """
    n, numbers = len(right), np.unique(groups, return_inverse=True)[1]
    share, count = float(right.mean()) if n else 0.0, int(numbers.max(initial=-1)) + 1
    if share in (0.0, 1.0) or count < 2:
        effective = float(count)
    else:
        sums = np.bincount(numbers, weights=right - share)
        effect = float((sums**2).sum()) * count / (count - 1) / (n * share * (1 - share))
        effective = n / max(1.0, effect)
    return wilson(share * effective, effective)


def unpaired(first: tuple[int, int], second: tuple[int, int]) -> Interval:
    """The interval of the difference of two shares of right answers, second - first, as of independent images.

    Of the same images it is as a rule too wide: PairedDifference is for them, where it is known which are right.

    Args:
        first, second: how many are right, of how many.

    Raises:
        ValueError: as wilson.

    Source: Newcombe 1998 (Statistics in Medicine 17, 873), method 10.
    """
    (low, high), (its_low, its_high) = wilson(*first), wilson(*second)
    share, its_share = first[0] / first[1], second[0] / second[1]
    difference = its_share - share
    return (
        difference - math.hypot(its_share - its_low, high - share),
        difference + math.hypot(its_high - its_share, share - low),
    )


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """Two sets of right and wrong answers on the same images, compared.

    Attributes:
        only_first, only_second: images that one of them alone has right (c and b of McNemar's table).
        n: images.
    """

    only_first: int
    only_second: int
    n: int

    def __post_init__(self) -> None:
        """Refuse counts that are none.

        Raises:
            ValueError: a count is negative, or there are more than images.
        """
        if min(self.only_first, self.only_second) < 0 or self.only_first + self.only_second > self.n or not self.n:
            raise ValueError(
                f"expected counts of at most n > 0 images, found {self.only_first} and {self.only_second} of {self.n}"
            )

    @property
    def difference(self) -> float:
        """Share of the second minus that of the first, -1..1."""
        return (self.only_second - self.only_first) / self.n

    @property
    def interval(self) -> Interval:
        """95 % interval of the difference: those values that the score test does not refuse. It holds 0 exactly where McNemar's
        test without correction finds nothing, and is sound for few images and few that differ.

        Source: Tango 1998 (Statistics in Medicine 17, 891).
        """
        low = -1.0 if self.only_first == self.n else _falling(lambda d: self._score(d) - Z, -1.0, self.difference)
        high = 1.0 if self.only_second == self.n else _falling(lambda d: self._score(d) + Z, self.difference, 1.0)
        return low, high

    @property
    def is_none(self) -> bool:
        """Whether the interval holds 0: no difference is shown."""
        low, high = self.interval
        return low <= 0 <= high

    @property
    def p_value(self) -> float:
        """Exact two-sided McNemar test: how likely a split at least as uneven is, where neither is better."""
        differing, fewer = self.only_first + self.only_second, min(self.only_first, self.only_second)
        tail = term = 1  # whole numbers: no rounding, whatever their size
        for i in range(fewer):
            term = term * (differing - i) // (i + 1)
            tail += term
        return min(1.0, 2 * tail / (1 << differing))

    def _score(self, difference: float) -> float:
        """Distance of the observed difference from this one, in its standard error where this one is true."""
        b, c, n = self.only_second, self.only_first, self.n
        # the likeliest share of images that the first alone has right, given the difference: root of 2n q^2 + p q + r
        p, r = (2 * n - b + c) * difference - b - c, -c * difference * (1 - difference)
        q = (math.sqrt(max(0.0, p * p - 8 * n * r)) - p) / (4 * n)
        variance = n * (2 * q + difference * (1 - difference))
        distance = b - c - n * difference
        return (
            distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance) if distance else 0.0
        )


def _falling(function: Callable[[float], float], low: float, high: float) -> float:
    """The root of a falling function, by halving."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2
