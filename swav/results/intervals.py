"""95 % intervals of shares, and of the difference of two shares, over the same images or over others. Counts in, numbers out.

They are of the images: another sample of them would move the number so. Of another training run they say nothing.
"""

import dataclasses
import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int64

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)

Interval = tuple[float, float]
Groups = Int64[np.ndarray, " N"] | None


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


def of_share(right: Bool[np.ndarray, " N"], groups: Groups = None) -> Interval:
    """The interval of a share of right answers, 0..1; where images come in groups, as of images that are drawn by groups.

    Of groups it is Wilson's, of n over the design effect: as many independent images as say as much as these do.

    Raises:
        ValueError: there is no image.

    Source: Korn and Graubard 1998 (Survey Methodology 24, 193), with Wilson's interval in the place of the exact one.
    """
    effect = 1.0 if groups is None else design_effect(right.astype(float), groups)
    return wilson(float(right.sum()) / effect, len(right) / effect)


def design_effect(values: Float[np.ndarray, " N"], groups: Int64[np.ndarray, " N"]) -> float:
    """How many times larger the variance of a mean is than that of as many independent values: at least 1, with few groups more, as a
    variance that is estimated from few is uncertain (the quantile of Student's distribution, of groups - 1, in the place of the
    normal one). Where all values are equal, or there is one group only, as if each group were one value.
    """
    n, numbers = len(values), np.unique(groups, return_inverse=True)[1]
    count = int(numbers.max(initial=-1)) + 1
    residuals = values - values.mean() if n else values
    squares = float((residuals**2).sum())
    if count < 2 or not squares:
        return max(1.0, n / max(1, count))
    from scipy.special import stdtrit  # half a second, which data without groups need not pay

    between = float((np.bincount(numbers, weights=residuals) ** 2).sum()) * count / (count - 1)
    return max(1.0, between / squares * (float(stdtrit(count - 1, (1 + LEVEL) / 2)) / Z) ** 2)


def unpaired(first: tuple[float, Interval], second: tuple[float, Interval]) -> Interval:
    """The interval of the difference of two shares of right answers, second - first, as of independent images.

    Of the same images it is as a rule too wide: PairedDifference is for them, where it is known which are right.

    Args:
        first, second: a share, 0..1, and its interval.

    Source: Newcombe 1998 (Statistics in Medicine 17, 873), method 10.
    """
    (share, (low, high)), (its_share, (its_low, its_high)) = first, second
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
        effect: design effect of the difference, where images come in groups (Rao and Scott 1992, Biometrics 48, 577).
    """

    only_first: int
    only_second: int
    n: int
    effect: float = 1.0

    @classmethod
    def of(
        cls, first: Bool[np.ndarray, " N"], second: Bool[np.ndarray, " N"], groups: Groups = None
    ) -> "PairedDifference":
        """Compare which answers are right."""
        effect = 1.0 if groups is None else design_effect(second.astype(float) - first, groups)
        return cls(int((first & ~second).sum()), int((second & ~first).sum()), len(first), effect)

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
        """Exact two-sided McNemar test: how likely a split at least as uneven is, where neither is better. Of groups not below that
        of the score test with their design effect.
        """
        differing, fewer = self.only_first + self.only_second, min(self.only_first, self.only_second)
        tail = term = 1  # whole numbers: no rounding, whatever their size
        for i in range(fewer):
            term = term * (differing - i) // (i + 1)
            tail += term
        exact = min(1.0, 2 * tail / (1 << differing))
        if self.effect == 1:
            return exact
        distance = (differing - 2 * fewer) / math.sqrt(max(1, differing) * self.effect)
        return max(exact, math.erfc(distance / math.sqrt(2)))

    def _score(self, difference: float) -> float:
        """Distance of the observed difference from this one, in its standard error where this one is true."""
        b, c, n = self.only_second, self.only_first, self.n
        # the likeliest share of images that the first alone has right, given the difference: root of 2n q^2 + p q + r
        p, r = (2 * n - b + c) * difference - b - c, -c * difference * (1 - difference)
        q = (math.sqrt(max(0.0, p * p - 8 * n * r)) - p) / (4 * n)
        variance = self.effect * n * (2 * q + difference * (1 - difference))
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
