"""12. Write: runs, committed results and findings -> the sections of one page."""

import gzip
import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from llava_lab.core.atomic import write
from llava_lab.experiment.compose import write_value
from llava_lab.report.claim_text import (
    effects,
    effects_grid,
    history_grid,
    scores_grid,
    sentence,
)
from llava_lab.report.claims import Claims
from llava_lab.report.claims_grid import claims_grid
from llava_lab.report.finding import Finding
from llava_lab.report.formats import STYLE, section
from llava_lab.report.grid import Grid
from llava_lab.report.page.configurations import Configuration, committed, configurations
from llava_lab.report.page.curves import curves, ways
from llava_lab.report.page.plots import Plot, forest, losses, on_the_way, tradeoffs
from llava_lab.report.page.samples import samples
from llava_lab.report.page.tables import all_scores, costs, overview, published_rows
from llava_lab.report.page.templates import environment, text_of
from llava_lab.report.runs import RunResults
from llava_lab.report.trajectories import NAMES


@dataclass(frozen=True)
class Story:
    """A finding as the page tells it.

    Attributes:
        finding: The finding.
        word: Its verdict.
        said: What has to be known beside it.
        plot: Its effects, where there are some.
        grids: Its rule with what was measured, scores and history.
    """

    finding: Finding
    word: str
    said: str
    plot: Plot | None
    grids: list[Grid]


def write_page(
    runs: Sequence[RunResults], claims: Claims | None, path: Path, trusted: Sequence[str] = ()
) -> None:
    """Write one HTML page about runs and claims, which needs nothing from outside.

    Args:
        runs: Runs, each in its folder.
        claims: Findings with the runs under results/, or None.
        path: The page.
        trusted: Modules beside this package whose classes a run may name.

    Raises:
        ValueError: If there is nothing to show, or a file beside a run is damaged.
    """
    if not runs and (claims is None or not claims.findings):
        raise ValueError("there is nothing to report: no runs and no findings")
    write(path, page(runs, claims, trusted))


def page(
    runs: Sequence[RunResults], claims: Claims | None = None, trusted: Sequence[str] = ()
) -> str:
    """The page's text; arguments are those of `write_page`."""
    found = [*configurations(runs), *committed(claims.runs.values() if claims else ())]
    drawn = _plots(found)
    asked, notes = samples(found, trusted)
    stories = [_story(claims, id) for id in claims.findings] if claims else []
    published = published_rows(found)
    templates = environment()
    templates.filters |= {"grid": _grid, "data": _json}
    return templates.get_template("page/page.html").render(
        title=_title(found, stories),
        sections=_sections(stories, found, drawn, published, asked or notes),
        style=Markup(STYLE + text_of("page/page.css")),
        script=Markup(text_of("page/page.js")),
        plotly=Markup(_plotly() if drawn or any(story.plot for story in stories) else ""),
        findings=_all(claims) if claims and stories else None,
        stories=stories,
        tables=[overview(found), *all_scores(found)] if found else [],
        published=published,
        costs=[costs(found)] if found else [],
        plots=drawn,
        samples=asked,
        notes=notes,
        differences=_differences(found),
    )


def _plots(found: Sequence[Configuration]) -> list[Plot]:
    ways_ = [on_the_way(ways(found, at), NAMES[at]) for at in ("samples", "flops")]
    return [*tradeoffs(found), *filter(None, [*ways_, losses(curves(found))])]


def _all(claims: Claims) -> Grid:
    return replace(claims_grid(claims, list(claims.findings)), title="All together")


def _story(claims: Claims, id: str) -> Story:
    verdict = claims.verdicts[id]
    grids = [effects_grid(verdict), scores_grid(claims, id), history_grid(claims, id)]
    plot = forest(f"effects-{id}", f"{id}: effects", list(effects(verdict)))
    told = [grid for grid in grids if grid]
    return Story(claims.findings[id], verdict.said, sentence(claims, id), plot, told)


def _title(found: Sequence[Configuration], stories: Sequence[Story]) -> str:
    names = dict.fromkeys(each.runs[0].results["experiment"] for each in found)
    return "Findings" if stories else ", ".join(names)


def _sections(
    stories: Sequence[Story],
    found: Sequence[Configuration],
    drawn: Sequence[Plot],
    published: Sequence[Grid],
    asked: Sequence[Any],
) -> list[str]:
    """Headings of the page's sections."""
    there: dict[str, Sequence[Any]] = {"Findings": stories, "Scores": found, "Plots": drawn}
    there |= {"Samples": asked, "Differences": found[1:], "Costs": found, "Published": published}
    return [name for name, content in there.items() if content]


def _differences(found: Sequence[Configuration]) -> dict[str, Any]:
    """Options in which configurations differ, and the values of each."""
    known = [each for each in found if each.options]
    keys = {
        key: [_value(each, key) for each in known]
        for key in dict.fromkeys(key for each in known for key in each.options)
    }
    rows = {key: values for key, values in keys.items() if len(set(values)) > 1}
    return {"labels": [each.label for each in known], "rows": rows}


def _value(configuration: Configuration, key: str) -> str:
    return write_value(configuration.options[key]) if key in configuration.options else "–"


def _grid(grid: Grid) -> Markup:
    return Markup(section(grid, 3))


def _json(value: Any) -> Markup:
    """Data for a script element, which only `</` could end."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _plotly() -> str:
    """Plotly's script, a third as long as it comes; browsers unpack it when a plot is seen."""
    # Here, since plotly takes half a second, and a page without plots needs none of it.
    from plotly.offline import get_plotlyjs

    return b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
