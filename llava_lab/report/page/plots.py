"""12. Plots: configurations and curves -> what plotly draws, as plain data."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from math import isfinite
from typing import Any

from llava_lab.report.claim_text import Effect
from llava_lab.report.estimate import Estimate
from llava_lab.report.page.configurations import Configuration
from llava_lab.report.page.curves import Curve, Way
from llava_lab.report.runs import tokens

NAMED = 14  # points that still have room for their names
# Paul Tol's bright colors, which the color-blind tell apart, on light and on dark.
COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#999999")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
Trace = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A plot, of which the reader chooses one of several views.

    Attributes:
        name: Its name in the page.
        title: What stands above it.
        views: Traces by the view's name.
        layout: Plotly's layout; colors and fonts are the page's.
        note: How to read it.
        choice: What the reader chooses.
        height: In pixels.
    """

    name: str
    title: str
    views: Mapping[str, list[Trace]]
    layout: Mapping[str, Any]
    note: str = ""
    choice: str = "score"
    height: int = 420


def tradeoffs(found: Sequence[Configuration]) -> list[Plot]:
    """Scores against visual tokens, training FLOPs and seconds."""
    sides = {
        "visual tokens of a question, mean": lambda each, score: tokens(
            each.runs, score.partition("/")[0]
        ),
        "training FLOPs": lambda each, _: each.cost("train_flops"),
        "seconds of training": lambda each, _: each.seconds,
    }
    scores = list(dict.fromkeys(score for each in found for score in each.scores))
    scores.sort(key=lambda score: "/" in score.partition("/")[2])  # whole benchmarks first
    plots = []
    for number, (name, value) in enumerate(sides.items()):
        views = {score: _points(found, score, value) for score in scores}
        views = {score: traces for score, traces in views.items() if traces}
        places = {x for traces in views.values() for trace in traces for x in trace["x"]}
        if len(places) < 2:  # such as connectors that all give as many tokens
            continue
        names = {trace["name"] for traces in views.values() for trace in traces}
        wide = bool(places) and min(places) > 0 and max(places) > 8 * min(places)
        axis = {"title": {"text": name}, "type": "log" if wide else "linear"}
        layout = {"xaxis": axis, "yaxis": {"title": {"text": "%"}}, "showlegend": len(names) > 1}
        note = "Whiskers: 95% intervals. Hover or tap a point for its name."
        plots.append(Plot(f"against{number}", f"Score against {name}", views, layout, note))
    return plots


def _points(found: Sequence[Configuration], score: str, value: Any) -> list[Trace]:
    """A trace for each configuration or, where those are many, for each experiment and scale."""
    few = len(found) <= NAMED
    traces: dict[str, list[tuple[float, Estimate, str]]] = {}
    for each in found:
        x = value(each, score)
        if score in each.scores and x is not None:
            name = each.label if few else each.family
            traces.setdefault(name, []).append((x, each.scores[score].value, each.label))
    return [
        {
            **{"type": "scatter", "mode": "markers", "name": name},
            "x": [_rounded(x) for x, _, _ in points],
            "y": [_percent(e.value) for _, e, _ in points],
            "text": [label for _, _, label in points],
            "hovertemplate": "%{text}<br>%{y:.1f} at %{x:.4s}<extra></extra>",
            "error_y": _whiskers([e for _, e, _ in points]),
            "marker": {"size": 9, "color": color, "symbol": symbol},
        }
        for (name, points), color, symbol in zip(
            traces.items(), cycle(COLORS), cycle(SYMBOLS), strict=False
        )
    ]


def losses(found: Sequence[Curve]) -> Plot | None:
    """Losses by step, a view for each stage."""
    views: dict[str, list[Trace]] = {}
    lines = zip(found, _lines([curve.label for curve in found]), strict=True)
    for curve, line in lines:
        shown = {"x": curve.steps, "y": curve.losses, "mode": "lines"}
        hover = "%{text}<br>step %{x}: %{y:.3f}<extra></extra>"
        views.setdefault(curve.stage, []).append({**line, **shown, "hovertemplate": hover})
    if not views:
        return None
    note = "A line a run that trained the stage; runs that share a stage share its line."
    layout = _layout("step", "loss", views)
    return Plot("losses", "Loss by step", views, layout, note, choice="stage")


def on_the_way(found: Sequence[Way], name: str) -> Plot | None:
    """Scores of runs while they were trained.

    Args:
        found: The scores.
        name: What the runs had spent: samples or FLOPs.
    """
    views: dict[str, list[Trace]] = {}
    for way, line in zip(found, _lines([way.label for way in found]), strict=True):
        values = [_percent(value) for value in way.values]
        shown = {"x": list(map(_rounded, way.spent)), "y": values, "mode": "lines+markers"}
        hover = "%{text}<br>%{y:.1f} at %{x:.4s}<extra></extra>"
        views.setdefault(way.score, []).append({**line, **shown, "hovertemplate": hover})
    if not views:
        return None
    note = "A line a run; all of its stages count, those that other runs had trained, too."
    layout = _layout(f"{name} of training", "%", views)
    return Plot(f"way-{name}", f"Score on the way, by {name}", views, layout, note)


def _lines(labels: Sequence[str]) -> Iterator[Trace]:
    """Traces in the color of their configuration, which the legend names once in a view."""
    colors: dict[str, str] = {}
    for label in labels:
        configuration = label.rpartition(", seed ")[0]
        color = colors.setdefault(configuration, COLORS[len(colors) % len(COLORS)])
        yield {
            **{"type": "scatter", "name": configuration, "text": label},
            **{"legendgroup": configuration, "line": {"width": 1.3, "color": color}},
        }


def _layout(x: str, y: str, views: Mapping[str, list[Trace]]) -> dict[str, Any]:
    """A layout with named axes, and a legend where it has room; a group stands there once."""
    names: set[str] = set()
    for traces in views.values():
        there: set[str] = set()
        for trace in traces:
            trace["showlegend"] = trace["name"] not in there
            there.add(trace["name"])
        names |= there
    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    return {**axes, "showlegend": len(names) <= NAMED}


def forest(name: str, title: str, found: Sequence[Effect]) -> Plot | None:
    """Effects with their intervals, one below another, and what the rule asks of each.

    Args:
        name: Name of the plot.
        title: What stands above it.
        found: Effects; those that were not measured are left out.
    """
    rows = [each for each in found if each.difference is not None]
    if not rows:
        return None
    places = list(range(len(rows), 0, -1))
    labels = [f"{each.score} ({each.role})" for each in rows]
    trace: Trace = {
        **{"type": "scatter", "mode": "markers", "y": places, "text": labels},
        **_differences(rows),
        "hovertemplate": "%{text}<br>%{x:+.1f} points<extra></extra>",
        "marker": {
            "size": 9,
            "symbol": "square",
            "color": [COLORS[-1 if each.role == "described" else 0] for each in rows],
        },
    }
    shapes: list[Trace] = [{"type": "line", "yref": "paper", "x0": 0, "x1": 0, "y0": 0, "y1": 1}]
    for place, each in zip(places, rows, strict=True):
        for end in (-each.margin, each.margin) if each.margin else ():
            at = {"x0": end, "x1": end, "y0": place - 0.4, "y1": place + 0.4}
            shapes.append({"type": "line", **at, "line": {"dash": "dot", "color": COLORS[1]}})
    axis = {"tickvals": places, "ticktext": labels, "range": [0.4, len(rows) + 0.6]}
    layout = {
        "xaxis": {"title": {"text": "difference in points"}, "zeroline": False},
        "yaxis": axis,
        **{"shapes": shapes, "showlegend": False},
    }
    note = (
        "Whiskers: intervals at the rule's levels. Dotted: the least that counts of an effect, the "
        "most of what must not move."
    )
    return Plot(name, title, {"": [trace]}, layout, note, height=110 + 34 * len(rows))


def _differences(rows: Sequence[Effect]) -> Trace:
    """Values and whiskers of effects that were measured, in points."""
    values, less, more = [], [], []
    for each in rows:
        assert each.difference is not None
        value, (low, high) = each.difference.value, each.difference.interval(each.level)
        values.append(_percent(value))
        less.append(_length(value - low))
        more.append(_length(high - value))
    known = {"type": "data", "symmetric": False, "thickness": 1.2, "width": 4, "color": COLORS[0]}
    return {"x": values, "error_x": {**known, "array": more, "arrayminus": less}}


def _whiskers(estimates: Sequence[Estimate]) -> dict[str, Any]:
    return {
        **{"type": "data", "symmetric": False, "thickness": 1.2, "width": 4},
        "array": [_length(e.high - e.value) for e in estimates],
        "arrayminus": [_length(e.value - e.low) for e in estimates],
    }


def _length(fraction: float) -> float:
    """Length of a whisker; none where an interval has no end."""
    return _percent(max(0.0, fraction)) if isfinite(fraction) else 0.0


def _percent(fraction: float) -> float:
    return round(100 * fraction, 3)


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
