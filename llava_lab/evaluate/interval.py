"""11. Interval: what questions gave a score -> an estimate with its standard error and interval.

The one implementation of intervals: of results.json here, of several runs in `report.estimate`.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import copysign, inf, sqrt
from typing import Literal

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from llava_lab.evaluate.ratio import Array, Ratio

Side = Literal["above", "below", "two"]


@dataclass(frozen=True)
class Estimate:
    """A number that was measured, and how well it is known.

    Attributes:
        value: The number.
        se: Its standard error; infinity where it is not known.
        df: Degrees of freedom of the standard error.
        runs: Runs (seeds) that it is from.
        questions: Questions of each run that count in it.
        clusters: Pictures or videos that these are about, those of all runs that differ.
        bounds: Lowest and highest value that it can have.
        ends: Ends of the 95% interval as a file states them, where that is all that is known.
    """

    value: float
    se: float
    df: float
    runs: int
    questions: int
    clusters: int = 0
    bounds: tuple[float, float] = (-inf, inf)
    ends: tuple[float, float] | None = None

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Ends of the confidence interval.

        Of a number with bounds it is Wilson's score interval with Student's t, for as many
        independent questions as have this standard error (Franco et al., J. Surv. Stat. Methodol.
        7:334, 2019). It stays inside the bounds, and has a width where all questions agree: there,
        every picture counts as one question. Of any other number it is value ± t * se.
        """
        if self.ends is not None and level == 0.95:
            return self.ends
        low, high = self.bounds
        if self.se == inf:
            return low, high
        t = quantile(self.df, (1 + level) / 2)
        if low == -inf or high == inf:
            return max(low, self.value - t * self.se), min(high, self.value + t * self.se)
        share, error = (self.value - low) / (high - low), self.se / (high - low)
        if error:
            ends = wilson(share, share * (1 - share) / error**2, t)
        else:
            ends = wilson(share, max(1, self.clusters), float(ndtri((1 + level) / 2)))
        # Rounding may put an end a hair beyond the value.
        first, last = (low + (high - low) * end for end in ends)
        return min(first, self.value), max(last, self.value)

    @property
    def low(self) -> float:
        """Low end of the 95% interval."""
        return self.interval()[0]

    @property
    def high(self) -> float:
        """High end of the 95% interval."""
        return self.interval()[1]

    def p(self, null: float = 0.0, side: Side = "two") -> float:
        """Probability of a value as far from `null`, were `null` true.

        It is below 1 - level exactly where the interval of that level leaves `null` out: the t-test
        of `value ± t * se`, the score test of Wilson's interval.

        Args:
            null: Value to compare with.
            side: "above" tests whether the number is above `null`, "below" whether it is below,
                "two" whether it differs.
        """
        far, df = self._distance(null)
        above = t_below(df, -far)
        return {"above": above, "below": 1 - above, "two": 2 * min(above, 1 - above)}[side]

    def _distance(self, null: float) -> tuple[float, float]:
        """How many standard errors the value lies above `null`, and their degrees of freedom."""
        more, (low, high) = self.value - null, self.bounds
        if self.ends is not None:
            end = self.ends[0] if more > 0 else self.ends[1]
            return distance(more, abs(self.value - end) / quantile(self.df, 0.975)), self.df
        if not more or self.se == inf or low == -inf or high == inf:
            return distance(more, self.se), self.df
        of_null = (null - low) * (high - null)
        if of_null <= 0:  # nothing varies where all questions are right, or none is
            return copysign(inf, more), self.df
        if not self.se:  # as many questions as pictures
            return more * sqrt(max(1, self.clusters) / of_null), inf
        of_value = (self.value - low) * (high - self.value)
        return more / self.se * sqrt(max(0.0, of_value) / of_null), self.df


def distance(more: float, error: float) -> float:
    """How many standard errors a difference is; infinitely many where there is no error."""
    if not more:
        return 0.0
    return more / error if error else copysign(inf, more)


def quantile(df: float, probability: float) -> float:
    """Quantile of Student's t distribution."""
    return float(stdtrit(df, probability))


def t_below(df: float, value: float) -> float:
    """Probability that Student's t is below a value."""
    return float(stdtr(df, value))


def wilson(share: float, n: float, z: float = float(ndtri(0.975))) -> tuple[float, float]:
    """Wilson's score interval of a share of n, inside [0, 1]; by default of 95%."""
    if n == 0:
        return 0.0, 1.0
    centre = share + z**2 / (2 * n)
    half = z * sqrt(max(0.0, share * (1 - share)) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def cluster_places(clusters: Sequence[Hashable] | Array) -> Array:
    """Number of each question's cluster [q]."""
    return np.unique(np.asarray(clusters), return_inverse=True)[1]


def pulls(ratio: Ratio, places: Array) -> Array:
    """How much each cluster adds to the error of a score [c]; together nothing.

    Linearisation (delta method): what it gave beyond value * of, by the sum of `of`. To a ratio
    these are what (x - mean) / n are to a mean (Cochran, Sampling Techniques, 6.3).

    Args:
        ratio: The score.
        places: Number of each question's cluster [q].
    """
    number, whole = int(places.max(initial=-1)) + 1, ratio.of.sum()
    residuals = ratio.got - ratio.value * ratio.of
    return np.bincount(places, residuals, number) / (whole if whole else 1.0)


def counting(ratio: Ratio, places: Array) -> Array:
    """Which clusters have a question that counts in a score [c]."""
    number = int(places.max(initial=-1)) + 1
    return np.bincount(places, ratio.of != 0, number) > 0


def estimate(ratio: Ratio, clusters: Sequence[Hashable] | Array) -> Estimate:
    """A score of one run, with the standard error over clusters of its questions.

    Args:
        ratio: The score.
        clusters: Cluster of each question [q]: the picture that it is about.
    """
    places = cluster_places(clusters)
    count = int(counting(ratio, places).sum())
    spread = float((pulls(ratio, places) ** 2).sum())
    se = sqrt(spread * count / (count - 1)) if count > 1 else inf
    return Estimate(ratio.value, se, max(1, count - 1), 1, ratio.n, count, (0.0, ratio.top))
