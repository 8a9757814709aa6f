"""The tables of docs/speed.md, from what the benchmarks have written.

    python tests/benchmarks/sft.py --json tests/benchmarks/measured/sft.json
    python tests/benchmarks/page.py                writes all tables of the page anew

A table stands between `<!-- NAME -->` and `<!-- end of NAME -->`, and is `measured/NAME.json`; one
named `NAME.KEY` is what stands there under another key than `rows`.
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "speed.md"
TABLE = re.compile(r"(<!-- (([\w-]+)(?:\.(\w+))?) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def table(measured: dict[str, Any], key: str = "rows") -> str:
    """A benchmark's numbers as Markdown, a row a way."""
    rows = measured[key]
    heads = list(next(iter(rows.values())))
    about = f"{measured['title']}; torch {measured['torch']}:"
    lines = [about, ""] if key == "rows" else []
    lines.append("| | " + " | ".join(heads) + " |")
    lines.append("| --- |" + " --: |" * len(heads))
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(_cell(row.get(head)) for head in heads) + " |")
    return "\n".join(lines) + "\n"


def _cell(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def written(page: str) -> str:
    """The page with every table as it was measured."""

    def replaced(found: re.Match[str]) -> str:
        measured = json.loads((HERE / "measured" / f"{found[3]}.json").read_text(encoding="utf-8"))
        return found[1] + table(measured, found[4] or "rows") + found[5]

    return TABLE.sub(replaced, page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
