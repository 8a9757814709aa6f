"""1. Rows: .json lists and .jsonl files -> rows with their place, all or a sample of them."""

import difflib
import gc
import math
import os
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from llava_lab.core import verdict_worlds
from llava_lab.core.strict_json import parse, parse_list

_SHOWN = 10
_SAMPLING = re.compile(r"(first|end|random):(\d+(?:\.\d+)?)(%?)")


class FileRow(NamedTuple):
    """One row of a file: its place ("mix.json, row 12"), its number from 1, and its JSON value."""

    place: str
    number: int
    value: Any


@dataclass(frozen=True)
class Unreadable:
    """What stands in place of a row's value where a line of a .jsonl file is no JSON.

    Attributes:
        reason: What is wrong with it.
    """

    reason: str


class Refused(Exception):
    """A row is not usable; the reader of the file turns this into a `BadRow`."""


@dataclass(frozen=True)
class BadRow:
    """One row that is not usable.

    Attributes:
        source: Its place: "mix.json, row 12", or "mix.jsonl, line 12".
        id: The row's own id, else its number.
        reason: What is wrong, and how to fix it.
    """

    source: str
    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source} (id {self.id}): {self.reason}"


class BadRows(ValueError):
    """A file has unusable rows; the message shows the first ten.

    Attributes:
        path: The file.
        rows: All of them, in file order.
        total: Number of rows that were checked.
    """

    def __init__(
        self,
        path: Path,
        rows: Sequence[BadRow],
        total: int,
        way_out: str = "",
        fault: str = "are not usable",
    ):
        super().__init__(path, rows, total, way_out, fault)
        self.path = path
        self.rows = list(rows)
        self.total = total
        self.way_out = way_out
        self.fault = fault

    def __str__(self) -> str:
        end = f"; {self.way_out}" if self.way_out else ""
        lines = [f"{self.path}: {len(self.rows)} of {self.total} rows {self.fault}{end}"]
        lines += [f"  {row}" for row in self.rows[:_SHOWN]]
        if len(self.rows) > _SHOWN:
            lines.append(f"  and {len(self.rows) - _SHOWN} more")
        return "\n".join(lines)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector inside of the block.

    Reading makes millions of objects that stay alive; searching them for cycles again and again
    takes more than half of the time for the 665,000 rows of LLaVA-1.5.
    """
    was_running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_running:
            gc.enable()


def read_rows(path: Path, each: bool = False) -> list[FileRow]:
    """Read a .json file (one list) or a .jsonl file (one object a line; blank lines are ignored).

    Args:
        path: The file; its ending decides how it is read.
        each: Whether a line that is no JSON becomes an `Unreadable` row, and not an error.
    """
    check_file(path)
    try:
        rows = _read_list(path) if path.suffix == ".json" else _read_lines(path, each)
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path}: not UTF-8 text ({problem.reason})") from None
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return rows


def check_file(path: Path) -> None:
    """Refuse what is no file of rows, and worlds that only verdicts read."""
    if path.suffix not in (".json", ".jsonl"):
        raise ValueError(f"{path}: name it .json (one list of rows) or .jsonl (one row a line)")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, not a file of rows")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file{nearest(path)}")
    verdict_worlds.check_file(path)


def place_of(path: Path, number: int) -> str:
    """Where a row stands: "mix.json, row 12", or "mix.jsonl, line 12"."""
    return f"{path}, {'line' if path.suffix == '.jsonl' else 'row'} {number}"


def nearest(path: Path) -> str:
    """End of a message about a missing path: the nearest name in its folder, if there is one."""
    if not path.parent.is_dir():
        return f"; its folder {path.parent} is missing too"
    near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def _read_list(path: Path) -> list[FileRow]:
    values = parse_list(path.read_text(encoding="utf-8-sig"), str(path))
    if not isinstance(values, list):
        raise ValueError(f"{path}: holds a JSON {type(values).__name__}, not a list of rows")
    return [FileRow(place_of(path, n), n, value) for n, value in enumerate(values, 1)]


def _read_lines(path: Path, each: bool) -> list[FileRow]:
    def value(line: str, place: str) -> Any:
        try:
            return parse(line, place)
        except ValueError as problem:
            if not each:
                raise
            return Unreadable(str(problem).removeprefix(place).lstrip(":, "))

    with path.open(encoding="utf-8-sig") as file:
        return [
            FileRow(place, number, value(line, place))
            for number, line in enumerate(file, 1)
            if line.strip()
            for place in [place_of(path, number)]
        ]


def parse_sampling(sampling: str) -> tuple[str, Fraction, bool]:
    """Split "random:10%" into its strategy, its number, and whether that is a percentage."""
    if sampling == "all":
        return "first", Fraction(100), True
    match = _SAMPLING.fullmatch(sampling)
    if match is None:
        forms = "all, first:N, end:N or random:N with N rows or N%"
        raise ValueError(f"sampling {sampling!r} is none of {forms}")
    number, percent = Fraction(match[2]), bool(match[3])
    if number <= 0 or (percent and number > 100) or (not percent and number.denominator > 1):
        raise ValueError(f"sampling {sampling!r}: N is a whole number from 1, or above 0% to 100%")
    return match[1], number, percent


def choose(rows: list[FileRow], sampling: str, seed: str, path: Path) -> list[FileRow]:
    """Take the rows that `sampling` asks for, in file order.

    A percentage is rounded up, as in LLaVA-NeXT's loader. That loader takes all rows if N is larger
    than the file; here this is an error.

    Args:
        rows: All rows of the file.
        sampling: "all", "first:N", "end:N" or "random:N"; N is a count or a percentage.
        seed: Decides what "random" takes.
        path: The file, for messages.
    """
    strategy, number, percent = parse_sampling(sampling)
    count = math.ceil(number * len(rows) / 100) if percent else int(number)
    if count > len(rows):
        raise ValueError(f"{path}: sampling {sampling!r} asks for {count} of {len(rows)} rows")
    if strategy == "first":
        return rows[:count]
    if strategy == "end":
        return rows[-count:]
    # Python promises the same random() from the same seed in every version, but not sample().
    rng = random.Random(seed)
    keys = [rng.random() for _ in rows]
    return [rows[i] for i in sorted(sorted(range(len(rows)), key=keys.__getitem__)[:count])]
