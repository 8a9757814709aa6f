"""12. Stated: scores of results without points -> estimates of what can still be said.

Which questions were asked is not known there. Of one run the interval is that of its results; of
several it is a t-interval over runs, which leaves the choice of questions out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, sqrt
from typing import Any

import numpy as np

from llava_lab.evaluate.interval import quantile
from llava_lab.report.estimate import EQUAL, Difference, Estimate, around


def stated(score: Mapping[str, Any]) -> Estimate:
    """A score as results.json states it, where its questions are not known."""
    (low, high), n = score["ci95"], score["n"]
    top = 1.0 if score["value"] <= 1 and high <= 1 else inf
    ends = (max(0.0, low), min(top, high))
    se = (high - low) / (2 * quantile(inf, 0.975))
    return Estimate(score["value"], se, inf, 1, n, n, (0.0, top), ends)


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
