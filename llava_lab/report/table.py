"""12. Table: runs -> tables of scores, stages and cost, and the published rows apart from them."""

import csv
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from llava_lab.core.verbs import one_message, verb_parser
from llava_lab.experiment.sweep import Sweep
from llava_lab.report.grid import Grid, to_markdown, to_rich
from llava_lab.report.plot import plot
from llava_lab.report.published import published
from llava_lab.report.rows import NONE, ScoreRow, bracketed, plus_minus, run_rows, seed_rows
from llava_lab.report.runs import RunResults, find, read
from llava_lab.report.sweep import (
    difference_grids,
    finished_groups,
    held_out_grids,
    sweep_grids,
)

COST = {
    "parameters": "parameters",
    "trainable parameters": "trainable_parameters",
    "visual tokens a sample, mean": "visual_tokens_mean",
    "training FLOPs": "train_flops",
    "seconds": "seconds",
    "seconds of stages trained here": "seconds_trained_here",
    "peak memory, bytes": "peak_memory_bytes",
}
HEADERS = ["benchmark", "score", "questions", "value", "blind", "margin"]
PAPER = Path(__file__).parents[2] / "configs" / "paper"


def main(arguments: list[str] | None = None) -> None:
    """Run `table` from the command line; a mistake is one message and exit status 2."""
    parser = verb_parser(
        "table", "Print runs as tables: one by itself, several seeds as their mean, or a sweep."
    )
    what = "run folder, results.json, folder of runs, or one sweep file"
    parser.add_argument("runs_or_sweep", metavar="RUN", nargs="+", type=Path, help=what)
    parser.add_argument("--format", choices=("rich", "md", "csv"), default="rich")
    parser.add_argument("--paper", type=Path, default=PAPER, help="folder of published numbers")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the sweep ran")
    parser.add_argument(
        "--against", metavar="POINT", help="also print what a sweep's other points have more: '1x1'"
    )
    parser.add_argument("--plot", type=Path, help="picture of the sweep to draw, .png or .pdf")
    drawn = "what the plot has in place of the first benchmark's accuracies: presence/hallucination"
    parser.add_argument("--scores", nargs="+", default=[], metavar="SCORE", help=drawn)
    against = "what it has it against in place of visual tokens, such as dpo/kl of held-out rows"
    parser.add_argument("--x", metavar="SCORE", help=against)
    options, more = parser.parse_known_args(arguments)
    with one_message():
        if options.runs_or_sweep[0].suffix == ".yaml":
            sweep_table(options, more)
            return
        if more:
            parser.error(f"unrecognized arguments: {' '.join(more)}")
        if options.against or options.plot:
            parser.error("--against and --plot are of a sweep: give its file")
        table(options.runs_or_sweep, options.format, options.paper)


def table(
    runs: Sequence[Path], format: Literal["rich", "md", "csv"] = "rich", paper: Path = PAPER
) -> None:
    """Print runs as tables: one run by itself, several seeds of one experiment as their mean.

    Args:
        runs: Run folders, results.json files, or folders with runs below them.
        format: For the terminal, as Markdown, or as comma-separated fractions, one line a score.
        paper: Folder with the published numbers, which are printed under their own heading.
    """
    groups = grouped([read(path) for path in find(runs)])
    if format == "csv":
        write_csv(groups)
        return
    show(list(all_grids(groups, paper)), format)


def sweep_table(options: Namespace, more: Sequence[str]) -> None:
    """Print a sweep's table and the published ones, and draw its plot.

    Args:
        options: Of the command line.
        more: Options of fit that the sweep was run with.
    """
    sweep = Sweep.read(options.runs_or_sweep[0])
    found = finished_groups(sweep, options.runs, more)
    grids = [*sweep_grids(sweep, found), *held_out_grids(sweep, found)]
    if options.against is not None:
        grids += difference_grids(sweep, found, options.against)
    for each in sweep.published:
        tables = published_grids(each["experiment"], options.paper)
        chosen = [grid for grid in tables if grid.title.endswith(f": {each['title']}")]
        if not chosen:
            known = ", ".join(repr(grid.title.partition(": ")[2]) for grid in tables) or "none"
            raise ValueError(
                f"{options.runs_or_sweep[0]}: published: {options.paper} has no table "
                f"{each['title']!r} of {each['experiment']}; it has {known}"
            )
        grids += chosen
    show(grids, options.format)
    if options.plot:
        plot(sweep, found, options.plot, options.scores, options.x, options.against)


def show(grids: Sequence[Grid], format: Literal["rich", "md", "csv"]) -> None:
    """Print tables."""
    if format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        for grid in grids:
            writer.writerows([grid.headers, *grid.rows])
        return
    if format == "md":
        print("\n\n".join(to_markdown(grid) for grid in grids))
        return
    # A pipe or a file has no width of its own, and rich would take 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 140)
    for grid in grids:
        console.print(to_rich(grid), "")


def results_table(results: dict[str, Any]) -> Table:
    """Draw one run's scores: a row for each metric and question type."""
    return to_rich(score_grid(results))


def results_tables(results: dict[str, Any]) -> list[Table]:
    """Draw one run's scores, its stages and its cost."""
    return [results_table(results), to_rich(stages_grid(results)), to_rich(cost_grid(results))]


def seeds_table(runs: Sequence[RunResults]) -> Table:
    """Draw the mean scores of several seeds of one experiment."""
    return to_rich(seeds_grid(runs))


def grouped(runs: Sequence[RunResults]) -> list[list[RunResults]]:
    """Put runs together that differ in nothing but the seed; every other run stays alone.

    Points of a sweep share experiment and scale, but are not seeds of one thing: the recipe must
    agree as well, and no seed may occur twice.
    """
    alike: list[list[RunResults]] = []
    for run in runs:
        for group in alike:
            if _name(run) == _name(group[0]) and run.recipe() == group[0].recipe():
                group.append(run)
                break
        else:
            alike.append([run])
    groups: list[list[RunResults]] = []
    for group in alike:
        seeds = {run.results["seed"] for run in group}
        groups += [group] if len(seeds) == len(group) else [[run] for run in group]
    return groups


def _name(run: RunResults) -> tuple[str, str]:
    return run.results["experiment"], run.results["scale"]


def all_grids(groups: Sequence[Sequence[RunResults]], paper: Path) -> Iterator[Grid]:
    """Tables of every group, then the published ones of every experiment among them."""
    names = [_name(group[0]) for group in groups]
    for group, name in zip(groups, names, strict=True):
        if len(group) > 1:
            yield seeds_grid(group)
            continue
        results = group[0].results
        scores = score_grid(results, group[0].path)
        if names.count(name) > 1:
            scores.notes.append(
                f"Not averaged with the other runs of {name[0]}: their recipe or seeds do not fit."
            )
        yield from (scores, stages_grid(results), cost_grid(results))
    for experiment in dict.fromkeys(name for name, _ in names):
        yield from published_grids(experiment, paper)


def score_grid(results: dict[str, Any], path: Path | None = None) -> Grid:
    """Scores of one run, with intervals over questions."""
    rows = [
        [row.benchmark, row.score, str(row.n), *map(bracketed, (row.value, row.blind, row.margin))]
        for row in run_rows(results)
    ]
    notes = [
        "In %, with 95% intervals over questions (Wilson, or a bootstrap where scores are partial)."
        " Blind: images shuffled between questions. Margin: value less blind, in points."
    ]
    notes += answer_notes(results) + judge_notes(results)
    title = f"{_scaled(results)}, seed {results['seed']}"
    return Grid(title + (f" ({path})" if path else ""), HEADERS, rows, notes, names=2)


def seeds_grid(runs: Sequence[RunResults]) -> Grid:
    """Mean scores of several seeds, with intervals over seeds."""
    rows = [
        [row.benchmark, row.score, str(row.n), *map(plus_minus, (row.value, row.blind, row.margin))]
        for row in seed_rows(runs)
    ]
    seeds = ", ".join(str(run.results["seed"]) for run in runs)
    title = f"{_scaled(runs[0].results)}, {len(runs)} seeds ({seeds})"
    notes = [
        f"In %, mean ± half of a 95% t-interval over {len(runs)} seeds. Blind: images shuffled"
        " between questions. Margin: value less blind of each seed, in points."
    ]
    for run in runs:
        notes += [f"Seed {run.results['seed']}: {note}" for note in answer_notes(run.results)]
    notes += judge_notes(runs[0].results)
    return Grid(title, HEADERS, rows, notes, names=2)


def answer_notes(results: dict[str, Any]) -> list[str]:
    """What a reader must know of the answers behind the scores; nothing where all is as usual."""
    notes = []
    for name, counts in results.get("answered", {}).items():
        if counts["answered"] < counts["questions"]:
            notes.append(
                f"{name}: {counts['answered']} of {counts['questions']} questions were answered, "
                "since the trainer limits batches (limit_test_batches, limit_predict_batches, "
                "fast_dev_run)."
            )
        if counts["empty"]:
            accepted = counts["empty_correct"]
            rule = "" if accepted is None else f"; the benchmark's rule accepts {accepted} of them"
            notes.append(
                f"{name}: {counts['empty']} of {counts['answered']} answers are empty{rule}."
            )
        if counts["no_blind"]:
            notes.append(
                f"{name}: no blind score, since a question could only be shown its own images."
            )
    return notes


def judge_notes(results: dict[str, Any]) -> list[str]:
    """Who judged what, since scores of other judges and prompts are not to be compared."""
    notes = []
    for name, judge in results.get("judges", {}).items():
        prompts = ", ".join(
            f"{each['prompt']} {each['prompt_sha256'][:12]}" for each in judge["prompts"].values()
        )
        notes.append(f"{name}: judged by {judge['model']} ({prompts}); a score of 5 points is 100.")
    return notes


def _scaled(results: dict[str, Any]) -> str:
    return f"{results['experiment']}, {results['scale'] or 'own'} scale"


def stages_grid(results: dict[str, Any]) -> Grid:
    """What each stage of a run did."""
    rows = [
        [
            *(stage["name"], "yes" if stage.get("reused") else "no"),
            *(count(stage.get(key)) for key in ("steps", "samples", "tokens", "seconds")),
            f"{loss(stage.get('loss_first'))} → {loss(stage.get('loss_last'))}",
        ]
        for stage in results["stages"]
    ]
    headers = ["stage", "reused", "steps", "samples", "tokens", "seconds", "loss, first → last"]
    return Grid("Stages", headers, rows, names=2)


def cost_grid(results: dict[str, Any]) -> Grid:
    """What a run cost."""
    cost = results["cost"]
    return Grid(
        "Cost", ["cost", "value"], [[name, count(cost.get(key))] for name, key in COST.items()]
    )


def published_grids(experiment: str, paper: Path) -> list[Grid]:
    """The published rows of an experiment, one table for each of theirs.

    Models are columns; or rows, where there are more of them than of benchmarks.
    """
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in published(experiment, paper):
        tables.setdefault(row["title"], []).append(row)
    grids = []
    for title, rows in tables.items():
        benchmarks = list(dict.fromkeys(name for row in rows for name in row["values"]))
        values = [[str(row["values"].get(name, NONE)) for name in benchmarks] for row in rows]
        models = [row["model"] for row in rows]
        if len(models) > len(benchmarks):
            headers, names = ["model", *benchmarks], models
        else:
            headers, names = ["benchmark", *models], benchmarks
            values = [list(column) for column in zip(*values, strict=True)]
        body = [[name, *line] for name, line in zip(names, values, strict=True)]
        first = rows[0]
        known = ", ".join(each for each in (first["source_kind"], first["provenance"]) if each)
        source = f"Source: {first['source']} ({known.replace('_', ' ')})."
        heading = f"{experiment}, published (paper scale): {title}"
        grids.append(Grid(heading, headers, body, [source, *first["notes"]]))
    return grids


def write_csv(groups: Sequence[Sequence[RunResults]]) -> None:
    """Print every group's scores as fractions; empty where nothing was measured."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    ends = [
        f"{name}{end}" for name in ("value", "blind", "margin") for end in ("", "_low", "_high")
    ]
    head = ["experiment", "scale", "seeds", "benchmark", "score", "questions", "interval"]
    writer.writerow([*head, *ends])
    for group in groups:
        first = group[0].results
        seeds = " ".join(str(run.results["seed"]) for run in group)
        over = "questions" if len(group) == 1 else "seeds"
        for row in run_rows(first) if len(group) == 1 else seed_rows(group):
            names = [first["experiment"], first["scale"], seeds, row.benchmark, row.score, row.n]
            writer.writerow([*names, over, *numbers(row)])


def numbers(row: ScoreRow) -> list[float | str]:
    """Value, low and high of a row's three estimates."""
    found: list[float | str] = []
    for estimate in (row.value, row.blind, row.margin):
        found += [estimate.value, estimate.low, estimate.high] if estimate else ["", "", ""]
    return found


def count(number: float | None) -> str:
    """A number with its thousands set apart; one decimal if not whole, powers of ten if huge."""
    if number is None:
        return NONE
    if number >= 1e11:
        return f"{number:.3g}"
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"


def loss(number: float | None) -> str:
    """A loss to three decimals."""
    return NONE if number is None else f"{number:.3f}"
