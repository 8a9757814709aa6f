"""12. Plot: a sweep's finished points -> a picture of scores against tokens or other scores."""

import itertools
from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

from llava_lab.experiment.sweep import Sweep
from llava_lab.report.estimate import Estimate
from llava_lab.report.runs import tokens
from llava_lab.report.sweep import PointRuns, differences, held_out, scores

Panels = tuple[str, Sequence[Mapping[str, Estimate]]]  # a label, and numbers of each combination


def plot(
    sweep: Sweep,
    found: list[PointRuns],
    out: Path,
    drawn: Sequence[str] = (),
    x: str | None = None,
    against: str | None = None,
) -> None:
    """Draw scores against visual tokens, or by name where those hardly differ.

    Where a sweep has several axes, each value of the first has a panel of its own.

    Args:
        sweep: The sweep.
        found: Its finished combinations.
        out: The picture, .png or .pdf.
        drawn: Scores ("presence/hallucination") or held-out numbers of the last stage
            ("dpo/reward_accuracy"); else the accuracies of the first benchmark.
        x: A score or number to draw against; else visual tokens.
        against: A combination; a second row shows the differences to it, paired by seed.

    Raises:
        ValueError: If no point has such a score, or no combination such a name.
    """
    # Only here: the other tables start in half the time without it.
    from matplotlib.figure import Figure

    benchmark, scale = scores(found[0])[0].benchmark, found[0][1][0].results["scale"]
    values = [_numbers(group) for group in found]
    lines = _lines(sweep, values, benchmark, drawn, x)
    wholes = {line: 1 if line in held_out(found[0][1]) else 100 for line in lines}
    percent = 1 not in wholes.values()
    places = _places(found, values, benchmark, x)
    rows: list[Panels] = [("accuracy, %" if not drawn else "%" if percent else "", values)]
    if against is not None:
        rows.append((f"points more than {against}", _more_than(sweep, found, against)))
    panels = _panels(sweep, found)
    size = (2 + 6 * len(panels), 1 + 4 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    every = figure.subplots(len(rows), len(panels), sharex="col", sharey="row", squeeze=False)
    for column, (name, chosen) in zip(every.T, panels.items(), strict=True):
        named = list(sweep.axes)[1:] if name else list(sweep.axes)
        names = {i: ", ".join(found[i][0][axis] for axis in named) for i in chosen}
        spread = _apart([(places[i], values[i]) for i in chosen])
        for axes, (_, numbers) in zip(column, rows, strict=True):
            _draw(axes, [(places[i], names[i], numbers[i]) for i in chosen], lines, wholes, spread)
            axes.set_title(name)
        if spread:
            column[-1].set_xlabel(f"{x or 'visual tokens before a question, mean'} (in brackets)")
    for axes, (label, _) in zip(every[:, 0], rows, strict=True):
        axes.set_ylabel(label)
    for axes in every[1:].flat:
        axes.axhline(0, color="black", linewidth=0.8)
    if percent and _shares([numbers[line] for numbers in values for line in lines]):
        every[0][0].set_ylim(-3, 103)
    every[0][-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    what = "" if drawn else f": {benchmark}"
    figure.suptitle(f"sweep {sweep.name}{what}, {scale} scale")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def _panels(sweep: Sweep, found: list[PointRuns]) -> dict[str, list[int]]:
    """Title of each panel, and which combinations it has: one for each value of the first axis."""
    first = next(iter(sweep.axes))
    panels: dict[str, list[int]] = {}
    for number, (labels, _) in enumerate(found):
        name = f"{first}: {labels[first]}" if len(sweep.axes) > 1 else ""
        panels.setdefault(name, []).append(number)
    return panels


def _lines(
    sweep: Sweep,
    values: list[dict[str, Estimate]],
    benchmark: str,
    drawn: Sequence[str],
    x: str | None,
) -> dict[str, str]:
    """Scores to draw: their full names, and how the legend calls them."""
    known = [name for name in values[0] if all(name in each for each in values)]
    for name in (*drawn, *([x] if x else [])):
        if name not in known:
            raise ValueError(f"{name!r} is not in all points of {sweep.name}: {', '.join(known)}")
    own = [name for name in known if name.startswith(f"{benchmark}/")]
    short = {name: name.removeprefix(f"{benchmark}/").removeprefix("accuracy/") for name in own}
    return {name: name for name in drawn} or short


def _places(
    found: list[PointRuns], values: list[dict[str, Estimate]], benchmark: str, x: str | None
) -> list[float]:
    """Where each combination is drawn; nan, beside which all are drawn by name, where unknown."""
    if x:
        return [numbers[x].value for numbers in values]
    known = [tokens(runs, benchmark) for _, runs in found]
    return [nan if place is None else place for place in known]


def _shares(drawn: Sequence[Estimate]) -> bool:
    """Whether scores and the ends of their intervals are shares, as far as rounding lets them."""
    ends = [end for each in drawn for end in (each.value, *each.interval())]
    return min(ends) >= -0.03 and max(ends) <= 1.03


def _more_than(
    sweep: Sweep, found: list[PointRuns], against: str
) -> Sequence[Mapping[str, Estimate]]:
    """Scores of each combination less those of `against`; empty for `against` itself."""
    more = {
        str(labels): {f"{benchmark}/{score}": each for (benchmark, score), each in values.items()}
        for labels, _, values in differences(sweep, found, against)
    }
    return [more.get(str(labels), {}) for labels, _ in found]


def _numbers(group: PointRuns) -> dict[str, Estimate]:
    """All numbers of a combination that can be drawn, by name."""
    found = {f"{row.benchmark}/{row.score}": row.value for row in scores(group)}
    return found | held_out(group[1])


def _apart(points: Sequence[tuple[float, dict[str, Estimate]]]) -> bool:
    """Whether points lie far enough apart on the axis; equal points may share a place."""
    there: dict[float, dict[str, Estimate]] = {}
    for place, values in points:
        if there.setdefault(place, values) != values:
            return False
    places = sorted(there)
    room = 0.05 * (places[-1] - places[0])
    return len(places) > 1 and all(b - a > room for a, b in itertools.pairwise(places))


def _draw(
    axes: Any,
    points: list[tuple[float, str, Mapping[str, Estimate]]],
    lines: dict[str, str],
    wholes: Mapping[str, float],
    spread: bool,
) -> None:
    """Draw one panel: one line for each score, one place for each combination.

    Args:
        axes: Where to draw.
        points: Place, name and numbers of each combination.
        lines: Names of the numbers to draw, and how the legend calls them.
        wholes: What is drawn for a 1 of each of them: 100 for per cent.
        spread: Whether the axis has places, and not names alone.
    """
    if spread:
        points = sorted(points, key=lambda point: point[0])
    else:
        points = [(number, name, values) for number, (_, name, values) in enumerate(points)]
    names: dict[float, list[str]] = {}
    for place, name, _ in points:
        names.setdefault(place, []).append(name)
    # Side by side, so that intervals do not hide each other.
    gaps = [b - a for a, b in itertools.pairwise(sorted(names))]
    step = 0.3 * min(gaps, default=0) / len(lines)
    for number, (line, name) in enumerate(lines.items()):
        whole = wholes[line]
        there = [(place, values[line]) for place, _, values in points if line in values]
        low = [_length(whole * (value.value - value.low)) for _, value in there]
        high = [_length(whole * (value.high - value.value)) for _, value in there]
        axes.errorbar(
            [place + step * (number - (len(lines) - 1) / 2) for place, _ in there],
            [whole * value.value for _, value in there],
            yerr=[low, high],
            label=name,
            marker="o",
            capsize=3,
            linewidth=2.5 if line.endswith("/accuracy") else 1.2,
        )
    labels = [" = ".join(each) for each in names.values()]
    if spread:
        labels = [f"{label} ({place:.3g})" for label, place in zip(labels, names, strict=True)]
    axes.set_xticks(list(names), labels, rotation=20, ha="right")
    axes.grid(alpha=0.3)


def _length(difference: float) -> float:
    """Length of a whisker; none where an interval has no end.

    At 0% and 100%, rounding may put an end of it a hair on the wrong side.
    """
    return max(0.0, difference) if isfinite(difference) else 0.0
