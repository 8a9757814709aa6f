"""12g. Plot: a sweep's finished points -> a picture of scores against tokens or other scores."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_lab.report.rows import Estimate
from llava_lab.report.sweep import Group, held_out, scores, tokens
from llava_lab.sweep import Sweep


def plot(
    sweep: Sweep, found: list[Group], out: Path, drawn: Sequence[str] = (), x: str | None = None
) -> None:
    """Draw scores against visual tokens, or by name where those hardly differ.

    Where a sweep has several axes, each value of the first has a panel of its own.

    Args:
        sweep: The sweep.
        found: Its finished combinations.
        out: The picture, .png or .pdf.
        drawn: Scores ("presence/hallucination") or held-out numbers of the last stage
            ("dpo/reward_accuracy"); else the accuracies of the first benchmark.
        x: A score or number to draw against.

    Raises:
        ValueError: If no point has such a score.
    """
    # Only here: the other tables start in half the time without it.
    from matplotlib.figure import Figure

    benchmark, scale = scores(found[0])[0].benchmark, found[0][1][0].results["scale"]
    values = [_numbers(group) for group in found]
    known = [name for name in values[0] if all(name in each for each in values)]
    for name in (*drawn, *([x] if x else [])):
        if name not in known:
            raise ValueError(f"{name!r} is not in all points of {sweep.name}: {', '.join(known)}")
    lines = list(drawn) or [name for name in known if name.startswith(f"{benchmark}/")]
    shown = [tokens(runs, benchmark) for _, runs in found]
    places = [each[x].value for each in values] if x else shown
    first = next(iter(sweep.axes))
    panels: dict[str, list[int]] = {}
    for number, (labels, _) in enumerate(found):
        name = f"{first}: {labels[first]}" if len(sweep.axes) > 1 else ""
        panels.setdefault(name, []).append(number)
    figure = Figure(figsize=(2 + 6 * len(panels), 5), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, chosen) in zip(all_axes, panels.items(), strict=True):
        named = [axis for axis in sweep.axes if not name or axis != first]
        points = [
            (places[i], ", ".join(found[i][0][axis] for axis in named), values[i]) for i in chosen
        ]
        _draw(axes, points, lines, x or "visual tokens before a question, mean")
        axes.set_title(name)
    all_axes[0].set_ylabel("%" if drawn else "accuracy, %")
    all_axes[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    what = "" if drawn else f": {benchmark}"
    figure.suptitle(f"sweep {sweep.name}{what}, {scale} scale")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)


def _numbers(group: Group) -> dict[str, Estimate]:
    """What can be drawn of a combination, by name."""
    found = {f"{row.benchmark}/{row.score}": row.value for row in scores(group)}
    return found | held_out(group[1])


def _apart(numbers: Sequence[float]) -> bool:
    """Whether those that differ do so by enough to be read as places of an axis."""
    places = sorted(set(numbers))
    room = 0.05 * (places[-1] - places[0])
    return len(places) > 1 and all(b - a > room for a, b in itertools.pairwise(places))


def _draw(
    axes: Any,
    points: list[tuple[float, str, dict[str, Estimate]]],
    lines: Sequence[str],
    x: str,
) -> None:
    """One panel: a line a score, a place a combination; those of equal places share one."""
    spread = _apart([place for place, _, _ in points])
    if spread:
        points = sorted(points, key=lambda point: point[0])
    else:
        points = [(number, name, values) for number, (_, name, values) in enumerate(points)]
    names: dict[float, list[str]] = {}
    for place, name, _ in points:
        names.setdefault(place, []).append(name)
    for line in lines:
        found = [values[line] for _, _, values in points]
        # At 0% and 100%, rounding may put an end of the interval a hair on the wrong side.
        low = [100 * max(0.0, value.value - value.low) for value in found]
        high = [100 * max(0.0, value.high - value.value) for value in found]
        axes.errorbar(
            [place for place, _, _ in points],
            [100 * value.value for value in found],
            yerr=[low, high],
            label=line,
            marker="o",
            capsize=3,
            linewidth=2.5 if line.endswith("/accuracy") else 1.2,
        )
    labels = [" = ".join(each) for each in names.values()]
    if spread:
        labels = [f"{label} ({place:.3g})" for label, place in zip(labels, names, strict=True)]
        axes.set_xlabel(f"{x} (in brackets)")
    axes.set_xticks(list(names), labels, rotation=20, ha="right")
    axes.grid(alpha=0.3)
