"""12. Forest plot: effects of a finding -> an SVG, the same to the byte wherever it is drawn."""

from collections.abc import Sequence
from html import escape

from llava_lab.report.claim_text import Effect

WIDTH, LABELS, ROW, TOP, FOOT = 760, 400, 26, 14, 46
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1d2126 }
.axis, .zero { stroke: #5c6670 } .grid { stroke: #d4d9de } .bar { stroke: #4477aa; stroke-width: 2 }
.point { fill: #4477aa } .quiet .bar { stroke: #8a939c } .quiet .point { fill: #8a939c }
.margin { stroke: #ee6677; stroke-dasharray: 3 3 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9ec } .axis, .zero { stroke: #9aa4ae } .grid { stroke: #3a4149 }
}
"""


def forest_svg(title: str, effects: Sequence[Effect]) -> str:
    """Draw effects with their intervals, one below another, and what the rule asks of each.

    Args:
        title: What the picture shows, for those who cannot see it.
        effects: Effects that were measured.

    Raises:
        ValueError: If none was.
    """
    rows = [_row(each) for each in effects if each.difference is not None]
    if not rows:
        raise ValueError(f"{title}: there is nothing to draw")
    ends = [end for row in rows for end in (*row[1:4], -row[4], row[4])] + [0.0]
    step = _step(max(ends) - min(ends))
    low, high = step * (min(ends) // step), -step * (-max(ends) // step)
    height = TOP + ROW * len(rows) + FOOT

    def x(value: float) -> str:
        place = LABELS + 10 + (WIDTH - LABELS - 30) * (value - low) / (high - low)
        return f"{place:.1f}"

    foot = TOP + ROW * len(rows)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img" aria-label="{escape(title)}">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
    ]
    for number in range(round((high - low) / step) + 1):
        value = round(low + number * step, 6)
        kind = "zero" if value == 0 else "grid"
        lines.append(_line(kind, x(value), TOP, x(value), foot))
        lines.append(_text(x(value), foot + 17, "middle", f"{value:+g}" if value else "0"))
    for number, (label, value, first, last, margin, quiet) in enumerate(rows):
        y = TOP + ROW * number + ROW // 2
        lines.append(f'<g class="{"quiet" if quiet else "asked"}">')
        lines.append(_text(LABELS, y + 4, "end", label))
        for side in (-margin, margin) if margin else ():
            lines.append(_line("margin", x(side), y - 10, x(side), y + 10))
        lines.append(_line("bar", x(first), y, x(last), y))
        lines.append(f'<circle class="point" cx="{x(value)}" cy="{y}" r="4.5"/></g>')
    lines.append(_text(x((low + high) / 2), foot + 36, "middle", "difference in points"))
    return "\n".join([*lines, "</svg>", ""])


def _row(effect: Effect) -> tuple[str, float, float, float, float, bool]:
    """Label, value, ends and margin in points, and whether the rule asks nothing of it."""
    assert effect.difference is not None
    low, high = effect.difference.interval(effect.level)
    name = effect.score if effect.role == "effect" else f"{effect.score} ({effect.role})"
    numbers = (100 * effect.difference.value, 100 * low, 100 * high)
    return name, *numbers, effect.margin or 0.0, effect.role == "described"


def _step(width: float) -> float:
    """Distance of grid lines: 1, 2 or 5 times a power of ten, at most eight over the width."""
    for power in range(-3, 4):
        for digit in (1, 2, 5):
            if (step := digit * 10.0**power) * 8 >= width:
                return step
    return width


def _line(kind: str, x1: str, y1: int, x2: str, y2: int) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _text(x: str | int, y: int, anchor: str, text: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
