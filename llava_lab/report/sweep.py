"""12f. Sweep: its finished points -> a row each, a plot, and the published rows beside them."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_lab.report.grid import Grid
from llava_lab.report.rows import (
    NONE,
    Estimate,
    Row,
    difference,
    over_seeds,
    plus_minus,
    run_rows,
    seed_rows,
)
from llava_lab.report.runs import Run, read
from llava_lab.sweep import Sweep

Group = tuple[dict[str, str], list[Run]]


def finished_groups(sweep: Sweep, runs: Path, more: Sequence[str] = ()) -> list[Group]:
    """Labels of every combination that has results, with its seeds' runs.

    Raises:
        ValueError: If no point is finished.
    """
    found: dict[str, Group] = {}
    for point, results in sweep.finished(runs, more):
        group = found.setdefault(str(point.labels), (point.labels, []))
        group[1].append(read(results))
    if not found:
        raise ValueError(
            f"sweep {sweep.name} has no finished point in {runs}; run `sweep` first, with the same "
            "options as here"
        )
    return list(found.values())


def scores(group: Group) -> list[Row]:
    """Scores of one combination: means over seeds, or the one run's own."""
    runs = group[1]
    return seed_rows(runs) if len(runs) > 1 else run_rows(runs[0].results)


def sweep_grids(sweep: Sweep, found: list[Group]) -> Iterator[Grid]:
    """For each benchmark a table with a row a combination."""
    rows = [scores(group) for group in found]
    missing = len(sweep.points()) - sum(len(group[1]) for group in found)
    notes = [
        "Accuracies in %, mean ± half of a 95% interval: over seeds where there are several, else "
        "over questions. Margin: overall, less the same with images shuffled, in points."
    ]
    if missing:
        notes.append(f"{missing} of {len(sweep.points())} points have no results.")
    for benchmark in dict.fromkeys(row.benchmark for each in rows for row in each):
        names = list(
            dict.fromkeys(r.score for each in rows for r in each if r.benchmark == benchmark)
        )
        head = [*sweep.axes, "seeds", "visual tokens", "training FLOPs", "seconds", "margin"]
        body = []
        for (labels, done), each in zip(found, rows, strict=True):
            here = {row.score: row for row in each if row.benchmark == benchmark}
            first = next(iter(here.values()))
            body.append(
                [
                    *(labels[axis] for axis in sweep.axes),
                    *(str(len(done)), f"{tokens(done, benchmark):.1f}"),
                    *(f"{cost(done, 'train_flops'):.3g}", f"{seconds(done):.0f}"),
                    *(plus_minus(first.margin), *(plus_minus(here[name].value) for name in names)),
                ]
            )
        title = f"sweep {sweep.name}, {benchmark}, {found[0][1][0].results['scale']} scale"
        yield Grid(title, [*head, *names], body, notes, names=len(sweep.axes))


def difference_grids(sweep: Sweep, found: list[Group], base: str) -> Iterator[Grid]:
    """For each benchmark, what every other combination has more than the one of this name.

    Seeds are paired: both points of a pair began with the same seed and share the stages before
    the one that differs.

    Raises:
        ValueError: If no finished combination has that name.
    """
    named = {", ".join(labels.values()): (labels, runs) for labels, runs in found}
    if base not in named:
        known = ", ".join(map(repr, named))
        raise ValueError(
            f"--against: {base!r} is no finished point of {sweep.name}; it has {known}"
        )
    first = {run.results["seed"]: _values(run) for run in named[base][1]}
    rows: dict[str, list[tuple[list[str], dict[str, str]]]] = {}
    for name, (labels, runs) in named.items():
        pairs = [(_values(run), first.get(run.results["seed"])) for run in runs]
        both = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
        if name == base or not both:
            continue
        cells: dict[str, dict[str, str]] = {}
        for benchmark, score in both[0][0]:
            if all((benchmark, score) in values for pair in both for values in pair):
                each = [tuple(values[benchmark, score] for values in pair) for pair in both]
                cells.setdefault(benchmark, {})[score] = _signed(each)
        for benchmark, of_scores in cells.items():
            head = [*labels.values(), str(len(both))]
            rows.setdefault(benchmark, []).append((head, of_scores))
    notes = [
        f"Points more than {base}: mean of each seed's difference ± half of a 95% t-interval; of "
        "one seed, an interval over questions (Newcombe). *: there is no zero in the interval."
    ]
    for benchmark, lines in rows.items():
        names = list(dict.fromkeys(name for _, cells in lines for name in cells))
        body = [[*head, *(cells.get(name, NONE) for name in names)] for head, cells in lines]
        title = f"sweep {sweep.name}, {benchmark}: against {base}"
        yield Grid(title, [*sweep.axes, "seeds", *names], body, notes, names=len(sweep.axes))


def _values(run: Run) -> dict[tuple[str, str], Estimate]:
    return {(row.benchmark, row.score): row.value for row in run_rows(run.results)}


def _signed(pairs: Sequence[tuple[Estimate, ...]]) -> str:
    """A difference in points with its interval, and a star where the interval has no zero."""
    if len(pairs) > 1:
        found = over_seeds([ours.value - theirs.value for ours, theirs in pairs])
    else:
        found = difference(*pairs[0])
    star = "*" if found.low > 0 or found.high < 0 else ""
    return f"{100 * found.value:+.1f} ± {50 * (found.high - found.low):.1f}{star}"


def tokens(runs: list[Run], benchmark: str) -> float:
    """Mean of a benchmark's visual tokens before a question."""
    return sum(run.visual_tokens(benchmark) for run in runs) / len(runs)


def cost(runs: list[Run], key: str) -> float:
    """Mean of one cost of some runs."""
    return sum(run.results["cost"][key] for run in runs) / len(runs)


def seconds(runs: list[Run]) -> float:
    """Mean time of training all of a run's stages, those that another run trained included."""
    return sum(stage["seconds"] for run in runs for stage in run.results["stages"]) / len(runs)


def plot(sweep: Sweep, found: list[Group], out: Path) -> None:
    """Draw accuracy by question type against visual tokens, or by name where those hardly differ.

    Where a sweep has several axes, each value of the first has a panel of its own.
    """
    # Only here: the other tables start in half the time without it.
    from matplotlib.figure import Figure

    first = next(iter(sweep.axes))
    panels: dict[str, list[Group]] = {}
    for group in found:
        name = f"{first}: {group[0][first]}" if len(sweep.axes) > 1 else ""
        panels.setdefault(name, []).append(group)
    figure = Figure(figsize=(2 + 6 * len(panels), 5), layout="constrained")
    drawn = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, groups) in zip(drawn, panels.items(), strict=True):
        _draw(axes, groups, [axis for axis in sweep.axes if not name or axis != first])
        axes.set_title(name)
    drawn[0].set_ylabel("accuracy, %")
    drawn[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    benchmark, scale = scores(found[0])[0].benchmark, found[0][1][0].results["scale"]
    figure.suptitle(f"sweep {sweep.name}: {benchmark}, {scale} scale")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def _apart(numbers: Sequence[float]) -> bool:
    """Whether those that differ do so by enough to be read as places of an axis."""
    places = sorted(set(numbers))
    room = 0.05 * (places[-1] - places[0])
    return len(places) > 1 and all(b - a > room for a, b in itertools.pairwise(places))


def _draw(axes: Any, groups: list[Group], named: list[str]) -> None:
    """One panel: a line a score, a place a combination; those of equal tokens share one."""
    rows = [scores(group) for group in groups]
    benchmark = rows[0][0].benchmark
    shown = [tokens(runs, benchmark) for _, runs in groups]
    spread = _apart(shown)
    order = sorted(range(len(groups)), key=lambda i: shown[i]) if spread else range(len(groups))
    places = {i: shown[i] if spread else place for place, i in enumerate(order)}
    names: dict[float, list[str]] = {}
    for i in order:
        names.setdefault(places[i], []).append(", ".join(groups[i][0][axis] for axis in named))
    values = {i: {r.score: r.value for r in rows[i] if r.benchmark == benchmark} for i in order}
    for score in values[0]:
        line = [values[i][score] for i in order]
        # At 0% and 100%, rounding may put an end of the interval a hair on the wrong side.
        low = [100 * max(0.0, value.value - value.low) for value in line]
        high = [100 * max(0.0, value.high - value.value) for value in line]
        axes.errorbar(
            [places[i] for i in order],
            [100 * value.value for value in line],
            yerr=[low, high],
            label=score.removeprefix("accuracy/"),
            marker="o",
            capsize=3,
            linewidth=2.5 if score == "accuracy" else 1.2,
        )
    labels = [" = ".join(each) for each in names.values()]
    if spread:
        labels = [f"{label} ({place:.0f})" for label, place in zip(labels, names, strict=True)]
        axes.set_xlabel("visual tokens before a question (mean, in brackets)")
    axes.set_xticks(list(names), labels, rotation=20, ha="right")
    axes.grid(alpha=0.3)
