"""12. Grid: named columns of figures, drawn in a terminal's width."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

GAP = 2  # spaces between two columns on a terminal
FRAMED = 100  # columns of a terminal that has room for frames
CLOSE: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False}
CLOSE |= {"padding": (0, GAP - 1, 0, 0)}
WORDS = 24  # what is longer is a text, which may be broken into lines of as much


@dataclass(frozen=True)
class Figure:
    """A cell that holds a number.

    Attributes:
        text: How it is shown.
        value: What scripts get: a number, a mapping of numbers, or None where it is unknown.
        short: How it is shown where room is scarce; None where that is the same.
    """

    text: str
    value: Any
    short: str | None = None

    def __str__(self) -> str:
        return self.text


def figure(value: float, spec: str = ",") -> Figure:
    """A number as a cell, shown as its format says; by default with its thousands set apart."""
    return Figure(format(value, spec), value)


@dataclass(frozen=True)
class Grid:
    """A table. `console.print(grid)` draws it in the terminal's width.

    Attributes:
        title: What stands above it.
        headers: One for each column.
        rows: Cells, as many in each row as there are headers.
        legend: How to read the figures as they are shown.
        notes: What else stands below it: facts about the rows, where they are from.
        names: How many columns, from the left, are names; figures after them are set right.
        about: What the table is of, for scripts: its kind, the experiment, the seeds.
    """

    title: str
    headers: list[str]
    rows: Sequence[Sequence[str | Figure]]
    legend: str | None = None
    notes: list[str] = field(default_factory=list)
    names: int = 1
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def texts(self) -> list[list[str]]:
        """The cells as they are shown."""
        return [[str(cell) for cell in row] for row in self.rows]

    def left(self, column: int) -> bool:
        """Whether a column is set left: names, and texts such as formulas in place of figures."""
        cells = [row[column] for row in self.rows]
        return column < self.names or any(
            (isinstance(cell, str) and " " in cell) or cell_len(str(cell)) > WORDS for cell in cells
        )

    @property
    def below(self) -> list[str]:
        """Legend and notes, a paragraph each."""
        return [*([self.legend] if self.legend else []), *self.notes]

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> Iterator[RenderableType]:
        yield Text(self.title, style="bold")
        if self.rows:
            yield from _tables(self, options.max_width)
        if self.below:
            yield Text("\n".join(self.below), style="dim")
        yield ""


def _tables(grid: Grid, room: int) -> Iterator[RenderableType]:
    """Draw one table or, if the columns do not fit side by side, several."""
    cells = grid.texts
    blocks = _blocks(grid, cells, room)
    if len(blocks) > 1:
        cells = [[getattr(cell, "short", None) or str(cell) for cell in row] for row in grid.rows]
        blocks = _blocks(grid, cells, room)
    for number, columns in enumerate(blocks):
        if number:
            yield ""
        yield _table(grid, cells, columns, room)


def _blocks(grid: Grid, cells: list[list[str]], room: int) -> list[list[int]]:
    """Assign columns to tables: each has all names and as many figures as fit."""
    names = list(range(grid.names))
    left = room - sum(_width(grid, cells, column) + GAP for column in names)
    blocks: list[list[int]] = []
    free = 0
    for column in range(grid.names, len(grid.headers)):
        width = _width(grid, cells, column)
        if not blocks or width > free:
            blocks.append([*names])
            free = left
        blocks[-1].append(column)
        free -= width + GAP
    return blocks or [names]


def _width(grid: Grid, cells: list[list[str]], column: int, whole: bool = False) -> int:
    """Least width of a column: names and figures stay whole, headings and long texts may wrap.

    Args:
        grid: The grid.
        cells: Its cells as text.
        column: Which column.
        whole: Whether headings and long texts are whole, too.
    """
    head = grid.headers[column]
    heads = [head] if whole else head.split() or [""]
    widths = [cell_len(line[column]) for line in cells]
    if not whole and column >= grid.names:
        widths = [min(width, WORDS) for width in widths]
    return max([*map(cell_len, heads), *widths])


def _table(grid: Grid, cells: list[list[str]], columns: list[int], room: int) -> Table:
    """Draw some columns; spare room goes to those that would wrap."""
    widths = {column: _width(grid, cells, column) for column in columns}
    spare = room - sum(widths.values()) - GAP * (len(columns) - 1)
    while spare < 0:  # a name that is wider than the terminal
        widest = max(columns, key=widths.__getitem__)
        widths[widest], spare = widths[widest] - 1, spare + 1
    for column in columns:
        more = min(max(spare, 0), _width(grid, cells, column, whole=True) - widths[column])
        widths[column], spare = widths[column] + more, spare - more
    framed = room >= FRAMED and sum(widths.values()) + 3 * len(columns) + 1 <= room
    table = Table() if framed else Table(**CLOSE)
    for column in columns:
        table.add_column(
            Text(grid.headers[column]),
            justify="left" if grid.left(column) else "right",
            width=widths[column],
            overflow="fold",
        )
    for line in cells:
        # As Text, since rich reads "[name]" in a plain string as a style.
        table.add_row(*(Text(line[column]) for column in columns))
    return table
