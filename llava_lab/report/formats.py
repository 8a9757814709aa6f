"""12. Formats: grids -> terminal, Markdown, LaTeX, CSV, HTML, JSON."""

import csv
import html
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console

from llava_lab.report.grid import Figure, Grid

Format = Literal["rich", "md", "latex", "csv", "html", "json"]
FORMATS: tuple[Format, ...] = ("rich", "md", "latex", "csv", "html", "json")
PIPE_COLUMNS = 140  # a pipe or a file has no width of its own, and rich would take 80
LATEX_WORDS = 40  # letters of the longest text that stands in one line
LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "→": r"$\rightarrow$", "×": r"$\times$", "–": "--", "…": r"\ldots{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
}
STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --faint: #5c6670; --line: #d4d9de; --back: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --faint: #9aa4ae; --line: #3a4149; --back: #16191d }
}
body { color: var(--ink); background: var(--back); font: 15px/1.45 system-ui, sans-serif;
  margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
section { margin-bottom: 3rem }
h2 { font-size: 1.1rem; margin: 0 0 .6rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; border-top: 2px solid; border-bottom: 2px solid }
th, td { padding: .25rem .7rem; text-align: right; vertical-align: bottom }
td { font-variant-numeric: tabular-nums; white-space: nowrap }
.name { text-align: left; white-space: normal; min-width: 9rem }
thead th { border-bottom: 1px solid; font-weight: 600 }
tbody th { font-weight: 400 }
tbody tr + tr > * { border-top: 1px solid var(--line) }
p { color: var(--faint); font-size: .87rem; margin: .35rem 0 0; max-width: 60rem }
"""


def show(grids: Sequence[Grid], format: Format) -> None:
    """Print tables in a format, an empty line between two; CSV and JSON have figures as numbers."""
    if format == "rich":
        console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
        for grid in grids:
            console.print(grid)
        return
    convert = {"md": to_markdown, "latex": to_latex, "csv": to_csv}
    if format in convert:
        print("\n\n".join(convert[format](grid) for grid in grids))
    else:
        print({"json": to_json, "html": to_html}[format](grids))


def to_markdown(grid: Grid) -> str:
    """Convert a grid to a GitHub table with its title above and its notes below."""
    sides = ["---" if left else "--:" for left in _left(grid)]
    lines = [grid.headers, sides, *grid.texts]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    notes = ["", *(f"{note}  " for note in grid.below[:-1]), *grid.below[-1:]]
    return "\n".join([f"### {grid.title}", "", *body, *(notes if grid.below else [])])


def to_latex(grid: Grid) -> str:
    """Convert a grid to a LaTeX table with its notes below; it needs booktabs and graphicx.

    Long texts are broken, and a table that is wider than a line is made smaller.
    """
    columns = list(zip(*grid.texts, strict=True)) or [()] * len(grid.headers)
    wide = [max(map(len, column), default=0) > LATEX_WORDS for column in columns]
    sides = "".join(
        f"p{{{LATEX_WORDS // 2}em}}" if broken else "l" if left else "r"
        for left, broken in zip(_left(grid), wide, strict=True)
    )
    lines = [" & ".join(map(_latex, line)) + r" \\" for line in [grid.headers, *grid.texts]]
    head, *body = lines
    notes = [f"{_latex(note)}\\par" for note in grid.below]
    below = [
        r"\par\smallskip",
        r"\begin{minipage}{\linewidth}\footnotesize",
        *notes,
        r"\end{minipage}",
    ]
    return "\n".join(
        [
            *(r"\begin{table}", r"\centering", rf"\caption{{{_latex(grid.title)}}}"),
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            *(rf"\begin{{tabular}}{{{sides}}}", r"\toprule", head, r"\midrule", *body),
            *(r"\bottomrule", r"\end{tabular}}", *(below if notes else []), r"\end{table}"),
        ]
    )


def to_csv(grid: Grid) -> str:
    """Convert a grid to comma-separated values under one line of names; empty where unknown.

    A figure is its value. One that has several is as many columns: a score under "accuracy",
    "accuracy, low" and "accuracy, high"; a plain number beside it stands in the first.
    """
    heads, lines = [], [[] for _ in grid.rows]
    for column, head in enumerate(grid.headers):
        values = [_several(_value(row[column])) for row in grid.rows]
        keys = dict.fromkeys(key for each in values for key in each)
        for key in keys or ["value"]:
            heads.append(head if key == "value" else f"{head}, {key}")
            for line, value in zip(lines, values, strict=True):
                line.append(value.get(key))
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([heads, *lines])
    return written.getvalue().rstrip("\n")


def to_html(grids: Sequence[Grid]) -> str:
    """Convert grids to one HTML page that needs nothing from outside, light or dark."""
    sections = "\n".join(map(section, grids))
    title = html.escape(grids[0].title if grids else "Tables")
    head = f'<meta charset="utf-8"><title>{title}</title>'
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en">\n<head>{head}{view}\n<style>{STYLE}</style></head>\n'
        f"<body>\n<main>\n{sections}\n</main>\n</body>\n</html>"
    )


def section(grid: Grid, level: int = 2) -> str:
    """A grid as a section of an HTML page.

    Args:
        grid: The grid.
        level: Level of its heading.
    """
    left, title = _left(grid), html.escape(grid.title)

    def cells(line: Sequence[str], tags: Sequence[str]) -> str:
        marks = [' class="name"' if each else "" for each in left]
        return "".join(
            f"<{tag}{mark}>{html.escape(cell)}</{tag.split()[0]}>"
            for cell, tag, mark in zip(line, tags, marks, strict=True)
        )

    heads = ['th scope="col"'] * len(left)
    names = ['th scope="row"'] + ["td"] * (len(left) - 1)
    body = "\n".join(f"<tr>{cells(line, names)}</tr>" for line in grid.texts)
    table = (
        f'<div class="wide" role="region" aria-label="{title}" tabindex="0"><table>\n'
        f"<thead><tr>{cells(grid.headers, heads)}</tr></thead>\n"
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )
    notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in grid.below)
    shown = f"{table}\n" if grid.rows else ""
    return f"<section>\n<h{level}>{title}</h{level}>\n{shown}{notes}\n</section>"


def to_json(grids: Sequence[Grid]) -> str:
    """Convert grids to a JSON array with one object for each.

    A row is an object with the columns as keys; a figure is its value, as `Figure` has it.

    Raises:
        ValueError: If two columns of a grid have one name; names it.
    """
    return json.dumps(
        [_object(grid) for grid in grids], indent=2, ensure_ascii=False, allow_nan=False
    )


def _object(grid: Grid) -> dict[str, Any]:
    for head in grid.headers:
        if grid.headers.count(head) > 1:
            raise ValueError(
                f"{grid.title}: two columns are called {head!r}, and a JSON row has each name "
                "once; choose another --format"
            )
    lines = [map(_value, row) for row in grid.rows]
    rows = [dict(zip(grid.headers, line, strict=True)) for line in lines]
    about = {**grid.about, "title": grid.title, "columns": grid.headers}
    return {**about, "rows": rows, "notes": grid.notes}


def _value(cell: str | Figure) -> Any:
    return cell.value if isinstance(cell, Figure) else cell


def _several(value: Any) -> Mapping[str, Any]:
    """A value by the names of its numbers; none where it is not known."""
    if isinstance(value, Mapping):
        return value
    return {} if value is None else {"value": value}


def _left(grid: Grid) -> list[bool]:
    return [grid.left(column) for column in range(len(grid.headers))]


def _latex(text: str) -> str:
    """A text as LaTeX writes it."""
    return re.sub(".", lambda char: LATEX.get(char[0], char[0]), text)
