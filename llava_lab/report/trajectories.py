"""12. Trajectories: scores on the way -> runs compared at equal samples, tokens or FLOPs.

What a run has spent is counted from its beginning, all stages together. Between two points of a run
its scores, and the ends of their intervals, are those of the line through them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_lab.report.estimate import Difference, Estimate
from llava_lab.report.grid import Figure, Grid
from llava_lab.report.placed import Group
from llava_lab.report.points import Key
from llava_lab.report.rows import (
    compare,
    half_figure,
    interval_figure,
    signed_figures,
    stars,
    value,
)
from llava_lab.report.runs import RunResults

AT = ("samples", "tokens", "flops")
NAMES = {"samples": "samples", "tokens": "tokens", "flops": "FLOPs"}
Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]  # benchmark, then score, as in results.json
Spot = tuple[float, Scores]  # what was spent, and the scores then


def spots(run: RunResults, at: str) -> list[Spot]:
    """Scores of a run on its way and at its end, by what it had spent.

    Args:
        run: The run.
        at: What is counted: one of AT.

    Raises:
        ValueError: If the run does not say what a stage has spent.
    """
    found: list[Spot] = []
    spent, asked = 0.0, run.results.get("benchmark_fingerprints")
    for stage in run.results["stages"]:
        points = stage.get("trajectory", {"asked": {}, "points": []})
        for point in points["points"]:
            same = {
                name: scores
                for name, scores in point["benchmarks"].items()
                if asked is None or asked.get(name) == points["asked"].get(name)
            }
            found += [(spent + point[at], same)] if same else []
        if stage.get(at) is None:
            raise ValueError(
                f"{run.path}: stage {stage['name']} has no {at}, as an older version wrote it; "
                "`fit` the run again"
            )
        spent += stage[at]
    own = {spot: scores for spot, scores in found if spot < spent}
    return [*own.items(), (spent, run.results["benchmarks"])]


def at_spot(run: RunResults, every: Sequence[Spot], place: float) -> RunResults:
    """A run as it was when it had spent so much.

    Args:
        run: The run.
        every: Its spots, in order.
        place: What it had spent, from the first spot to the last.
    """
    if place == every[-1][0]:  # where its questions are known
        return run
    after = next(n for n, (spot, _) in enumerate(every) if spot >= place)
    (right, scores) = every[after]
    if right > place and after:
        (left, before) = every[after - 1]
        share = (place - left) / (right - left)
        scores = {
            name: {
                key: _between(before[name][key], score, share)
                for key, score in of.items()
                if key in before[name]
            }
            for name, of in scores.items()
            if name in before
        }
    results = {**run.results, "benchmarks": scores}
    return RunResults(run.path, results, kept={"benchmarks": {}})


def _between(one: Mapping[str, Any], other: Mapping[str, Any], share: float) -> dict[str, Any]:
    def mixed(first: float, second: float) -> float:
        return first + share * (second - first)

    ends = [mixed(*pair) for pair in zip(one["ci95"], other["ci95"], strict=True)]
    return {"value": mixed(one["value"], other["value"]), "ci95": ends, "n": one["n"]}


class Along:
    """Groups of runs along what they have spent.

    Args:
        groups: Labels and runs; those of a group differ in their seed alone.
        at: What is counted: one of AT.
        chosen: Scores to show, "questions/accuracy/count"; none for the first of each benchmark.

    Raises:
        ValueError: If the runs have no scores on the way, nothing in common, or no such score.
    """

    def __init__(self, groups: Sequence[Group], at: str, chosen: Sequence[str] = ()):
        self.groups, self.at = list(groups), at
        self.spots = {id(run): spots(run, at) for _, runs in groups for run in runs}
        every = list(self.spots.values())
        if all(len(each) == 1 for each in every):
            raise ValueError(
                "--at: none of the runs has scores on the way; fit them with "
                "--stages.NAME.evaluate_every=0.25"
            )
        self.first, self.last = max(e[0][0] for e in every), min(e[-1][0] for e in every)
        if self.first > self.last:
            said = "; ".join(
                f"{label} from {self.spots[id(runs[0])][0][0]:.4g} to "
                f"{self.spots[id(runs[0])][-1][0]:.4g}"
                for label, runs in groups
            )
            raise ValueError(
                f"--at {at}: the runs share no {NAMES[at]} at which to compare: {said}"
            )
        self.keys = self._keys(chosen)

    def _keys(self, chosen: Sequence[str]) -> list[Key]:
        """Scores that all spots have, or those that were chosen."""
        found: list[set[Key]] = [
            {(name, key) for name, of in scores.items() for key in of}
            for each in self.spots.values()
            for _, scores in each
        ]
        first = self.groups[0][1][0].results["benchmarks"]
        known = [
            (name, key)
            for name, of in first.items()
            for key in of
            if all((name, key) in each for each in found)
        ]
        names = {f"{name}/{key}": (name, key) for name, key in known}
        if odd := [each for each in chosen if each not in names]:
            raise ValueError(
                f"--scores: {odd[0]!r} is not everywhere; there are {', '.join(names)}"
            )
        if not known:
            raise ValueError("--at: the runs have no score in common")
        usual = {name: (name, key) for name, key in reversed(known)}
        usual |= {name: (name, key) for name, key in known if key == "accuracy"}
        return [names[each] for each in chosen] or [usual[name] for name in reversed(usual)]

    def places(self) -> list[float]:
        """Where groups are compared: wherever the first run of one was asked."""
        asked = {spot for _, runs in self.groups for spot, _ in self.spots[id(runs[0])]}
        return sorted({self.first, *(p for p in asked if self.first <= p <= self.last), self.last})

    def runs(self, number: int, place: float) -> list[RunResults]:
        """Runs of a group as they were at a place."""
        return [at_spot(run, self.spots[id(run)], place) for run in self.groups[number][1]]

    def score(self, number: int, place: float, key: Key) -> Estimate:
        """A score of a group at a place."""
        return value(self.runs(number, place), key)

    def less(self, number: int, place: float, key: Key) -> Difference | None:
        """A score of a group less that of the first one, paired by seed; None if seeds differ."""
        one, other = self.runs(number, place), self.runs(0, place)
        seeds = [[run.results["seed"] for run in runs] for runs in (one, other)]
        if seeds[0] != seeds[1] and not len(one) == len(other) == 1:
            return None
        return compare(list(zip(one, other, strict=True)), key)


def at_grids(groups: Sequence[Group], at: str, chosen: Sequence[str] = ()) -> list[Grid]:
    """A table of each score: groups of runs side by side at equal samples, tokens or FLOPs.

    The arguments are those of `Along`.
    """
    along = Along(groups, at, chosen)
    places, labels = along.places(), [label for label, _ in groups]
    heads = [NAMES[at], *labels, *(f"{label} less {labels[0]}" for label in labels[1:])]
    grids = []
    for key in along.keys:
        less = {
            (place, number): along.less(number, place, key)
            for place in places
            for number in range(1, len(groups))
        }
        figures, rows = signed_figures(less), []
        for place in places:
            cells = [_cell(along, number, place, key) for number in range(len(groups))]
            cells += [figures[place, number] for number in range(1, len(groups))]
            shown = f"{place:.3g}" if place >= 1e9 else f"{place:,.0f}"
            rows.append([Figure(shown, place), *cells])
        said = [
            f"In %, with 95% intervals, at equal {NAMES[at]} since the run's beginning, all stages "
            "together; between two points of a run on the line through them.",
            *([stars(less)] if len(groups) > 1 else []),
        ]
        about = {"table": "trajectory", "at": at, "benchmark": key[0], "score": key[1]}
        title = f"{'/'.join(key)} at equal {NAMES[at]}"
        grids.append(Grid(title, heads, rows, " ".join(said), about=about))
    return grids


def _cell(along: Along, number: int, place: float, key: Key) -> Figure:
    several = len(along.groups[number][1]) > 1
    return (half_figure if several else interval_figure)(along.score(number, place, key))


def plot_along(groups: Sequence[Group], at: str, out: Path, chosen: Sequence[str] = ()) -> None:
    """Draw scores against what was spent, a panel a score and a line a group.

    Args:
        groups: As `Along` takes them.
        at: As `Along` takes it.
        out: The picture, .png or .pdf.
        chosen: As `Along` takes them.
    """
    # Only here: the other tables start in half the time without it.
    from matplotlib.figure import Figure as Drawn

    along = Along(groups, at, chosen)
    drawn = Drawn(figsize=(1 + 5.5 * len(along.keys), 4.5), layout="constrained")
    panels = drawn.subplots(1, len(along.keys), squeeze=False)[0]
    for axes, key in zip(panels, along.keys, strict=True):
        for number, (label, runs) in enumerate(groups):
            own = [p for p, _ in along.spots[id(runs[0])] if along.first <= p <= along.last]
            found = [along.score(number, place, key) for place in own]
            values = [[100 * part for part in (e.value, e.low, e.high)] for e in found]
            (line,) = axes.plot(own, [each[0] for each in values], marker="o", label=label)
            ends = [[each[part] for each in values] for part in (1, 2)]
            axes.fill_between(own, *ends, alpha=0.15, color=line.get_color())
        axes.set_title("/".join(key))
        axes.set_xlabel(f"{NAMES[at]}, all stages")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("%")
    panels[-1].legend(loc="best")
    out.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(out, dpi=120)
