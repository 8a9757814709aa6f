"""Puts what a campaign counted into docs/reliability.md, between the markers of its name."""

import datetime
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from llava_lab.core.checkout import git_commit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table of rows that share their keys, with a last row of sums.

    The first column names the rows; whole numbers of the others are summed.
    """
    if not rows:
        raise ValueError("a campaign that counted nothing has no table")
    names = list(rows[0])
    if odd := next((row for row in rows if list(row) != names), None):
        raise ValueError(f"a row has the columns {list(odd)}, the first one {names}")
    sums = {name: _sum([row[name] for row in rows]) for name in names[1:]}
    lines = [rows[0].keys(), ["---"] + ["---:"] * (len(names) - 1)]
    lines += [row.values() for row in rows]
    if len(rows) > 1:
        lines.append([f"**{value}**" if value != "" else "" for value in ("all", *sums.values())])
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _sum(values: Sequence[object]) -> object:
    numbers = [value for value in values if type(value) is int]
    return sum(numbers) if len(numbers) == len(values) else ""


def put(name: str, command: str, rows: Sequence[Mapping[str, object]], note: str = "") -> None:
    """Replace what stands between a campaign's markers by its newest table.

    Args:
        name: The campaign, as in `<!-- campaign NAME -->`.
        command: What a reader runs to count again.
        rows: Counts, one mapping of column to number for each kind of fault.
        note: A sentence below the table.

    Raises:
        ValueError: If the page has no such markers.
    """
    text = PAGE.read_text(encoding="utf-8")
    pattern = rf"(<!-- campaign {re.escape(name)} -->\n).*?(<!-- end {re.escape(name)} -->)"
    body = "\n\n".join(part for part in (f"`{command}`", table(rows), note, _where()) if part)
    changed, count = re.subn(
        pattern, lambda found: f"{found[1]}\n{body}\n\n{found[2]}", text, flags=re.DOTALL
    )
    if count != 1:
        raise ValueError(f"{PAGE}: {count} places for the campaign {name!r}, not one")
    PAGE.write_text(changed, encoding="utf-8")


def _where() -> str:
    """Date, commit and machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = git_commit() or "no commit"
    name = commit.rstrip("+")[:10] + (" with changes" if commit.endswith("+") else "")
    return (
        f"{datetime.date.today():%d %B %Y}, commit {name}, {os.cpu_count()} cores, "
        f"{memory:.0f} GB of memory, torch {torch.__version__}."
    )
