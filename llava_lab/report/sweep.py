"""12. Sweep: its finished points -> a row each, and what each has more than one of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from llava_lab.experiment.sweep import Sweep
from llava_lab.report.grid import Grid
from llava_lab.report.rows import (
    NONE,
    Estimate,
    ScoreRow,
    difference,
    over_seeds,
    plus_minus,
    run_rows,
    seed_rows,
)
from llava_lab.report.runs import RunResults, read

PointRuns = tuple[dict[str, str], list[RunResults]]


def finished_groups(sweep: Sweep, runs: Path, more: Sequence[str] = ()) -> list[PointRuns]:
    """Labels of every combination that has results, with its seeds' runs.

    Raises:
        ValueError: If no point is finished.
    """
    found: dict[str, PointRuns] = {}
    for point, results in sweep.finished(runs, more):
        group = found.setdefault(str(point.labels), (point.labels, []))
        group[1].append(read(results))
    if not found:
        raise ValueError(
            f"sweep {sweep.name} has no finished point in {runs}; run `sweep` first, with the same "
            "options as here"
        )
    return list(found.values())


def scores(group: PointRuns) -> list[ScoreRow]:
    """Scores of one combination: means over seeds, or the one run's own."""
    runs = group[1]
    return seed_rows(runs) if len(runs) > 1 else run_rows(runs[0].results)


def held_out(runs: list[RunResults]) -> dict[str, Estimate]:
    """Numbers of the last stage's held-out rows, "dpo/kl": means over seeds."""
    stages = [run.results["stages"][-1] for run in runs if run.results["stages"]]
    found = {}
    for name, value in stages[0].get("held_out", {}).items() if stages else ():
        values = [stage["held_out"][name] for stage in stages]
        mean = over_seeds(values) if len(values) > 1 else Estimate(value, value, value)
        found[f"{stages[0]['name']}/{name}"] = mean
    return found


def held_out_grids(sweep: Sweep, found: list[PointRuns]) -> Iterator[Grid]:
    """A table of the held-out rows' numbers, for each stage that is some point's last."""
    rows: dict[str, list[list[str]]] = {}
    heads: dict[str, list[str]] = {}
    for labels, runs in found:
        numbers = held_out(runs)
        for stage in {name.partition("/")[0] for name in numbers}:
            half = " ± {:.3f}" if len(runs) > 1 else ""
            cells = [
                f"{each.value:.3f}{half.format((each.high - each.low) / 2)}"
                for each in numbers.values()
            ]
            heads[stage] = [name.partition("/")[2] for name in numbers]
            rows.setdefault(stage, []).append([*labels.values(), str(len(runs)), *cells])
    for stage, body in rows.items():
        title = f"sweep {sweep.name}, held-out rows of stage {stage}"
        notes = ["Mean ± half of a 95% t-interval over seeds, where there are several; not in %."]
        yield Grid(title, [*sweep.axes, "seeds", *heads[stage]], body, notes, names=len(sweep.axes))


def sweep_grids(sweep: Sweep, found: list[PointRuns]) -> Iterator[Grid]:
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
            margin = next((row.margin for row in here.values()), None)
            shown = [plus_minus(here[name].value) if name in here else NONE for name in names]
            body.append(
                [
                    *(labels[axis] for axis in sweep.axes),
                    *(str(len(done)), f"{tokens(done, benchmark):.1f}"),
                    *(f"{cost(done, 'train_flops'):.3g}", f"{seconds(done):.0f}"),
                    *(plus_minus(margin), *shown),
                ]
            )
        title = f"sweep {sweep.name}, {benchmark}, {found[0][1][0].results['scale']} scale"
        yield Grid(title, [*head, *names], body, notes, names=len(sweep.axes))


def differences(
    sweep: Sweep, found: list[PointRuns], base: str
) -> list[tuple[dict[str, str], int, dict[tuple[str, str], Estimate]]]:
    """Of every other combination its labels, seeds, and what it has more than the one of this name.

    Seeds are paired: both points of a pair began with the same seed and share the stages before
    the one that differs. Of one seed, the interval is over questions.

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
    every = []
    for name, (labels, runs) in named.items():
        pairs = [(_values(run), first.get(run.results["seed"])) for run in runs]
        both = [(ours, theirs) for ours, theirs in pairs if theirs is not None]
        if name == base or not both:
            continue
        more = {
            key: _more([(ours[key], theirs[key]) for ours, theirs in both])
            for key in both[0][0]
            if all(key in values for pair in both for values in pair)
        }
        every.append((labels, len(both), more))
    return every


def difference_grids(sweep: Sweep, found: list[PointRuns], base: str) -> Iterator[Grid]:
    """For each benchmark, what every other combination has more than the one of this name."""
    rows: dict[str, list[tuple[list[str], dict[str, str]]]] = {}
    for labels, seeds, more in differences(sweep, found, base):
        for benchmark in dict.fromkeys(benchmark for benchmark, _ in more):
            cells = {score: _signed(e) for (of, score), e in more.items() if of == benchmark}
            rows.setdefault(benchmark, []).append(([*labels.values(), str(seeds)], cells))
    notes = [
        f"Points more than {base}: mean of each seed's difference ± half of a 95% t-interval; of "
        "one seed, an interval over questions (Newcombe). *: there is no zero in the interval."
    ]
    for benchmark, lines in rows.items():
        names = list(dict.fromkeys(name for _, cells in lines for name in cells))
        body = [[*head, *(cells.get(name, NONE) for name in names)] for head, cells in lines]
        title = f"sweep {sweep.name}, {benchmark}: against {base}"
        yield Grid(title, [*sweep.axes, "seeds", *names], body, notes, names=len(sweep.axes))


def _values(run: RunResults) -> dict[tuple[str, str], Estimate]:
    return {(row.benchmark, row.score): row.value for row in run_rows(run.results)}


def _more(pairs: Sequence[tuple[Estimate, Estimate]]) -> Estimate:
    """Mean difference of pairs."""
    if len(pairs) > 1:
        return over_seeds([ours.value - theirs.value for ours, theirs in pairs])
    return difference(*pairs[0])


def _signed(more: Estimate) -> str:
    """A difference in points with its interval, and a star where the interval has no zero."""
    star = "*" if more.low > 0 or more.high < 0 else ""
    return f"{100 * more.value:+.1f} ± {50 * (more.high - more.low):.1f}{star}"


def tokens(runs: list[RunResults], benchmark: str) -> float:
    """Mean of a benchmark's visual tokens before a question."""
    return sum(run.visual_tokens(benchmark) for run in runs) / len(runs)


def cost(runs: list[RunResults], key: str) -> float:
    """Mean of one cost of some runs."""
    return sum(run.results["cost"][key] for run in runs) / len(runs)


def seconds(runs: list[RunResults]) -> float:
    """Mean time of training all of a run's stages, those that another run trained included."""
    return sum(stage["seconds"] for run in runs for stage in run.results["stages"]) / len(runs)
