"""12. Check: an experiment's data, before anything is spent -> what is wrong with it, as tables."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.modules.phrases import PhraseDataModule
from llava_lab.data.rows import BadRow, BadRows
from llava_lab.evaluate.benchmark import BenchmarkDataModule
from llava_lab.experiment.build import make_worlds
from llava_lab.experiment.experiment import Experiment
from llava_lab.report.check_rows import Looked, look_at, look_at_phrases, of_file
from llava_lab.report.grid import Figure, Grid, figure
from llava_lab.report.plan import unloaded

BINS = 12  # bars of a histogram, at the most
BAR = 40  # letters of its longest one
EXAMPLES = 3


class Checked(NamedTuple):
    """What a check has found.

    Attributes:
        grids: It as tables.
        refused: How many rows and files keep the experiment from being trained or asked.
    """

    grids: list[Grid]
    refused: int


def check(experiment: Experiment) -> Checked:
    """Look at all data of an experiment; the model is built without its weights.

    Args:
        experiment: The experiment.
    """
    make_worlds(experiment.options)
    with torch.device("meta"):
        model, stages, benchmarks, _ = unloaded(experiment).build()
    looked: list[Looked] = []
    for stage in stages.values():
        data: Any = stage.data
        if isinstance(data, ImageDataModule):
            data.check_views(model)
            looked += [look_at(data, model, source) for source in data.sources]
        elif isinstance(data, PhraseDataModule):
            looked.append(look_at_phrases(data))
    asked = list(bad_questions(benchmarks, model))
    grids = [sources_grid(looked), *bad_grids(looked, asked), *cut_grids(looked)]
    grids += [grid for each in looked if each.lengths for grid in histograms(each)]
    return Checked(grids, sum(each.refused for each in looked) + len(asked))


def bad_questions(benchmarks: BenchmarkDataModule, model: Any) -> Iterator[BadRow]:
    """Questions that cannot be read, asked or scored."""
    whole = True
    for benchmark in benchmarks.benchmarks:
        try:
            benchmark.check(benchmarks.views)
        except BadRows as problem:
            yield from problem.rows
            whole = False
        except (OSError, ValueError) as problem:
            yield of_file(Path(benchmark.path), problem)
            whole = False
    if whole:
        try:
            benchmarks.check(model)
        except (OSError, ValueError) as problem:
            yield BadRow("data", "", str(problem))


def sources_grid(looked: Sequence[Looked]) -> Grid:
    """One row a source: how much of it is good, and how long a pass takes."""
    headers = ["stage", "file", "rows", "bad", "cut", "repeated ids", "odd pictures"]
    headers += ["rows/s", "hours a pass"]
    rows: list[list[str | Figure]] = []
    notes = []
    for each in looked:
        odd = sum(map(len, each.modes.values()))
        rows.append([each.stage, str(each.source.path)])
        rows[-1] += map(figure, (each.total, len(each.bad), len(each.cut), len(each.repeated), odd))
        if each.seconds is None:
            rows[-1] += ["", ""]
        else:
            hours = each.seconds * len(each.lengths) / 3600
            rows[-1] += [figure(1 / max(each.seconds, 1e-9), ",.0f"), figure(hours, ".2f")]
        for name, count in list(each.repeated.items())[:EXAMPLES]:
            notes.append(f"{each.source.path}: {count} rows have the id {name}")
        for mode, paths in each.modes.items():
            notes.append(f"{each.source.path}: {len(paths)} pictures of mode {mode}: {paths[0]}")
    legend = "rows/s and hours: what one process loads; divide by num_workers"
    return Grid("check: sources", headers, rows, legend, notes, names=2)


def bad_grids(looked: Sequence[Looked], asked: Sequence[BadRow]) -> Iterator[Grid]:
    """Every bad row, and what becomes of it."""
    rows: list[list[str | Figure]] = []
    for each in looked:
        fate = "refused" if each.refused else "left out"
        rows.extend([each.stage, row.source, row.id, row.reason, fate] for row in each.bad)
    rows.extend(["benchmarks", row.source, row.id, row.reason, "refused"] for row in asked)
    if rows:
        legend = "mend what is refused, or set on_bad_row: skip of its source to leave it out"
        headers = ["stage", "row", "id", "reason", "it is"]
        yield Grid(f"check: {len(rows):,} bad rows", headers, rows, legend, names=5)


def cut_grids(looked: Sequence[Looked]) -> Iterator[Grid]:
    """Every row that is cut, and where."""
    rows: list[list[str | Figure]] = [
        [each.stage, row.source, row.id, row.reason] for each in looked for row in each.cut
    ]
    if rows:
        headers = ["stage", "row", "id", "what is lost"]
        yield Grid(f"check: {len(rows):,} rows are cut", headers, rows, names=4)


def histograms(looked: Looked) -> Iterator[Grid]:
    """Tokens, visual tokens and messages of a source's rows."""
    where = f"{looked.stage}, {looked.source.path}"
    for name in ("tokens", "visual", "messages"):
        values = [getattr(length, name) for length in looked.lengths]
        title = {"tokens": "tokens a row", "visual": "visual tokens a row"}.get(name, "messages")
        yield histogram(values, f"check: {title} ({where})")


def histogram(values: Sequence[int], title: str) -> Grid:
    """A histogram of whole numbers, a bar a row.

    Args:
        values: The numbers, one at least.
        title: What they are.
    """
    low, high = min(values), max(values)
    width = max(1, math.ceil((high - low + 1) / BINS))
    counts = [0] * ((high - low) // width + 1)
    for value in values:
        counts[(value - low) // width] += 1
    most = max(counts)
    rows: list[list[str | Figure]] = []
    for number, count in enumerate(counts):
        first = low + number * width
        last = min(high, first + width - 1)
        span = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        bar = "█" * math.ceil(count / most * BAR)
        rows.append([span, bar, figure(count)])
    ordered = sorted(values)
    middle, late = (ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.95))
    note = f"median {middle:,}, 95 % up to {late:,}, longest {high:,}, sum {sum(values):,}"
    return Grid(title, ["from to", "", "rows"], rows, notes=[note], names=2)
