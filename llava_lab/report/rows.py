"""12. Rows: results of one run, or of several seeds -> scores with intervals, and their cells."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeVar

from llava_lab.evaluate.points import BLIND, PASSES
from llava_lab.report.estimate import (
    Difference,
    Estimate,
    apart,
    difference_of,
    holm,
    mean_of,
)
from llava_lab.report.grid import Figure
from llava_lab.report.points import Key
from llava_lab.report.runs import RunResults
from llava_lab.report.stated import differing, over_runs, stated

NONE = "–"  # what was not measured
LEVEL = 0.05  # of all stars of a table together
T = TypeVar("T")

# What the intervals of runs are over, and how a legend says it.
OVER = {
    "questions": "over questions, those about one picture counted together",
    "seeds and questions": "over seeds and questions, those about one picture counted together",
    "worlds": "over seeds, each of which answered questions of its own",
    "seeds": "over seeds alone where a run has no points.json, so that the choice of questions is "
    "left out",
    "results": "over questions as the results state them where a run has no points.json",
}


@dataclass(frozen=True)
class ScoreRow:
    """One score of a benchmark, as fractions.

    Attributes:
        benchmark: Name of the benchmark.
        score: Name of the metric, with the question type where it is of one: "accuracy/count".
        n: Questions of each run.
        seeds: Runs.
        value: The score.
        blind: The score beside a wrong picture, where it was measured.
        margin: The score less the blind score, question by question.
        text_only: The score without any picture, where it was measured.
        most_frequent: The score of the most frequent answer of each type, where it is known.
        unit: What scripts get for a score of 1: 100 of others' metrics in a unit of their own.
    """

    benchmark: str
    score: str
    n: int
    seeds: int
    value: Estimate
    blind: Estimate | None = None
    margin: Difference | None = None
    text_only: Estimate | None = None
    most_frequent: Estimate | None = None
    unit: float = 1.0


def value(runs: Sequence[RunResults], key: Key) -> Estimate:
    """A score of one run, or its mean over several seeds."""
    if all(key in run.points for run in runs):
        return mean_of([run.points[key] for run in runs])
    found = [stated(run.scores[key]) for run in runs]
    return found[0] if len(found) == 1 else over_runs(found)


def compare(
    pairs: Sequence[tuple[RunResults, RunResults]], key: Key, other: Key | None = None
) -> Difference:
    """Mean difference of a score between the two runs of each pair, first less second.

    Args:
        pairs: Two runs of each seed.
        key: Score of the first.
        other: Score of the second; None for the same.
    """
    other = other or key
    if all(key in first.points and other in second.points for first, second in pairs):
        return difference_of([(a.points[key], b.points[other]) for a, b in pairs])
    known = [(stated(a.scores[key]), stated(b.scores[other])) for a, b in pairs]
    return apart(*known[0]) if len(known) == 1 else differing(known)


def score_rows(runs: Sequence[RunResults]) -> list[ScoreRow]:
    """Scores of one run, or mean scores of runs that differ in their seed.

    All runs must have answered the same benchmarks.
    """
    for each in runs[1:]:
        _same_scores(runs[0], each)
    return [_row(runs, key) for key in runs[0].sighted]


def _row(runs: Sequence[RunResults], key: Key) -> ScoreRow:
    def of(prefix: str) -> Key | None:
        other = (key[0], f"{prefix}{key[1]}")
        return other if other in runs[0].scores else None

    found, blind = value(runs, key), of(BLIND)
    others = {name: of(name) for name in PASSES}
    return ScoreRow(
        *key,
        runs[0].scores[key]["n"],
        len(runs),
        found,
        **{
            name.removesuffix("_"): value(runs, other) if other else None
            for name, other in others.items()
        },
        margin=compare([(run, run) for run in runs], key, blind) if blind else None,
        unit=100.0 if runs[0].scores[key].get("as_stated") else 1.0,
    )


def over(runs: Sequence[RunResults]) -> str:
    """What the intervals of runs that differ in their seed are over, a key of OVER."""
    if not all(run.points for run in runs):
        return "results" if len(runs) == 1 else "seeds"
    if len(runs) == 1:
        return "questions"
    first = {key[0]: each for key, each in runs[0].points.items()}
    same = all(
        first[name].content == each.content
        for run in runs[1:]
        for (name, _), each in run.points.items()
        if name in first
    )
    return "seeds and questions" if same else "worlds"


def legend(groups: Iterable[Sequence[RunResults]]) -> str:
    """What the intervals of groups of runs are, as a sentence."""
    kinds = dict.fromkeys(over(group) for group in groups)
    return f"95% intervals: {'; '.join(OVER[kind] for kind in kinds)}."


def bracketed(estimate: Estimate | None) -> str:
    """An estimate with the ends of its interval, in per cent: 62.0 [58.1, 65.7]."""
    if estimate is None or not isfinite(estimate.high - estimate.low):
        return _plain(estimate)
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def plus_minus(estimate: Estimate | None, whole: float = 100) -> str:
    """An estimate with half of its interval: 62.0 ± 1.3.

    Args:
        estimate: The estimate.
        whole: What is printed for a score of 1: 100 for per cent.
    """
    if estimate is None or not isfinite(estimate.high - estimate.low):
        return _plain(estimate, whole)
    return f"{whole * estimate.value:.1f} ± {half(estimate, whole)}"


def half(estimate: Estimate, whole: float = 100) -> str:
    """Half of an interval, with as many digits as it takes not to be zero."""
    width = whole / 2 * (estimate.high - estimate.low)
    return f"{width:.1f}" if width >= 0.05 or not width else f"{width:.1g}"


def _plain(estimate: Estimate | None, whole: float = 100) -> str:
    """An estimate without its interval; a dash where there is none."""
    return NONE if estimate is None else f"{whole * estimate.value:.1f}"


def ends(estimate: Estimate, unit: float = 1) -> dict[str, float | None]:
    """A number and the ends of its 95% interval, for scripts; null where one has no end.

    Args:
        estimate: The number.
        unit: What scripts get for a score of 1.
    """
    low, high = estimate.interval()
    known = [estimate.value, *((low, high) if isfinite(high - low) else (None, None))]
    if unit != 1:  # without the rounding of a product
        known = [None if each is None else float(f"{unit * each:.12g}") for each in known]
    return dict(zip(("value", "low", "high"), known, strict=True))


def interval_figure(estimate: Estimate | None, unit: float = 1) -> Figure:
    """An estimate as a cell, with the ends of its interval."""
    return _figure(bracketed(estimate), estimate, unit=unit)


def half_figure(estimate: Estimate | None, whole: float = 100, unit: float = 1) -> Figure:
    """An estimate as a cell, with half of its interval, 1 as `whole` and as `unit` for scripts."""
    return _figure(plus_minus(estimate, whole), estimate, whole, unit)


def plain_figure(estimate: Estimate | None) -> Figure:
    """An estimate as a cell, without its interval."""
    return Figure(_plain(estimate), ends(estimate) if estimate else None)


def signed_figures(differences: Mapping[T, Difference | None]) -> dict[T, Figure]:
    """Differences in points as cells: +1.2 ± 0.9*, 37 questions flipped.

    A star says that a difference is not zero, by Holm's correction for all of the table: the
    chance of any false star in it is 5%. A value that is shown as zero has none.

    Args:
        differences: All differences of one table.
    """
    known = {key: more for key, more in differences.items() if more is not None}
    ps = dict(zip(known, holm([more.p() for more in known.values()]), strict=True))
    return {
        key: Figure(NONE, None) if more is None else _signed(more, ps[key])
        for key, more in differences.items()
    }


def starred(figure: Figure) -> bool:
    """Whether a difference has a star."""
    return "*" in figure.text.partition(",")[0]


def stars(differences: Mapping[Any, Difference | None]) -> str:
    """What a star means in a table of these differences, as a sentence."""
    number = sum(more is not None for more in differences.values())
    return f"*: not zero, at 5% for all {number} comparisons of this table together (Holm)."


def _signed(more: Difference, p: float) -> Figure:
    shown = round(100 * more.value, 1)
    star = "*" if p < LEVEL and shown else ""
    head = f"{shown or 0.0:+.1f} ± {half(more)}{star}"
    said = [head]
    if more.flipped is not None:
        said.append(f"{more.flipped:.0f} question{'s' * (round(more.flipped) != 1)} flipped")
    if more.seeds_to_settle is not None and more.seeds_to_settle > more.runs:
        number = f"{more.seeds_to_settle:.0f}" if isfinite(more.seeds_to_settle) else "no number of"
        said.append(f"{number} seeds would settle it")
    needed = more.seeds_to_settle
    values = {
        **ends(more),
        "p": p,
        "flipped": more.flipped,
        "seeds_to_settle": needed if needed is None or isfinite(needed) else None,
    }
    return Figure(", ".join(said), values, head.replace(" ", ""))


def _figure(text: str, estimate: Estimate | None, whole: float = 100, unit: float = 1) -> Figure:
    short = plus_minus(estimate, whole).replace(" ", "")
    return Figure(text, ends(estimate, unit) if estimate else None, short)


def _same_scores(one: RunResults, other: RunResults) -> None:
    """Refuse seeds that did not measure the same, as far as that can be told."""
    both = f"{one.path} and {other.path}"
    for key in {**one.scores, **other.scores}:
        name = " ".join(key)
        if not (key in one.scores and key in other.scores):
            raise ValueError(f"{name} was measured in only one of {both}")
        counts = [run.scores[key]["n"] for run in (one, other)]
        # Precision's n is the number of answers with yes, so only accuracies can be compared; and
        # where there are points, it is known which questions were answered.
        accuracy = key[1].split("/")[0] == "accuracy"
        if accuracy and counts[0] != counts[1] and not (one.points and other.points):
            raise ValueError(
                f"{name} was measured on {counts[0]} and on {counts[1]} questions in {both}; runs "
                "of one experiment answer the same ones"
            )
