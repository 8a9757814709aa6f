"""12. Estimate: what questions gave in several runs -> a mean or a difference with its interval.

Two kinds of noise are in a score: which questions were asked, and which seed was trained. Runs that
answered the same questions are crossed: every seed meets every question, and the variance of the
mean over n seeds and Q pictures is (MS_S + MS_Q - MS_E) / (n Q), of the mean squares of a two-way
layout. Runs that each answered questions of their own (a world a seed) are nested: the spread of
their scores holds both kinds, so that a t-interval over runs is whole. Which of the two it is
follows from the questions.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from llava_lab.evaluate.interval import (
    Array,
    Estimate,
    counting,
    distance,
    pulls,
    quantile,
)
from llava_lab.report.points import Points

MOST_SEEDS = 1000  # beyond which no number of seeds is named
EQUAL = 1e-9  # standard errors below are rounding

__all__ = ["Difference", "Estimate", "difference_of", "holm", "mean_of"]


@dataclass(frozen=True)
class Difference(Estimate):
    """A difference between two points that share seeds and questions.

    Attributes:
        flipped: Questions whose outcome differs, mean of a seed; None where that is not known.
        seeds_to_settle: Seeds with which the interval would leave zero out, were value and
            variances as they seem: at most as many as there are where it does already, infinity
            where no number would do, None where one seed cannot say.
    """

    flipped: float | None = None
    seeds_to_settle: float | None = None

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Ends of the confidence interval: value ± t * se, inside the bounds."""
        if self.se == inf:
            return self.bounds
        half = quantile(self.df, (1 + level) / 2) * self.se
        low, high = self.bounds
        return max(low, self.value - half), min(high, self.value + half)

    def _distance(self, null: float) -> tuple[float, float]:
        return distance(self.value - null, self.se), self.df


@dataclass(frozen=True)
class _Layout:
    """Mean squares of one number of each seed and cluster: seeds crossed with clusters.

    Attributes:
        seeds: Number of seeds n.
        clusters: Number of clusters Q.
        between_seeds, between_clusters, rest: MS_S, MS_Q and MS_E.
    """

    seeds: int
    clusters: int
    between_seeds: float
    between_clusters: float
    rest: float

    @classmethod
    def of(cls, values: Array, moved: Array) -> "_Layout":
        """Decompose the number of each seed [n], and how far each cluster moves it [n, Q]."""
        seeds, clusters = moved.shape
        means = moved.mean(0)
        between_clusters = seeds * float(means.var(ddof=1))
        if seeds == 1:
            return cls(1, clusters, 0.0, between_clusters, between_clusters)
        rest = float(((moved - means) ** 2).sum()) / ((seeds - 1) * (clusters - 1))
        between_seeds = clusters * float(values.var(ddof=1))
        return cls(seeds, clusters, between_seeds, between_clusters, rest)

    def with_seeds(self, seeds: int) -> "_Layout":
        """What is expected of another number of seeds, were the variances as they seem."""
        of_cluster = max(0.0, self.between_clusters - self.rest) / self.seeds
        between_clusters = self.rest + seeds * of_cluster
        return _Layout(seeds, self.clusters, self.between_seeds, between_clusters, self.rest)

    @property
    def variance(self) -> float:
        """Variance of the mean; a component that seems negative counts as none."""
        return sum(part * weight for part, _, weight in self._parts)

    @property
    def df(self) -> float:
        """Satterthwaite's degrees of freedom of the variance."""
        spread = sum((part * weight) ** 2 / df for part, df, weight in self._parts)
        return max(1.0, self.variance**2 / spread) if spread else max(1, self.clusters - 1)

    @property
    def _parts(self) -> list[tuple[float, int, float]]:
        """Mean squares with their degrees of freedom, and what they weigh in the variance."""
        of_cluster, seeds = self.clusters - 1, self.seeds - 1
        per = 1 / (self.seeds * self.clusters)
        if not seeds:
            return [(self.between_clusters, of_cluster, per)]
        parts = [(self.between_seeds, seeds), (self.between_clusters, of_cluster)]
        above = [part for part in parts if part[0] > self.rest]
        weighed = [(*part, per) for part in above]
        return [*weighed, (self.rest, seeds * of_cluster, (1 - len(above)) * per)]


@dataclass(frozen=True)
class _Spread:
    """A mean over worlds and how well it is known.

    Attributes:
        value, se, df: Those of an estimate.
        clusters: Clusters of all worlds.
        worlds: The layout of each world.
    """

    value: float
    se: float
    df: float
    clusters: int
    worlds: list[_Layout]


def _spread(values: Array, moved: Sequence[Array], worlds: Sequence[int]) -> _Spread:
    """Join runs: crossed where they have one world, else a t-interval over worlds' means.

    Args:
        values: The number of each run [n].
        moved: How far each cluster moves it, an array [Q] a run; of one length within a world.
        worlds: World of each run.
    """
    members = [[n for n, w in enumerate(worlds) if w == world] for world in dict.fromkeys(worlds)]
    means = np.array([values[runs].mean() for runs in members])
    counts = [len(moved[runs[0]]) for runs in members]
    known = all(count > 1 for count in counts)
    layouts = (
        [_Layout.of(values[runs], np.stack([moved[run] for run in runs])) for runs in members]
        if known
        else []
    )
    value, df = float(means.mean()), max(1.0, len(means) - 1)
    if not known:
        return _Spread(value, inf, df, sum(counts), [])
    variance = float(means.var(ddof=1)) / len(means) if len(means) > 1 else 0.0
    if len(layouts) == 1:
        variance, df = layouts[0].variance, layouts[0].df
    elif variance < EQUAL**2:  # equal by chance: what questions alone make
        variance = float(np.mean([each.variance for each in layouts])) / len(means)
    se = sqrt(variance) if variance > EQUAL**2 else 0.0
    return _Spread(value, se, df, sum(counts), layouts)


def _worlds(runs: Sequence[Points]) -> list[int]:
    """Number of each run's questions; equal for runs that answered the same ones."""
    firsts: list[Points] = []
    found = []
    for run in runs:
        known = [number for number, first in enumerate(firsts) if first.same_questions(run)]
        found.append(known[0] if known else len(firsts))
        firsts += [] if known else [run]
    return found


def _moved(rows: Sequence[Sequence[Points]], worlds: Sequence[int]) -> list[Array]:
    """How far each cluster moves the number of each run, one [Q] a run.

    Args:
        rows: The scores of each run; the number is the first, or the first less the second.
        worlds: World of each run, which decides its clusters.
    """
    places = [row[0].places for row in rows]
    counts = [
        np.any([counting(points.ratio, where) for points in row], axis=0)
        for row, where in zip(rows, places, strict=True)
    ]
    found = []
    for row, where, world in zip(rows, places, worlds, strict=True):
        used = np.any([counts[n] for n, other in enumerate(worlds) if other == world], axis=0)
        each = [pulls(points.ratio, where) for points in row]
        pull = each[0] - each[1] if len(each) > 1 else each[0]
        found.append(pull[used] * used.sum())
    return found


def mean_of(runs: Sequence[Points]) -> Estimate:
    """Mean of one score over runs, with the standard error of seeds and questions together.

    Args:
        runs: The score in each run, one a seed.
    """
    worlds = _worlds(runs)
    values = np.array([run.ratio.value for run in runs])
    found = _spread(values, _moved([[run] for run in runs], worlds), worlds)
    se = found.se if all(run.ratio.n for run in runs) else inf
    bounds = (0.0, max(run.top for run in runs))
    n = round(np.mean([run.ratio.n for run in runs]))
    return Estimate(found.value, se, found.df, len(runs), n, found.clusters, bounds)


def difference_of(pairs: Sequence[tuple[Points, Points]]) -> Difference:
    """Mean difference of one score, first less second, paired seed by seed and by question.

    Args:
        pairs: The score in both runs of each seed. If those of a pair did not answer the same
            questions, the two sides count as independent.
    """
    firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    if not all(first.same_questions(second) for first, second in pairs):
        return apart(mean_of(firsts), mean_of(seconds))
    worlds = _worlds(firsts)
    values = np.array([first.ratio.value - second.ratio.value for first, second in pairs])
    found = _spread(values, _moved(pairs, worlds), worlds)
    top = max(each.top for each in (*firsts, *seconds))
    known = all(each.ratio.n for each in (*firsts, *seconds))
    se, df = (found.se, found.df) if known else (inf, 1.0)
    if not se:  # nothing flipped: as if one picture's questions had
        se, df = top / found.clusters, found.clusters - 1
    flips = [number for a, b in pairs if (number := a.flipped(b)) is not None]
    n = round(np.mean([first.ratio.n for first in firsts]))
    several = known and len(pairs) > 1 and found.worlds
    more = {
        "flipped": float(np.mean(flips)) if len(flips) == len(pairs) else None,
        "seeds_to_settle": _seeds_to_settle(found, se, len(pairs)) if several else None,
    }
    return Difference(found.value, se, df, len(pairs), n, found.clusters, (-top, top), **more)


def _seeds_to_settle(found: _Spread, se: float, seeds: int) -> float:
    """Fewest seeds, from those that there are on, whose interval leaves zero out."""
    if abs(found.value) > quantile(found.df, 0.975) * se:
        return seeds

    def settled(number: int) -> bool:
        if len(found.worlds) == 1:
            layout = found.worlds[0].with_seeds(number)
            error, df = sqrt(layout.variance), layout.df
        else:
            error, df = se * sqrt(seeds / number), number - 1
        return abs(found.value) > quantile(df, 0.975) * error

    if not settled(MOST_SEEDS):
        return inf
    return bisect_left(range(MOST_SEEDS), True, lo=seeds + 1, key=settled)


def apart(first: Estimate, second: Estimate) -> Difference:
    """Difference of two independent estimates (Welch)."""
    parts = [(each.se**2, each.df) for each in (first, second)]
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / df for part, df in parts)
    df = variance**2 / spread if 0 < variance < inf and spread else min(first.df, second.df)
    n, clusters = min(first.questions, second.questions), min(first.clusters, second.clusters)
    bounds, runs = around(first), min(first.runs, second.runs)
    top = bounds[1] if bounds[1] < inf else 1.0
    se = sqrt(variance) or top / max(1, clusters)  # as if one picture's questions differed
    return Difference(first.value - second.value, se, df, runs, n, clusters, bounds)


def around(estimate: Estimate) -> tuple[float, float]:
    """Bounds of a difference between two numbers with the bounds of this one."""
    width = estimate.bounds[1] - estimate.bounds[0]
    return -width, width


def holm(ps: Sequence[float]) -> list[float]:
    """Probabilities corrected for their number by Holm's step-down method, in the same order."""
    found = [1.0] * len(ps)
    most = 0.0
    for rank, place in enumerate(np.argsort(ps, kind="stable")):
        most = max(most, min(1.0, (len(ps) - rank) * ps[place]))
        found[place] = most
    return found
