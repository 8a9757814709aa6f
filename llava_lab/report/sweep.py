"""12f. Sweep: its finished points -> a row each, a plot, and the published rows beside them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

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
                    *(str(len(done)), f"{cost(done, 'visual_tokens_mean'):.1f}"),
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


def cost(runs: list[Run], key: str) -> float:
    """Mean of one cost of some runs."""
    return sum(run.results["cost"][key] for run in runs) / len(runs)


def seconds(runs: list[Run]) -> float:
    """Mean time of training all of a run's stages, those that another run trained included."""
    return sum(stage["seconds"] for run in runs for stage in run.results["stages"]) / len(runs)


def plot(sweep: Sweep, found: list[Group], out: Path) -> None:
    """Draw accuracy by question type against visual tokens, or by name where tokens are equal."""
    # Only here: the other tables start in half the time without it.
    from matplotlib.figure import Figure

    tokens = [cost(done, "visual_tokens_mean") for _, done in found]
    names = [", ".join(labels.values()) for labels, _ in found]
    spread = len(set(tokens)) == len(tokens)
    order = sorted(range(len(found)), key=lambda i: tokens[i]) if spread else range(len(found))
    benchmark = scores(found[0])[0].benchmark
    rows = [{r.score: r.value for r in scores(found[i]) if r.benchmark == benchmark} for i in order]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    places = [tokens[i] for i in order] if spread else list(range(len(found)))
    for score in rows[0]:
        values = [row[score] for row in rows]
        # At 0% and 100%, rounding may put an end of the interval a hair on the wrong side.
        low = [100 * max(0.0, value.value - value.low) for value in values]
        high = [100 * max(0.0, value.high - value.value) for value in values]
        axes.errorbar(
            places,
            [100 * value.value for value in values],
            yerr=[low, high],
            label=score.removeprefix("accuracy/"),
            marker="o",
            capsize=3,
            linewidth=2.5 if score == "accuracy" else 1.2,
        )
    axes.set_xticks(places, [names[i] for i in order], rotation=20, ha="right")
    if spread:
        axes.set_xlabel("visual tokens a sample (mean)")
        for place, i in zip(places, order, strict=True):
            axes.annotate(f"{tokens[i]:.0f}", (place, 0.01), xycoords=("data", "axes fraction"))
    axes.set_ylabel("accuracy, %")
    axes.set_title(f"sweep {sweep.name}: {benchmark}, {found[0][1][0].results['scale']} scale")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
