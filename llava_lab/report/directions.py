"""12. Directions: two rows that runs are -> whether their difference goes the published way."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from llava_lab.report.grid import Figure, Grid
from llava_lab.report.placed import Ours
from llava_lab.report.published import Column, Published, Row
from llava_lab.report.rows import NONE, Estimate, mean_difference, signed_figure, values_of

LOWER = ("chair_i", "chair_s", "hallucination", "untrue")  # scores of ours of which less is better
UNDIRECTED = ("yes_ratio",)
WAY = (
    "Differences of neighbouring rows. Same or opposite: ours goes the published way or the other, "
    "for better or worse; open: our interval holds zero."
)


def directions_grid(
    table: Published, scale: str, of: dict[str, Ours], keys: Sequence[str], against: str | None
) -> Grid:
    """Differences between the rows that runs of a scale are, published and ours.

    Args:
        table: The published table.
        scale: The scale.
        of: Runs by row.
        keys: Scores of ours to compare.
        against: Name of the row that the others are compared with, or None for the one before.

    Raises:
        ValueError: If no run is in that row.
    """
    rows = [row for row in table.rows if row.name in of]
    pairs = list(pairwise(rows))
    if against is not None:
        base = next((row for row in rows if row.name == against), None)
        if base is None:
            known = ", ".join(repr(row.name) for row in rows)
            raise ValueError(f"--against: no run is in row {against!r} of {table.id}; {known} have")
        pairs = [(base, row) for row in rows if row is not base]
    lines = [line for pair in pairs for line in _pair_lines(table, pair, of, keys)]
    headers = ["rows", "score", "seeds", "ours", *(column.name for column in table.columns)]
    title = f"{table.id}: does the {scale} scale go the published way?"
    about = {"table": "directions", "id": table.id, "scale": scale}
    legend = WAY if against is None else WAY.replace("of neighbouring rows", f"to {against}")
    return Grid(title, headers, lines, legend, names=2, about=about)


def _pair_lines(
    table: Published, pair: tuple[Row, Row], of: dict[str, Ours], keys: Sequence[str]
) -> Iterator[list[str | Figure]]:
    first, second = pair
    before = {run.results["seed"]: values_of(run) for run in of[first.name].runs}
    both = [
        (values_of(run), before[run.results["seed"]])
        for run in of[second.name].runs
        if run.results["seed"] in before
    ]
    for key in keys:
        name = (key.partition("/")[0], key.partition("/")[2])
        known = [
            (ours[name], theirs[name])
            for ours, theirs in both
            if {name} <= ours.keys() & theirs.keys()
        ]
        more = mean_difference(known) if known else None
        cells = [_way(column, first, second, key, more) for column in table.columns]
        seeds = Figure(str(len(known)), len(known))
        yield [f"{first.name} → {second.name}", key, seeds, signed_figure(more), *cells]


def _way(column: Column, first: Row, second: Row, key: str, more: Estimate | None) -> Figure:
    """The published difference of two rows, and whether ours goes the same way."""
    if not {column.name} <= first.values.keys() & second.values.keys():
        return Figure(NONE, None)
    change = round(second.values[column.name] - first.values[column.name], 6)
    word = None
    score = key.partition("/")[2].partition("/")[0]
    if more is not None and change and column.better and score not in UNDIRECTED:
        better = (change > 0) == (column.better == "higher")
        ours = (more.value > 0) == (score not in LOWER)
        word = "open" if more.low <= 0 <= more.high else "same" if better == ours else "opposite"
    text = f"{change:+g}" + (f", {word}" if word else "")
    return Figure(text, {"difference": change, "direction": word})
