"""12. Docs: claims -> the tables, verdicts and plots of docs/, between markers.

    <!-- results: finding F3 -->
    what stands here is written by `report --docs`
    <!-- end of results -->

`finding F3` is one claim with its verdict, effects and history; `findings` a table of all;
`every finding` all of them, one below another; `published ID` a published table, with the runs
under results/ in the rows that they are.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from html import escape
from pathlib import Path

from llava_lab.core.atomic import write
from llava_lab.report.claim_text import (
    effects,
    effects_grid,
    history_grid,
    scores_grid,
    sentence,
)
from llava_lab.report.claims import Claims
from llava_lab.report.claims_grid import claims_grid
from llava_lab.report.forest_plot import forest_svg
from llava_lab.report.formats import to_markdown
from llava_lab.report.grid import Grid
from llava_lab.report.page.configurations import rows_in
from llava_lab.report.paper_table import paper_grids
from llava_lab.report.placed import Ours
from llava_lab.report.published import published

BEGIN, END = "<!-- results: ", "<!-- end of results -->"
BLOCK = re.compile(
    rf"(?P<mark>{BEGIN}(?P<what>[^\n]*?) -->\n)(?P<body>.*?)(?={END}|{BEGIN}|\Z)", re.S
)
PLOTS = "results"  # folder of the plots below docs/


def write_docs(docs: Path, claims: Claims) -> list[Path]:
    """Write every block and plot of docs/ anew; the files that have changed or are removed.

    Args:
        docs: The folder of pages.
        claims: All claims.

    Raises:
        ValueError: If a marker names nothing, or has no end; names the page and the marker. If a
            picture that was not drawn here has the name of a plot; names it.
    """
    changed = []
    for path, text in differing(docs, claims).items():
        if text is None:
            path.unlink()
        else:
            write(path, text)
        changed.append(path)
    return changed


def differing(docs: Path, claims: Claims) -> dict[Path, str | None]:
    """Pages and plots that are not what the results say, with what they should be.

    A plot that no page shows should not be there: None. Pictures that were not drawn here stay.

    Args:
        docs: The folder of pages.
        claims: All claims.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a marker names nothing, or has no end; names the page and the marker. If a
            picture that was not drawn here has the name of a plot; names it.
    """
    if not docs.is_dir():
        raise FileNotFoundError(f"{docs} does not exist; give the folder of pages: --docs FOLDER")
    plots = filter(_drawn_here, sorted((docs / PLOTS).glob("*.svg")))
    wanted: dict[Path, str | None] = dict.fromkeys(plots)
    for page in sorted(docs.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        wanted[page] = written(text, f"{page}", claims)
        for id in _shown(text, claims):
            measured = [each for each in effects(claims.verdicts[id]) if each.difference]
            if measured:
                plot = docs / PLOTS / f"{id}.svg"
                if plot.exists() and not _drawn_here(plot):
                    raise ValueError(
                        f"{plot}: not drawn by `report --docs`, which draws {id} there for {page}; "
                        "give it another name, or remove it"
                    )
                wanted[plot] = forest_svg(_title(id), measured)
    there = {path: path.read_text(encoding="utf-8") if path.is_file() else None for path in wanted}
    return {path: text for path, text in wanted.items() if text != there[path]}


def _title(id: str) -> str:
    """Title of a finding's plot, by which the plot is known as one that was drawn here."""
    return f"{id}: effects with their intervals"


def _drawn_here(plot: Path) -> bool:
    """Whether a file is a plot of the finding that it is called by."""
    return f"<title>{escape(_title(plot.stem))}</title>".encode() in plot.read_bytes()


def written(text: str, page: str, claims: Claims) -> str:
    """A page with every block as the results say.

    Args:
        text: The page.
        page: Its name, for messages.
        claims: All claims.

    Raises:
        ValueError: If a marker names nothing, or has no end.
    """

    def replaced(found: re.Match[str]) -> str:
        if not text.startswith(END, found.end()):
            raise ValueError(f"{page}: {found['mark'].strip()} has no {END} behind it")
        return f"{found['mark']}\n{_body(page, found['what'], claims)}\n\n"

    return BLOCK.sub(replaced, text)


def _body(page: str, what: str, claims: Claims) -> str:
    kind, _, name = what.partition(" ")
    if what == "findings":
        return _table(claims_grid(claims, list(claims.findings)))
    if what == "every finding":
        return "\n\n".join(f"## {id}\n\n{_finding(claims, id)}" for id in claims.findings)
    makers: Mapping[str, Callable[[str], str]] = {
        "finding": lambda id: _finding(claims, id),
        "published": lambda id: "\n\n".join(map(_table, _published(claims, id))),
    }
    if kind not in makers or (kind == "finding" and name not in claims.findings):
        known = ["findings", "every finding", *(f"finding {id}" for id in claims.findings)]
        raise ValueError(
            f"{page}: {BEGIN}{what} --> names nothing; there are {', '.join(known)}, published ID"
        )
    try:
        return makers[kind](name)
    except ValueError as error:
        raise ValueError(f"{page}: {BEGIN}{what} -->: {error}") from None


def _shown(text: str, claims: Claims) -> Iterator[str]:
    """Findings whose blocks stand on a page."""
    for found in BLOCK.finditer(text):
        if found["what"] == "every finding":
            yield from claims.findings
        elif found["what"].startswith("finding "):
            yield found["what"].removeprefix("finding ")


def _finding(claims: Claims, id: str) -> str:
    verdict, finding = claims.verdicts[id], claims.findings[id]
    claim = finding.claim.rstrip(".")
    parts = [f"**{id}. {claim}: {verdict.said}.** {sentence(claims, id)}"]
    source = [*(f"`table --paper {table}`" for table in finding.tables), finding.citation or ""]
    rule = f"`configs/findings/{finding.path.name}`"
    parts.append(f"Claimed in {', '.join(filter(None, source))}; the rule is {rule}.")
    parts += [_table(effects_grid(verdict))]
    if verdict.evidence is not None:
        parts.append(f"![{_title(id)}]({PLOTS}/{id}.svg)")
    parts += [_table(grid) for grid in (scores_grid(claims, id), history_grid(claims, id)) if grid]
    return "\n\n".join(parts)


def _published(claims: Claims, id: str) -> list[Grid]:
    """A published table with the runs that are rows of it: usual scores, and those of claims."""
    table = published(id)
    placed = rows_in(table, claims.runs.values())
    usual = [score for group in placed for score in Ours.of(group).usual]
    claimed = [each for each in claims.findings.values() if id in each.tables]
    moved = [move.score for each in claimed for move in each.must_move] if placed else []
    return paper_grids(table, placed, list(dict.fromkeys([*usual, *moved])))


def _table(grid: Grid) -> str:
    """A table without its title, which the page has said."""
    return to_markdown(grid).partition("\n\n")[2]
