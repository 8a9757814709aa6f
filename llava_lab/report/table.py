"""12. Table: runs -> tables of scores, stages and cost, and the published rows that they are."""

import csv
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llava_lab.report.foreign import read_all
from llava_lab.report.formats import Format, show
from llava_lab.report.grid import Figure, Grid
from llava_lab.report.judges import judge_notes
from llava_lab.report.paper_table import rows_grid, rows_of
from llava_lab.report.placed import Group
from llava_lab.report.rows import (
    NONE,
    Estimate,
    ScoreRow,
    ends,
    half_figure,
    interval_figure,
    legend,
    over,
    plain_figure,
    score_rows,
)
from llava_lab.report.runs import RunResults, version_notes

COST = {
    "parameters": "parameters",
    "trainable parameters": "trainable_parameters",
    "visual tokens a sample, mean": "visual_tokens_mean",
    "training FLOPs": "train_flops",
    "seconds": "seconds",
    "seconds of stages trained here": "seconds_trained_here",
    "peak memory, bytes": "peak_memory_bytes",
}
NUMBERS = ("value", "blind", "margin", "text_only", "most_frequent")  # columns of CSV
LEGENDS = {
    "blind": "Blind: the answer beside a wrong picture, that of another question.",
    "margin": "Margin: value less blind, question by question, in points.",
    "text only": "Text only: without any picture.",
    "most frequent": "Most frequent: that answer of a type's questions, whatever is asked.",
}


def table(paths: Sequence[Path], format: Format = "rich") -> None:
    """Print runs as tables: one run by itself, several seeds of one experiment as their mean.

    Args:
        paths: Run folders, results.json files, or folders with runs below them; logs of lmms-eval.
        format: As `show_runs` takes it.
    """
    show_runs(read_all(paths), format)


def show_runs(runs: Sequence[RunResults], format: Format) -> None:
    """Print runs that were read, and results of others, as tables.

    Args:
        runs: The runs.
        format: As `show` takes it; as comma-separated values, a line a score: ours as fractions,
            published ones as printed.
    """
    groups = grouped(runs)
    if format == "csv":
        write_csv(groups)
        return
    show(list(all_grids(groups)), format)


def labelled(groups: Sequence[list[RunResults]]) -> list[Group]:
    """Groups of runs, each by its experiment and scale, or its path where several have those."""
    names = [_name(group[0]) for group in groups]
    return [
        (_place(group[0]) if names.count(name) > 1 else _scaled(group[0].results), group)
        for group, name in zip(groups, names, strict=True)
    ]


def _place(run: RunResults) -> str:
    """Where a run lies: its folder; of others' results the file."""
    return str(run.path if "origin" in run.results else run.path.parent)


def results_tables(run: RunResults) -> list[Grid]:
    """Tables of one run: scores, stages, cost."""
    return [score_grid([run]), stages_grid(run.results), cost_grid(run.results)]


def grouped(runs: Sequence[RunResults]) -> list[list[RunResults]]:
    """Group runs that differ only in their seed; every other run is a group of its own.

    Points of a sweep share experiment and scale, but are not seeds of one thing: the recipe must
    agree as well, and no seed may occur twice.
    """
    alike: dict[str, list[RunResults]] = {}
    for run in runs:
        alike.setdefault(repr((_name(run), run.recipe())), []).append(run)
    groups: list[list[RunResults]] = []
    for group in alike.values():
        seeds = {run.results["seed"] for run in group}
        groups += [group] if len(seeds) == len(group) else [[run] for run in group]
    return groups


def _name(run: RunResults) -> tuple[str, str]:
    return run.results["experiment"], run.results["scale"]


def all_grids(groups: Sequence[list[RunResults]]) -> Iterator[Grid]:
    """Tables of all groups, then the published rows that they are."""
    names = [_name(group[0]) for group in groups]
    versions = version_notes(run for group in groups for run in group)
    for group, name in zip(groups, names, strict=True):
        scores = score_grid(group, group[0].path if len(group) == 1 else None)
        scores.notes.extend(versions)
        if len(group) > 1:
            yield scores
            continue
        results = group[0].results
        if "origin" in results:
            yield scores
            continue
        if names.count(name) > 1:
            scores.notes.append(
                f"Not averaged with the other runs of {name[0]}: their recipe, version or seeds do "
                "not fit."
            )
        yield from (scores, stages_grid(results), cost_grid(results))
    yield from map(rows_grid, labelled([g for g in groups if "origin" not in g[0].results]))


def score_grid(runs: Sequence[RunResults], path: Path | None = None) -> Grid:
    """Scores of one run, or mean scores of several seeds.

    Args:
        runs: Runs that differ in their seed.
        path: The run, where the title is to name it.
    """
    every, rows = [run.results for run in runs], score_rows(runs)
    seeds = ", ".join(str(results["seed"]) for results in every)
    several = f"{len(runs)} seeds ({seeds})" if len(runs) > 1 else f"seed {seeds}"
    head = _scaled(every[0]) + ("" if "origin" in every[0] else f", {several}")
    title = head + (f" ({path})" if path else "")
    # Baselines that cost a pass, or that not every metric has, stand where they were measured.
    shown = ["value", "blind", "margin"]
    shown += [name for name in LEGENDS if name not in shown and any(_of(r, name) for r in rows)]
    lines = [
        [row.benchmark, row.score, Figure(str(row.n), row.n), *_cells(row, shown, len(runs))]
        for row in rows
    ]
    middle = "" if len(runs) == 1 else "mean "
    said = [f"In %, {middle}with {legend([runs])}", *(LEGENDS[name] for name in shown[1:])]
    notes = [
        f"Seed {results['seed']}: {note}" if len(runs) > 1 else note
        for results in every
        for note in run_notes(results)
    ]
    notes += every[0].get("notes", [])
    about = _about("scores", every, interval=over(runs))
    headers = ["benchmark", "score", "questions", *shown]
    return Grid(title, headers, lines, " ".join(said), [*notes, *judge_notes(runs[0])], 2, about)


def _of(row: ScoreRow, name: str) -> Estimate | None:
    """A column of a row of scores."""
    return getattr(row, name.replace(" ", "_"))


def _cells(row: ScoreRow, names: Sequence[str], runs: int) -> list[str | Figure]:
    """Columns of a row of scores as cells; an answer that no run gave has no interval."""
    cell = partial(interval_figure if runs == 1 else half_figure, unit=row.unit)
    return [(plain_figure if name == "most frequent" else cell)(_of(row, name)) for name in names]


def _about(kind: str, runs: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What a table is about: its kind, the experiment, scale and seeds."""
    seeds = [results["seed"] for results in runs]
    known = {"table": kind, "experiment": runs[0]["experiment"], "scale": runs[0]["scale"]}
    return {**known, "seeds": seeds, **more}


def run_notes(results: dict[str, Any]) -> list[str]:
    """Notes on what is unusual: stages that ended early; answers limited, empty, without blind."""
    notes = [
        f"Stage {each['name']} ended at step {each['steps']:,} of {each['of_steps']:,}, by "
        "trainer.max_time or a callback."
        for each in results.get("stages", ())
        if each.get("of_steps")
    ]
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


def _scaled(results: dict[str, Any]) -> str:
    if origin := results.get("origin"):
        return f"{results['experiment']}, by {origin}"
    return f"{results['experiment']}, {results['scale'] or 'own'} scale"


def stages_grid(results: dict[str, Any]) -> Grid:
    """Steps, samples, tokens, time and loss of each stage of a run."""
    rows = [
        [
            *(stage["name"], "yes" if stage.get("reused") else "no"),
            *(counted(stage.get(key)) for key in ("steps", "samples", "tokens", "seconds")),
            losses(stage.get("loss_first"), stage.get("loss_last")),
        ]
        for stage in results["stages"]
    ]
    headers = ["stage", "reused", "steps", "samples", "tokens", "seconds", "loss, first → last"]
    return Grid("Stages", headers, rows, names=2, about=_about("stages", [results]))


def cost_grid(results: dict[str, Any]) -> Grid:
    """Parameters, tokens, FLOPs, time and memory of a run."""
    rows = [[name, counted(results["cost"].get(key))] for name, key in COST.items()]
    return Grid("Cost", ["cost", "value"], rows, about=_about("cost", [results]))


def write_csv(groups: Sequence[list[RunResults]]) -> None:
    """Print all scores as comma-separated values, then published ones; empty where not known."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    heads = [f"{name}{end}" for name in NUMBERS for end in ("", "_low", "_high")]
    head = ["experiment", "scale", "seeds", "benchmark", "score", "questions", "interval"]
    writer.writerow([*head, *heads, "unit", "table", "row"])
    for group in groups:
        first = group[0].results
        seeds = " ".join(str(run.results["seed"]) for run in group)
        kind = over(group)
        for row in score_rows(group):
            kinds = (first["experiment"], first.get("origin", first["scale"]))
            names = [*kinds, seeds, row.benchmark, row.score, row.n]
            unit = "fraction" if row.unit == 1 else "as stated"
            writer.writerow([*names, kind, *numbers(row), unit, "", ""])
    empty = [""] * len(heads[1:])
    for run in labelled(groups):
        for found, row in rows_of(run):
            for column in (each for each in found.columns if each.name in row.values):
                known = [run[0], "published", "", column.name, "", "", "", row.values[column.name]]
                writer.writerow([*known, *empty, column.unit, found.id, row.name])


def numbers(row: ScoreRow) -> list[float | None]:
    """Value, low and high of each of NUMBERS."""
    found: list[float | None] = []
    for estimate in (_of(row, name) for name in NUMBERS):
        found += ends(estimate, row.unit).values() if estimate else [None] * 3
    return found


def counted(number: float | None) -> Figure:
    """A number as a cell, shown as by `count`."""
    return Figure(count(number), number)


def count(number: float | None) -> str:
    """Format a number: thousands separated, one decimal if not whole, scientific if huge."""
    if number is None:
        return NONE
    if number >= 1e11:
        return f"{number:.3g}"
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"


def losses(first: float | None, last: float | None) -> Figure:
    """First and last loss of a stage as a cell, to three decimals."""
    shown = [NONE if each is None else f"{each:.3f}" for each in (first, last)]
    return Figure(" → ".join(shown), {"first": first, "last": last}, "→".join(shown))
