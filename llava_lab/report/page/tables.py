"""12. Tables: configurations -> tables of their scores and costs, and the published ones."""

from collections.abc import Iterator, Sequence

from llava_lab.report.estimate import Estimate
from llava_lab.report.grid import Figure, Grid, figure
from llava_lab.report.judges import judge_notes
from llava_lab.report.page.configurations import Configuration
from llava_lab.report.paper_table import paper_grids, rows_of
from llava_lab.report.rows import NONE, ScoreRow, half_figure, legend, plain_figure
from llava_lab.report.table import COST, counted, run_notes

INTERVAL = "In %, ± half of an interval; "
# What stands beside the scores, of the first of them.
BESIDE = {
    "margin": "Margin: the first score less the same beside wrong pictures, question by question.",
    "text only": "Text only: the first score without any picture.",
    "most frequent": "Most frequent: that of the most frequent answer of each type.",
}
MEMORY = "peak_memory_bytes"
PUBLISHED = 6  # published tables that a page repeats in full


def overview(found: Sequence[Configuration]) -> Grid:
    """Every configuration with the score of each benchmark that tables show, and what it took."""
    chosen = list(dict.fromkeys(score for each in found for score in _usual(each)))
    heads = ["configuration", "seeds", *chosen, "visual tokens", "training FLOPs", "seconds"]
    rows = []
    for each in found:
        tokens, flops = each.cost("visual_tokens_mean"), each.cost("train_flops")
        rows.append(
            [
                *(each.label, figure(len(each.runs))),
                *(_score(each.scores.get(score)) for score in chosen),
                Figure(NONE if tokens is None else f"{tokens:.1f}", tokens),
                Figure(NONE if flops is None else f"{flops:.3g}", flops),
                Figure(f"{each.seconds:,.0f}", each.seconds),
            ]
        )
    notes = [
        f"{each.label}: {note}"
        for each in found
        for run in each.runs
        for note in run_notes(run.results)
    ]
    notes += [note for each in found for note in judge_notes(each.runs[0])]
    said = INTERVAL + legend(each.runs for each in found)
    return Grid("Overview", heads, rows, said, list(dict.fromkeys(notes)))


def all_scores(found: Sequence[Configuration]) -> Iterator[Grid]:
    """A table for each benchmark: every score of every configuration, and its baselines."""
    for benchmark in dict.fromkeys(row.benchmark for each in found for row in each.scores.values()):
        every = [
            (each.label, {r.score: r for r in each.scores.values() if r.benchmark == benchmark})
            for each in found
        ]
        rows = [(label, scores, next(iter(scores.values()))) for label, scores in every if scores]
        names = list(dict.fromkeys(name for _, scores, _ in rows for name in scores))
        beside = [name for name in BESIDE if any(_beside(first, name) for *_, first in rows)]
        lines = [
            [
                label,
                *(_score(scores.get(name)) for name in names),
                *(_shown(first, name) for name in beside),
            ]
            for label, scores, first in rows
        ]
        said = [f"{INTERVAL}{legend(each.runs for each in found)}", *(BESIDE[n] for n in beside)]
        heads = [name.removeprefix("accuracy/") for name in names]
        yield Grid(benchmark, ["configuration", *heads, *beside], lines, " ".join(said))


def costs(found: Sequence[Configuration]) -> Grid:
    """What each configuration took."""
    names = {name: key for name, key in COST.items() if key != MEMORY}
    rows = [
        [
            each.label,
            *(counted(each.cost(key)) for key in names.values()),
            _gibibytes(each.cost(MEMORY)),
            _reused(each),
        ]
        for each in found
    ]
    notes = ["Stages that other runs had trained are reused, and their seconds are not spent here."]
    heads = ["configuration", *names, "peak memory, GiB", "stages reused"]
    return Grid("Means over seeds", heads, rows, None, notes)


def published_rows(found: Sequence[Configuration]) -> list[Grid]:
    """The published tables in which configurations have a row, those of most rows first."""
    tables = {}
    for each in found:
        for table, _ in rows_of(each.group):
            tables.setdefault(table.id, (table, []))[1].append(each.group)
    ranked = sorted(tables.values(), key=lambda pair: -len(pair[1]))
    grids = [grid for table, groups in ranked[:PUBLISHED] for grid in paper_grids(table, groups)]
    if left := [table.id for table, _ in ranked[PUBLISHED:]]:
        grids[-1].notes.append(f"Also in: {', '.join(left)} (`table --paper ID RUN`).")
    return grids


def _usual(configuration: Configuration) -> Iterator[str]:
    """The score of each benchmark that tables show: its accuracy, or else its first one."""
    found: dict[str, str] = {}
    for key, row in configuration.scores.items():
        if row.score == "accuracy" or row.benchmark not in found:
            found[row.benchmark] = key
    yield from found.values()


def _score(row: ScoreRow | None) -> Figure:
    return half_figure(row.value if row else None)


def _beside(row: ScoreRow | None, name: str) -> Estimate | None:
    return getattr(row, name.replace(" ", "_")) if row else None


def _shown(row: ScoreRow | None, name: str) -> Figure:
    cell = plain_figure if name == "most frequent" else half_figure  # which no run gave
    return cell(_beside(row, name))


def _reused(configuration: Configuration) -> Figure:
    stages = [stage for run in configuration.runs for stage in run.results["stages"]]
    reused = sum(bool(stage.get("reused")) for stage in stages)
    return Figure(f"{reused} of {len(stages)}", reused)


def _gibibytes(size: float | None) -> Figure:
    return Figure(NONE if size is None else f"{size / 2**30:.2f}", size)
