"""12. Paper table: a published table, with our runs in the rows that they are."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from llava_lab.report.directions import directions_grid
from llava_lab.report.estimate import Difference
from llava_lab.report.foreign import beside
from llava_lab.report.grid import Figure, Grid
from llava_lab.report.matching import row_of
from llava_lab.report.placed import Group, Ours, Placed, place, score_keys
from llava_lab.report.published import PAPER, Column, Published, Row, every
from llava_lab.report.rows import (
    NONE,
    ScoreRow,
    half_figure,
    legend,
    signed_figures,
    stars,
)
from llava_lab.report.stated import less_known

Less = tuple[str, str, str, str]  # scale, score of ours, column and row
NAMED = ("count", "thousands", "millions", "billions")  # units that a column's name says


def paper_grids(
    table: Published,
    groups: Sequence[Group] = (),
    chosen: Sequence[str] = (),
    against: str | None = None,
) -> list[Grid]:
    """A published table with our runs in their rows, and one of directions for each scale.

    Args:
        table: The table.
        groups: Labels and runs; those of a group differ in their seed alone.
        chosen: Scores of ours to show instead of the usual ones: "presence/hallucination".
        against: Name of the row whose differences to the others are compared, or None to compare
            every row that has runs with the one before.

    Raises:
        ValueError: If a score or a row is not there; names those that are.
    """
    others = [group for group in groups if "origin" in group[1][0].results]
    placed, notes = place(table, [group for group in groups if group not in others])
    foreign, more = beside(table, others)
    ours = {scale: score_keys(of.values(), chosen) for scale, of in placed.items()}
    grids = [_grid(table, placed, ours, foreign, [*more, *notes])]
    for scale, of in placed.items():
        if len(of) > 1:
            grids.append(directions_grid(table, scale, of, ours[scale], against))
        elif against is not None:
            raise ValueError(f"--against: only one row of {table.id} has runs at {scale} scale")
    return grids


def _grid(
    table: Published,
    placed: Placed,
    ours: dict[str, list[str]],
    foreign: Sequence[tuple[str, dict[str, ScoreRow]]],
    notes: list[str],
) -> Grid:
    settings = list(dict.fromkeys(key for row in table.rows for key in row.settings))
    headers = ["row", *settings, *(column.name for column in table.columns)]
    remarks: list[str] = []
    rows: list[list[str | Figure]] = []
    for row in table.rows:
        stands = row.stand_in if any(row.name in of for of in placed.values()) else None
        said = [each for each in (row.note, stands and f"Ours: {stands}.") if each]
        remarks += said
        mark = f" [{len(remarks)}]" if len(said) == 1 else ""
        mark = f" [{len(remarks) - 1}, {len(remarks)}]" if len(said) == 2 else mark
        line = [_text(row.settings.get(key)) for key in settings]
        line += [printed(row.values.get(column.name)) for column in table.columns]
        rows.append([Figure(row.name + mark, row.name), *line])
    less, judged = _less(table, placed, ours)
    figures = signed_figures(less)
    for scale, of in placed.items():
        for name, cells in _columns(table, scale, of, ours[scale], figures):
            headers.append(name)
            for line, row in zip(rows, table.rows, strict=True):
                line.append(cells.get(row.name, Figure(NONE, None)))
    for label, scores in foreign:
        cells = [_in_column(scores.get(column.name), column) for column in table.columns]
        rest = [Figure(NONE, None)] * (len(headers) - 1 - len(settings) - len(cells))
        rows.append([label, *[Figure(NONE, None)] * len(settings), *cells, *rest])
    below = [source(table), *table.notes]
    below += [f"[{number}] {remark}" for number, remark in enumerate(remarks, 1)]
    if any(str(cell) == NONE for line in rows for cell in line):
        below.append(f"{NONE}: not in the source" + (", or no run of ours." if placed else "."))
    said = [units(table.columns)]
    if placed:
        runs = [each.runs for of in placed.values() for each in of.values()]
        said.append(f"Ours in %, ± half of an interval; {legend(runs)}")
    said += [stars(less)] if less else []
    about: dict[str, Any] = {"table": "published", "id": table.id, "scale": "paper"}
    about |= {key: getattr(table, key) for key in ("kind", "source", "source_kind", "provenance")}
    about["units"] = {each.name: each.unit for each in table.columns}
    about["better"] = {each.name: each.better for each in table.columns}
    title, said = f"{table.id}: {table.title}", " ".join(filter(None, said))
    return Grid(title, headers, rows, said or None, [*below, *judged, *notes], about=about)


def _columns(
    table: Published, scale: str, of: dict[str, Ours], keys: list[str], less: dict[Less, Figure]
) -> Iterator[tuple[str, dict[str, Figure]]]:
    """Our columns of a scale: scores, differences to published ones where they are the same."""
    for key in keys:
        yield f"{scale}: {key}", {n: _score(each.scores.get(key)) for n, each in of.items()}
        for column in table.columns:
            here = {n: less[place] for n in of if (place := (scale, key, column.name, n)) in less}
            if here:
                yield f"{scale}: {key} less {column.name}", here
    yield f"{scale}: seeds", {n: Figure(str(len(o.runs)), len(o.runs)) for n, o in of.items()}


def _score(row: ScoreRow | None) -> Figure:
    return half_figure(row.value if row else None)


def _in_column(row: ScoreRow | None, column: Column) -> Figure:
    """A score of others in a published column: in its unit for scripts, too."""
    return half_figure(row.value if row else None, column.whole, column.whole)


def _less(
    table: Published, placed: Placed, ours: dict[str, list[str]]
) -> tuple[dict[Less, Difference], list[str]]:
    """Our scores less the published ones where they are the same, and notes on others."""
    of_row = {row.name: row.values for row in table.rows}
    less: dict[Less, Difference] = {}
    notes: dict[str, None] = {}
    for scale, of in placed.items():
        for key, column, (name, each) in product(ours[scale], table.columns, of.items()):
            there = column.name in of_row[name] and key in each.scores
            if not there or not each.measures(column, key):
                continue
            if reason := each.apart(column, key):
                notes[f"{key}: {reason}."] = None
            else:
                figure = of_row[name][column.name] / column.whole
                less[scale, key, column.name, name] = less_known(each.scores[key].value, figure)
    return less, list(notes)


def source(table: Published) -> str:
    """Where a table's numbers are from, and how they were come by."""
    known = f"{table.source_kind}, {table.provenance.replace('_', ' ')}"
    derived = f" Derived: {', '.join(table.derived)}." if table.derived else ""
    return f"Source: {table.source} ({known}).{derived}"


def units(columns: Sequence[Column]) -> str:
    """What columns are in, and which way is better, as a sentence for each kind."""
    kinds: dict[tuple[str, str | None], list[str]] = {}
    for column in columns:
        name = f'"{column.name}"' if "," in column.name else column.name
        if column.unit not in NAMED:
            kinds.setdefault((column.unit, column.better), []).append(name)
    words = {"higher": "; more is better", "lower": "; less is better", None: ""}
    said = []
    for (unit, better), names in kinds.items():
        of = "" if len(names) == len(columns) else f"{', '.join(names)}: "
        said.append(f"{of}{unit}{words[better]}.")
    return " ".join(said)


def printed(number: float | None) -> Figure:
    """A published number as a cell, as it is printed."""
    return Figure(NONE if number is None else str(number), number)


def _text(value: Any) -> str | Figure:
    if value is None:
        return Figure(NONE, None)
    return value if isinstance(value, str) else Figure(str(value), value)


def compute_grids(experiment: str) -> Iterator[Grid]:
    """What the published trainings of an experiment took, as far as tables of compute say."""
    for table in every():
        rows = tuple(row for row in table.rows if row.experiment == experiment)
        if table.kind == "training compute" and rows:
            yield from paper_grids(replace(table, rows=rows))


def list_grid(folder: Path = PAPER) -> Grid:
    """Ids and titles of all published tables."""
    tables = list(every(folder))
    rows = [
        [each.id, each.title, each.kind, Figure(f"{len(each.rows)}", len(each.rows))]
        for each in tables
    ]
    note = "`table --paper ID` prints one, `table --paper ID RUN` with runs in their rows."
    heads = ["id", "title", "kind", "rows"]
    about = {"table": "published tables"}
    return Grid(f"{len(tables)} published tables", heads, rows, None, [note], about=about)


def rows_of(group: Group) -> Iterator[tuple[Published, Row]]:
    """The rows of all published results that runs of one configuration are."""
    config = group[1][0].config
    for table in every() if config else ():
        if config and table.kind == "results" and (row := row_of(table, config)):
            yield table, row


def rows_grid(group: Group) -> Grid:
    """The rows of all published results that runs of one configuration are, with their numbers."""
    label, runs = group
    lines: list[list[str | Figure]] = []
    for table, row in rows_of(group):
        numbers = ", ".join(f"{name} {value}" for name, value in row.values.items())
        lines.append([table.id, row.name, Figure(numbers, dict(row.values))])
    note = "`table --paper ID RUN` prints a table with runs in their rows."
    if not lines:
        note = "No row of a published table is this configuration."
    if runs[0].config is None:
        note = "There is no config.yaml beside the results, by which to find rows."
    about = {"table": "published rows", "scale": "paper", "run": label}
    title = f"{label}: published rows of the same configuration"
    return Grid(title, ["table", "row", "published"], lines, None, [note], 2, about)
