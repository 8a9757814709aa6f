"""12. Directions: two rows that runs are -> whether their difference goes the published way."""

from collections.abc import Sequence
from itertools import pairwise

from llava_lab.report.estimate import Difference
from llava_lab.report.grid import Figure, Grid
from llava_lab.report.placed import Ours
from llava_lab.report.published import Column, Published, Row
from llava_lab.report.rows import NONE, compare, legend, signed_figures, starred, stars

Pair = tuple[Row, Row]
# Scores of ours of which less is better.
LOWER = ("chair_i", "chair_s", "hallucination", "unmatched", "unread", "untrue")
UNDIRECTED = ("yes_ratio",)
WAY = (
    "Differences of neighbouring rows, paired by seed and question. Same or opposite: ours has a "
    "star and goes the published way or the other, for better or worse; open: it has none."
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
    places = [(number, key) for number in range(len(pairs)) for key in keys]
    found = {place: _more(pairs[place[0]], of, place[1]) for place in places}
    more = {place: each for place, (each, _) in found.items()}
    figures = signed_figures(more)
    lines: list[list[str | Figure]] = []
    for (number, key), (each, seeds) in found.items():
        shown, pair = figures[number, key], pairs[number]
        ways = [_way(column, pair, key, each, starred(shown)) for column in table.columns]
        name = f"{pair[0].name} → {pair[1].name}"
        lines.append([name, key, Figure(str(seeds), seeds), shown, *ways])
    headers = ["rows", "score", "seeds", "ours", *(column.name for column in table.columns)]
    title = f"{table.id}: does the {scale} scale go the published way?"
    about = {"table": "directions", "id": table.id, "scale": scale}
    way = WAY if against is None else WAY.replace("of neighbouring rows", f"to {against}")
    said = f"{way} {stars(more)}"
    every = [of[row.name].runs for row in rows]
    return Grid(title, headers, lines, f"{said} {legend(every)}", names=2, about=about)


def _more(pair: Pair, of: dict[str, Ours], key: str) -> tuple[Difference | None, int]:
    """Mean difference of a score between the runs of two rows, and the seeds that they share."""
    first, second = pair
    before = {each.results["seed"]: each for each in of[first.name].runs}
    name = (key.partition("/")[0], key.partition("/")[2])
    both = [
        (ours, before[ours.results["seed"]])
        for ours in of[second.name].runs
        if ours.results["seed"] in before
    ]
    known = [(a, b) for a, b in both if name in a.scores and name in b.scores]
    return (compare(known, name) if known else None), len(known)


def _way(column: Column, pair: Pair, key: str, more: Difference | None, sure: bool) -> Figure:
    """The published difference of two rows, and whether ours goes the same way."""
    first, second = pair
    if not {column.name} <= first.values.keys() & second.values.keys():
        return Figure(NONE, None)
    change = round(second.values[column.name] - first.values[column.name], 6)
    word = None
    score = key.partition("/")[2].partition("/")[0]
    if more is not None and change and column.better and score not in UNDIRECTED:
        better = (change > 0) == (column.better == "higher")
        ours = (more.value > 0) == (score not in LOWER)
        word = "open" if not sure else "same" if better == ours else "opposite"
    text = f"{change:+g}" + (f", {word}" if word else "")
    return Figure(text, {"difference": change, "direction": word})
