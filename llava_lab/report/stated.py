"""12. Stated: numbers without points, of results or of papers -> what can still be said of them.

Of results it is not known which questions were asked. Of one run the interval is that of its
results; of several it is a t-interval over runs, which leaves the choice of questions out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, sqrt
from typing import Any

import numpy as np

from llava_lab.evaluate.interval import Side, quantile
from llava_lab.report.estimate import EQUAL, Difference, Estimate, around


def stated(score: Mapping[str, Any]) -> Estimate:
    """A score as results.json states it, where its questions are not known."""
    (low, high), n = score["ci95"], score["n"]
    top = 1.0 if score["value"] <= 1 and high <= 1 else inf
    bottom = 0.0 if score["value"] >= 0 else -inf
    ends = (max(bottom, low), min(top, high))
    se = (high - low) / (2 * quantile(inf, 0.975))
    return Estimate(score["value"], se, inf, 1, n, n, (bottom, top), ends)


def over_runs(found: Sequence[Estimate]) -> Estimate:
    """Mean of one number of several runs, with the spread between runs as all that is known."""
    values = [each.value for each in found]
    error = float(np.std(values, ddof=1)) / sqrt(len(values))
    error = error if error > EQUAL else 0.0
    n = round(np.mean([each.questions for each in found]))
    bounds = (min(each.bounds[0] for each in found), max(each.bounds[1] for each in found))
    return Estimate(float(np.mean(values)), error, len(found) - 1, len(found), n, n, bounds)


def differing(pairs: Sequence[tuple[Estimate, Estimate]]) -> Difference:
    """Mean difference of several pairs, one a seed, with the spread of those alone."""
    first = pairs[0][0]
    differences = [
        replace(ours, value=ours.value - theirs.value, bounds=around(ours))
        for ours, theirs in pairs
    ]
    found = over_runs(differences)
    if not found.se:  # as if one question had flipped
        n = max(2, first.questions)
        found = replace(found, se=1 / n, df=n - 1)
    known = (found.value, found.se, found.df, found.runs, found.questions, found.clusters)
    return Difference(*known, found.bounds)


@dataclass(frozen=True)
class Less(Difference):
    """A score less a number without an error: as well known as the score.

    Attributes:
        ours: The score.
        known: The number.
    """

    ours: Estimate = field(kw_only=True)
    known: float = field(kw_only=True)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Ends of the score's interval, less the number."""
        low, high = self.ours.interval(level)
        return low - self.known, high - self.known

    def p(self, null: float = 0.0, side: Side = "two") -> float:
        """Probability of a score as far from the number and `null`, were they the truth."""
        return self.ours.p(self.known + null, side)


def less_known(ours: Estimate, known: float) -> Less:
    """A score less a number without an error, such as a published one."""
    counts = (ours.runs, ours.questions, ours.clusters)
    of = {"ours": ours, "known": known}
    return Less(ours.value - known, ours.se, ours.df, *counts, around(ours), **of)
