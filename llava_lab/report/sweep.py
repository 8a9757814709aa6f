"""12. Sweep: its finished points -> a row each, and what each has more than one of them."""

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

from llava_lab.experiment.sweep import Layers, Sweep
from llava_lab.report.estimate import Difference, Estimate
from llava_lab.report.grid import Figure, Grid, figure
from llava_lab.report.paper_table import Group, paper_grids
from llava_lab.report.published import published
from llava_lab.report.rows import (
    NONE,
    ScoreRow,
    compare,
    ends,
    half_figure,
    legend,
    score_rows,
    signed_figures,
    stars,
)
from llava_lab.report.runs import RunResults, cost, read, tokens, version_notes
from llava_lab.report.stated import over_runs

UNKNOWN = Figure(NONE, None)
FLIPPED = (
    "Flipped: questions whose outcome differs, mean of a seed. Seeds that would settle it: as many "
    "leave zero out of the interval, if value and variances are as they seem."
)
PointRuns = tuple[dict[str, str], list[RunResults]]


def finished_groups(sweep: Sweep, runs: Path, more: Layers = ()) -> list[PointRuns]:
    """Group the finished points of a sweep by combination: its labels and its seeds' runs.

    Raises:
        ValueError: If no point is finished, or an option is none.
    """
    found: dict[str, PointRuns] = {}
    for point, results in sweep.recorded(runs, more):
        group = found.setdefault(str(point.labels), (point.labels, []))
        group[1].append(read(results))
    if not found:
        # Here, since torch takes seconds. An option that there is not has its own message.
        from llava_lab.experiment.experiment import Experiment

        _ = Experiment.read_layers(sweep.layers(sweep.points()[0], more)).options
        raise ValueError(
            f"sweep {sweep.name} has no finished point in {runs}; run `sweep` first, with the same "
            "options as here"
        )
    return list(found.values())


def scores(group: PointRuns) -> list[ScoreRow]:
    """Scores of one combination: means over its seeds, or those of its only run."""
    return score_rows(group[1])


def held_out(runs: list[RunResults]) -> dict[str, Estimate]:
    """Held-out numbers of the last stage, such as "dpo/kl": means over seeds."""
    stages = [run.results["stages"][-1] for run in runs if run.results["stages"]]
    found = {}
    for name in stages[0].get("held_out", {}) if stages else ():
        if not all(name in stage.get("held_out", {}) for stage in stages):
            continue  # of a version that measured something else
        values = [Estimate(stage["held_out"][name], inf, 1, 1, 0) for stage in stages]
        mean = over_runs(values) if len(values) > 1 else values[0]  # one run has no interval
        found[f"{stages[0]['name']}/{name}"] = mean
    return found


def held_out_grids(sweep: Sweep, found: list[PointRuns]) -> Iterator[Grid]:
    """Tables of held-out numbers, one for each stage that is the last one of a point."""
    stages: dict[str, list[tuple[list[str | Figure], dict[str, Figure]]]] = {}
    for labels, runs in found:
        rows: dict[str, dict[str, Figure]] = {}
        for name, each in held_out(runs).items():
            stage, _, number = name.partition("/")
            half = f" ± {(each.high - each.low) / 2:.3f}" if each.se < inf else ""
            rows.setdefault(stage, {})[number] = Figure(f"{each.value:.3f}{half}", ends(each))
        for stage, cells in rows.items():
            stages.setdefault(stage, []).append(([*labels.values(), _count(runs)], cells))
    for stage, lines in stages.items():
        title = f"sweep {sweep.name}, held-out rows of stage {stage}"
        legend = "Mean ± half of a 95% t-interval over seeds, where there are several; not in %."
        about = {"table": "held_out", "sweep": sweep.name, "stage": stage}
        yield _named(sweep, title, lines, legend, about)


def _named(
    sweep: Sweep,
    title: str,
    lines: list[tuple[list[str | Figure], dict[str, Figure]]],
    legend: str,
    about: dict[str, Any],
) -> Grid:
    """A table with a column for each name; rows may lack some."""
    names = list(dict.fromkeys(name for _, cells in lines for name in cells))
    body = [[*head, *(cells.get(name, UNKNOWN) for name in names)] for head, cells in lines]
    headers = [*sweep.axes, "seeds", *names]
    return Grid(title, headers, body, legend, names=len(sweep.axes), about=about)


def _count(runs: list[RunResults]) -> Figure:
    return Figure(str(len(runs)), len(runs))


def sweep_grids(sweep: Sweep, found: list[PointRuns]) -> Iterator[Grid]:
    """Tables of scores, one for each benchmark, with one row for each combination."""
    rows = [scores(group) for group in found]
    missing = len(sweep.points()) - sum(len(group[1]) for group in found)
    said = (
        f"In %, mean ± half of an interval; {legend(runs for _, runs in found)} Margin: overall, "
        "less the same beside a wrong picture, question by question, in points."
    )
    notes = [f"{missing} of {len(sweep.points())} points have no results."] if missing else []
    notes += version_notes(run for _, runs in found for run in runs)
    notes += alike_notes(found)
    scale = found[0][1][0].results["scale"]
    for benchmark in dict.fromkeys(row.benchmark for each in rows for row in each):
        lines = []
        for (labels, done), each in zip(found, rows, strict=True):
            here = {row.score: row for row in each if row.benchmark == benchmark}
            shown, flops = tokens(done, benchmark), cost(done, "train_flops")
            cells = {
                "visual tokens": UNKNOWN if shown is None else figure(shown, ".1f"),
                "training FLOPs": UNKNOWN if flops is None else figure(flops, ".3g"),
                "seconds": figure(seconds(done), ".0f"),
                "margin": half_figure(next((row.margin for row in here.values()), None)),
            }
            cells |= {name: half_figure(row.value) for name, row in here.items()}
            lines.append(([*labels.values(), _count(done)], cells))
        title = f"sweep {sweep.name}, {benchmark}, {scale} scale"
        about = {"table": "sweep", "sweep": sweep.name, "benchmark": benchmark, "scale": scale}
        grid = _named(sweep, title, lines, said, about)
        yield replace(grid, notes=notes)


def alike_notes(found: list[PointRuns]) -> list[str]:
    """Notes on combinations whose answers are the same, word for word, with every seed.

    An option that nothing reads beside the others leaves a row that looks like a finding: no
    difference at all.
    """
    same = defaultdict(list)
    for name, runs in labelled(found):
        every = {run.results["seed"]: run.results.get("predictions_sha256") for run in runs}
        if all(every.values()):
            same[json.dumps(every, sort_keys=True)].append(name)
    return [
        f"{' and '.join(names)} gave every question the same answer, word for word: what sets "
        "them apart may have changed nothing (`diff` names it)."
        for names in same.values()
        if len(names) > 1
    ]


def published_with(sweep: Sweep, path: Path, found: list[PointRuns]) -> Iterator[Grid]:
    """The published tables that a sweep file names, with its points in their rows.

    Raises:
        ValueError: If there is no such table; names those that there are.
    """
    groups = labelled(found)
    for name in sweep.published:
        try:
            table = published(name)
        except ValueError as error:
            raise ValueError(f"{path}: published: {error}") from None
        yield from paper_grids(table, groups)


def labelled(found: list[PointRuns]) -> list[Group]:
    """Finished combinations, each by the names of its values."""
    return [(", ".join(labels.values()), runs) for labels, runs in found]


def differences(
    sweep: Sweep, found: list[PointRuns], base: str
) -> list[tuple[dict[str, str], int, dict[tuple[str, str], Difference]]]:
    """Labels, number of seeds and scores less those of `base`, for every other combination.

    Seeds are paired: both points of a pair began with the same seed and share the stages before
    the one that differs. So are the questions that they answered.

    Raises:
        ValueError: If no finished combination has that name.
    """
    named = {", ".join(labels.values()): (labels, runs) for labels, runs in found}
    if base not in named:
        known = ", ".join(map(repr, named))
        raise ValueError(
            f"--against: {base!r} is no finished point of {sweep.name}; it has {known}"
        )
    first = {each.results["seed"]: each for each in named[base][1]}
    every = []
    for name, (labels, runs) in named.items():
        pairs = [(each, first.get(each.results["seed"])) for each in runs]
        both = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
        if name == base or not both:
            continue
        more = {
            key: compare(both, key)
            for key in both[0][0].sighted
            if all(key in each.scores for pair in both for each in pair)
        }
        every.append((labels, len(both), more))
    return every


def difference_grids(sweep: Sweep, found: list[PointRuns], base: str) -> Iterator[Grid]:
    """Tables of differences to `base`, one for each benchmark; notes on points without any."""
    every = differences(sweep, found, base)
    paired = [base, *(", ".join(labels.values()) for labels, _, _ in every)]
    notes = [
        f"{name}: no seed in common with {base}."
        for name, _ in labelled(found)
        if name not in paired
    ]
    notes += version_notes(run for _, runs in found for run in runs)
    if not every and len(found) > 1:
        title = f"sweep {sweep.name}: against {base}"
        about = {"table": "against", "sweep": sweep.name, "against": base}
        yield Grid(title, [*sweep.axes, "seeds"], [], None, notes, about=about)
    kinds = legend(runs for _, runs in found)
    for benchmark in dict.fromkeys(of for _, _, more in every for of, _ in more):
        here = {
            (number, score): each
            for number, (_, _, more) in enumerate(every)
            for (of, score), each in more.items()
            if of == benchmark
        }
        figures = signed_figures(here)
        lines = []
        for number, (labels, seeds, _) in enumerate(every):
            cells = {score: figure for (n, score), figure in figures.items() if n == number}
            if cells:
                lines.append(([*labels.values(), Figure(str(seeds), seeds)], cells))
        said = (
            f"Points more than {base}, paired by seed and question, ± half of an interval; {kinds} "
            f"{stars(here)} {FLIPPED}"
        )
        title = f"sweep {sweep.name}, {benchmark}: against {base}"
        about = {"table": "against", "sweep": sweep.name, "benchmark": benchmark, "against": base}
        grid = _named(sweep, title, lines, said, about)
        yield replace(grid, notes=notes)


def seconds(runs: list[RunResults]) -> float:
    """Mean training time of all stages, including those reused from other runs."""
    return sum(stage["seconds"] for run in runs for stage in run.results["stages"]) / len(runs)
