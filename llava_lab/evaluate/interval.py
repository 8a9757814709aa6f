"""11. Interval: scores of one run's questions -> a 95% interval.

Both kinds describe the choice of questions, not of seeds; `report` computes the latter.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Z95 = float(ndtri(0.975))  # 97.5% quantile of the standard normal distribution
RESAMPLES = 2000

Array = NDArray[Any]


def wilson(successes: float, n: int) -> list[float]:
    """Bound a proportion by Wilson's score interval; [0, 1] where nothing was counted.

    Unlike the normal approximation it stays within [0, 1] and has a width at 0% and 100%.
    """
    if n == 0:
        return [0.0, 1.0]
    share = successes / n
    centre = share + Z95**2 / (2 * n)
    half = Z95 * sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    scale = 1 + Z95**2 / n
    # Rounding may leave a hair outside of [0, 1], or off the share at 0% and 100%.
    return [max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)]


def bootstrap(strata: list[Array], statistic: Callable[[list[Array]], Array]) -> list[float]:
    """Bound a statistic by the percentile bootstrap over questions, with a fixed seed.

    Drawing questions with replacement and counting their outcomes is a multinomial draw over the
    distinct outcomes, so a resample costs a handful of numbers however many questions there are.

    Args:
        strata: One array [k] for each group that is resampled by itself: how many of its
            questions had each of k outcomes.
        statistic: Takes resampled counts, an array [resamples, k] for each group, and returns
            the statistic of each resample [resamples].
    """
    generator = np.random.default_rng(0)
    draws = [
        generator.multinomial(counts.sum(), counts / counts.sum(), size=RESAMPLES)
        for counts in strata
    ]
    low, high = np.percentile(statistic(draws), [2.5, 97.5])
    return [float(low), float(high)]
