"""12. Rows: results of one run, or of several seeds -> scores with intervals."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import fmean, stdev
from typing import Any

from scipy.special import stdtrit

from llava_lab.report.grid import Figure
from llava_lab.report.runs import RunResults

BLIND = "blind_"
NONE = "–"  # what was not measured


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ScoreRow:
    """One score of a benchmark, as fractions.

    Attributes:
        benchmark: Name of the benchmark.
        score: Name of the metric, with the question type where it is of one: "accuracy/count".
        n: Questions of each run.
        seeds: Runs.
        value: The score.
        blind: The score with images shuffled between questions, where it was measured.
        margin: The score less the blind score.
    """

    benchmark: str
    score: str
    n: int
    seeds: int
    value: Estimate
    blind: Estimate | None
    margin: Estimate | None


def run_rows(results: dict[str, Any]) -> list[ScoreRow]:
    """Scores of one run; the intervals are over questions.

    The margin's interval joins the two scores' own (Newcombe's square-and-add) as if the two
    were independent. Both answer the same questions, so it errs to the wide side.
    """
    rows = []
    for benchmark, scores in results["benchmarks"].items():
        for name in _sighted(benchmark, scores):
            value = _estimate(scores[name])
            blind = _estimate(scores[BLIND + name]) if BLIND + name in scores else None
            margin = difference(value, blind) if blind else None
            rows.append(ScoreRow(benchmark, name, scores[name]["n"], 1, value, blind, margin))
    return rows


def seed_rows(runs: Sequence[RunResults]) -> list[ScoreRow]:
    """Mean scores of runs that differ in their seed; the intervals are t-intervals over runs.

    All runs must have answered the same benchmarks.
    """
    if len(runs) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 runs, got {len(runs)}")
    by_run = [{(row.benchmark, row.score): row for row in run_rows(run.results)} for run in runs]
    for run, rows in zip(runs[1:], by_run[1:], strict=True):
        _same_questions(runs[0], by_run[0], run, rows)
    found = []
    for key, first in by_run[0].items():
        rows = [rows[key] for rows in by_run]
        value = over_seeds([row.value.value for row in rows])
        blinds = [row.blind.value for row in rows if row.blind]
        margins = [row.margin.value for row in rows if row.margin]
        blind = over_seeds(blinds) if blinds else None
        margin = over_seeds(margins) if margins else None
        found.append(ScoreRow(*key, first.n, len(rows), value, blind, margin))
    return found


def difference(first: Estimate, second: Estimate) -> Estimate:
    """First less second, with Newcombe's interval for independent estimates."""
    value = first.value - second.value
    below = sqrt((first.value - first.low) ** 2 + (second.high - second.value) ** 2)
    above = sqrt((first.high - first.value) ** 2 + (second.value - second.low) ** 2)
    return Estimate(value, value - below, value + above)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean of one number a seed, with a 95% t-interval."""
    mean = fmean(values)
    half = t95(len(values) - 1) * stdev(values) / sqrt(len(values))
    return Estimate(mean, mean - half, mean + half)


def values_of(run: RunResults) -> dict[tuple[str, str], Estimate]:
    """Values of a run by benchmark and score."""
    return {(row.benchmark, row.score): row.value for row in run_rows(run.results)}


def mean_difference(pairs: Sequence[tuple[Estimate, Estimate]]) -> Estimate:
    """Mean of the differences of pairs, one a seed; of one seed, an interval over questions."""
    if len(pairs) > 1:
        return over_seeds([ours.value - theirs.value for ours, theirs in pairs])
    return difference(*pairs[0])


def t95(degrees: int) -> float:
    """97.5% quantile of Student's t distribution."""
    return float(stdtrit(degrees, 0.975))


def _sighted(benchmark: str, scores: dict[str, Any]) -> list[str]:
    """Names of the scores that were measured with the right images."""
    names = [name for name in scores if not name.startswith(BLIND)]
    alone = [name for name in scores if name.startswith(BLIND) and name[len(BLIND) :] not in names]
    if alone:
        raise ValueError(f"{benchmark} has {alone[0]}, but no {alone[0][len(BLIND) :]} beside it")
    return names


def _estimate(score: dict[str, Any]) -> Estimate:
    return Estimate(score["value"], *score["ci95"])


def bracketed(estimate: Estimate | None) -> str:
    """An estimate with the ends of its interval, in per cent: 62.0 [58.1, 65.7]."""
    if estimate is None:
        return NONE
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def plus_minus(estimate: Estimate | None) -> str:
    """An estimate with half of its symmetric interval, in per cent: 62.0 ± 1.3."""
    if estimate is None:
        return NONE
    return f"{100 * estimate.value:.1f} ± {50 * (estimate.high - estimate.low):.1f}"


def interval_figure(estimate: Estimate | None) -> Figure:
    """An estimate as a cell, with the ends of its interval."""
    return _figure(bracketed(estimate), estimate)


def half_figure(estimate: Estimate | None) -> Figure:
    """An estimate as a cell, with half of its interval."""
    return _figure(plus_minus(estimate), estimate)


def signed_figure(more: Estimate | None) -> Figure:
    """A difference in points as a cell, with a star if its interval excludes zero."""
    if more is None:
        return Figure(NONE, None)
    star = "*" if more.low > 0 or more.high < 0 else ""
    text = f"{100 * more.value:+.1f} ± {50 * (more.high - more.low):.1f}{star}"
    return Figure(text, asdict(more), text.replace(" ", ""))


def _figure(text: str, estimate: Estimate | None) -> Figure:
    short = plus_minus(estimate).replace(" ", "")
    return Figure(text, asdict(estimate) if estimate else None, short)


Key = tuple[str, str]


def _same_questions(
    one: RunResults, rows: dict[Key, ScoreRow], other: RunResults, others: dict[Key, ScoreRow]
) -> None:
    for key in {**rows, **others}:
        row, beside = rows.get(key), others.get(key)
        counts = [each.n if each else 0 for each in (row, beside)]
        blinds = [bool(each and each.blind) for each in (row, beside)]
        # Precision's n is the number of answers with yes, so only accuracies can be compared.
        comparable = key[1].split("/")[0] == "accuracy"
        if not row or not beside or (comparable and counts[0] != counts[1]):
            raise ValueError(
                f"{' '.join(key)} was measured on {counts[0]} questions in {one.path} and on"
                f" {counts[1]} in {other.path}; runs of one experiment answer the same questions"
            )
        if blinds[0] != blinds[1]:
            raise ValueError(
                f"{' '.join(key)} was measured blind in only one of {one.path} and {other.path}"
            )
