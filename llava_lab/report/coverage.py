"""12. Coverage: captions of each noun phrase before and after a filter -> a table and a plot.

The plot is LLaVA's Figure 7 (arXiv:2304.08485): phrases by rank against their captions.
"""

from collections import Counter
from pathlib import Path

import numpy as np

from llava_lab.make_data.balance import Balanced
from llava_lab.report.grid import Figure, Grid, figure

BANDS = (1, 3, 10, 30, 100, 300, 1000)


def coverage_grid(found: Balanced, captions: int) -> Grid:
    """Phrases by how many captions had them, and what is left of each band.

    Args:
        found: What the filter kept.
        captions: How many there were before.
    """
    edges = sorted({1, found.least, *(edge for edge in BANDS if edge > found.least)})
    rows = [
        _band(found, low, high)
        for low, high in zip(edges, [*edges[1:], None], strict=True)
        if low < found.least or high is None or max(found.before.values()) >= low
    ]
    rows.append(_row("all", found.before, found))
    kept = len(found.chosen)
    notes = [f"{kept:,} of {captions:,} captions are kept, {kept / captions:.1%}."]
    skipped = sum(count < found.least for count in found.before.values())
    notes.append(f"{skipped:,} phrases of fewer than {found.least} captions chose none.")
    headers = ["captions with it", "phrases", "still there", "mean before", "mean after"]
    return Grid("Noun phrases before and after the filter", headers, rows, notes=notes)


def _band(found: Balanced, low: int, high: int | None) -> list[str | Figure]:
    inside = {p: n for p, n in found.before.items() if n >= low and (high is None or n < high)}
    name = f"{low:,} or more" if high is None else f"{low:,} to {high - 1:,}"
    return _row(name if high != low + 1 else f"{low:,}", Counter(inside), found)


def _row(name: str, before: Counter[str], found: Balanced) -> list[str | Figure]:
    after = [found.after[phrase] for phrase in before]
    number = max(len(before), 1)
    return [
        name,
        figure(len(before)),
        figure(sum(count > 0 for count in after)),
        figure(before.total() / number, ",.1f"),
        figure(sum(after) / number, ",.1f"),
    ]


def plot_coverage(found: Balanced, out: Path) -> None:
    """Draw the captions of phrases by rank, before and after.

    Args:
        found: What the filter kept.
        out: The picture, .png or .pdf.
    """
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(7, 4), layout="constrained")
    axes = picture.subplots()
    for label, counts in (("before", found.before), ("after", found.after)):
        ranked = np.sort(np.array([n for n in counts.values() if n]))[::-1]
        axes.plot(np.arange(1, len(ranked) + 1), ranked, label=f"{label}: {len(ranked):,} phrases")
    axes.set(yscale="log", xlabel="noun phrases, most frequent first", ylabel="captions with it")
    axes.legend()
    out.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(out, dpi=120)
