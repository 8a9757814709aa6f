"""12. Grid: headed columns of text -> rich, Markdown."""

from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        title: What stands above it.
        headers: One for each column.
        rows: Cells, as many in each row as there are headers.
        notes: What stands below it: how to read it, where it is from.
        names: How many columns, from the left, are names; the others are numbers, set right.
    """

    title: str
    headers: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    names: int = 1


def to_rich(grid: Grid) -> Table:
    """Draw a grid for the terminal."""
    caption = Text("\n".join(grid.notes)) if grid.notes else None
    table = Table(
        title=Text(grid.title, style="bold"),
        title_justify="left",
        caption=caption,
        caption_justify="left",
    )
    for index, header in enumerate(grid.headers):
        number = index >= grid.names
        # A number with its interval stays on one line; a long heading above plain numbers may not.
        whole = number and any(" " in row[index] for row in grid.rows)
        table.add_column(header, justify="right" if number else "left", no_wrap=whole)
    for row in grid.rows:
        # As Text, since rich reads "[name]" in a plain string as a style.
        table.add_row(*(Text(cell) for cell in row))
    return table


def to_markdown(grid: Grid) -> str:
    """Write a grid as a GitHub table below its title, above its notes."""
    sides = ["---" if index < grid.names else "--:" for index in range(len(grid.headers))]
    lines = [grid.headers, sides, *grid.rows]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    notes = ["", *(f"{note}  " for note in grid.notes[:-1]), *grid.notes[-1:]]
    return "\n".join([f"### {grid.title}", "", *body, *(notes if grid.notes else [])])
