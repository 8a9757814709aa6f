"""1. Source: a file of rows and its options -> the parsed rows, and the bad ones."""

import re
import reprlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from llava_lab.core.numbers import at_least
from llava_lab.data.image_folder import ImageFolder, open_folder
from llava_lab.data.rows import (
    BadRow,
    BadRows,
    FileRow,
    Refused,
    Unreadable,
    check_file,
    choose,
    collector_paused,
    parse_sampling,
    read_rows,
)
from llava_lab.data.shards import is_shards, read_shards, shards_of, with_one_path_each

_Parsed = TypeVar("_Parsed")


@dataclass(frozen=True)
class Source:
    """A LLaVA-format file of conversations and the folder of its images.

    Args:
        path: File of rows: .json with one list, .jsonl with one row a line, or .parquet or .tar
            with the pictures inside; or a folder of such .parquet or .tar files.
        images: Folder that the rows' image paths start from and stay inside of, or a .zip or .tar
            of it, which is read in place; none if every row is text or has its pictures inside.
        sampling: Which rows to take, before they are validated: "all", "first:N", "end:N" or
            "random:N". N is a count or a percentage such as "10%", rounded up.
        on_bad_row: "error" refuses the file and lists its bad rows; "skip" leaves them out and
            warns once with their number. Bad are rows whose fields are wrong, lines of .jsonl
            that are no JSON, and rows whose images cannot be read, whose text holds a marker of
            the template, or that are too long to train on.
        template: Chat template of these rows; null takes the stage's.
        name: Name of the source: letters, digits, - and _. Logs and results.json show the held-out
            loss of each source that has one, and overrides find it by its name:
            `stages.instruct.data.sources.NAME.weight=0`.
        weight: How often its rows are read in an epoch: 2.5 is each row twice and half of them
            once more, 0.5 half of them; epochs go on where the one before has stopped, so that all
            have their turn. 0 trains on none; its held-out rows stay held out and measured, so
            that stages with and without it have the same.
    """

    path: Path
    images: Path | None = None
    sampling: str = "all"
    on_bad_row: Literal["error", "skip"] = "error"
    template: str | None = None
    name: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"(?!\d+$)[\w-]+", self.name):
            raise ValueError(
                f"{self.path}: name {self.name!r}: it is of letters, digits, - and _, and no number"
            )
        at_least(0, f"{self.path}: ", weight=self.weight)
        try:
            parse_sampling(self.sampling)
        except ValueError as problem:
            raise ValueError(f"{self.path}: {problem}") from None

    def media(self) -> Path | None:
        """Folder that the paths of the rows' images and videos start from; None if there is none.

        Of rows with their pictures inside it is that of the shards.
        """
        path = Path(self.path)
        if self.images is None and is_shards(path):
            return (path if path.is_dir() else path.parent).absolute()
        return None if self.images is None else Path(self.images).absolute()

    def files(self) -> list[Path]:
        """The file of rows, or the shards.

        Raises:
            OSError: If there is none.
            ValueError: If it is of no known kind.
        """
        path = Path(self.path)
        if is_shards(path):
            return shards_of(path)
        check_file(path)
        return [path]

    def rows(self) -> list[FileRow]:
        """All rows of the file, or of the shards."""
        path = Path(self.path)
        if is_shards(path):
            return read_shards(path, by_name=self.images is not None)
        return read_rows(path, each=True)


@dataclass(frozen=True)
class ParsedRows(Generic[_Parsed]):
    """Rows of a source: those that could be read, and those that could not.

    Attributes:
        source: The source.
        items: Parsed rows, in file order.
        bad: Rows that could not be read.
        total: Number of rows.
        fault: What the bad rows have in common, for messages.
        refused: The rows that could not be read, as the file has them.
    """

    source: Source
    items: Sequence[_Parsed]
    bad: list[BadRow]
    total: int
    fault: str = "are not usable"
    refused: Sequence[FileRow] = ()

    def settled(self) -> "ParsedRows[_Parsed]":
        """Return itself if `on_bad_row` lets bad rows be left out.

        Raises:
            BadRows: If there are any and `on_bad_row` is "error", or no other row.
        """
        path = Path(self.source.path)
        if self.bad and (self.source.on_bad_row == "error" or not self.items):
            way_out = "mend them, or set on_bad_row: skip to leave them out" if self.items else ""
            raise BadRows(path, self.bad, self.total, way_out, self.fault)
        return self

    def warn(self, stacklevel: int = 2) -> None:
        """Warn with the number of rows that are left out, and why the first is."""
        if self.bad:
            number = f"{len(self.bad)} of {self.total} rows are left out"
            warning = f"{self.source.path}: {number}; the first: {self.bad[0]}"
            warnings.warn(warning, stacklevel=stacklevel + 1)


def read_each(
    source: Source, seed: int, read: Callable[[FileRow, ImageFolder | None], _Parsed]
) -> list[_Parsed]:
    """Read each row of a source; rows that `read` refuses are treated as `on_bad_row` says."""
    found = read_source(source, seed, read)
    found.warn(stacklevel=3)  # of read_samples and its like
    return list(found.items)


@collector_paused()
def read_source(
    source: Source, seed: int, read: Callable[[FileRow, ImageFolder | None], _Parsed]
) -> ParsedRows[_Parsed]:
    """Read each row of a source, and keep what `read` refuses.

    Raises:
        BadRows: If a row is refused and `on_bad_row` is "error", or all are.
    """
    path = Path(source.path)
    root = source.media()
    folder = open_folder(root)
    rows = choose(source.rows(), source.sampling, f"{seed}/{path.name}", path)
    if root is not None and source.images is None:
        rows = with_one_path_each(rows, root)
    items, bad = parse_rows(rows, lambda row: read(row, folder))
    places = {each.source for each in bad}
    refused = [row for row in rows if row.place in places] if bad else []
    return ParsedRows(source, items, bad, len(rows), refused=refused).settled()


def parse_rows(
    rows: Iterable[FileRow], read: Callable[[FileRow], _Parsed]
) -> tuple[list[_Parsed], list[BadRow]]:
    """Read rows one by one.

    Returns:
        What `read` makes of each, and the rows that it refuses, both in order.
    """
    good: list[_Parsed] = []
    bad: list[BadRow] = []
    for row in rows:
        try:
            if isinstance(row.value, Unreadable):
                raise Refused(row.value.reason)
            if not isinstance(row.value, dict):
                raise Refused(f"a row must be an object, not {type(row.value).__name__}")
            good.append(read(row))
        except Refused as problem:
            value = row.value if isinstance(row.value, dict) else {}
            shown = value.get("question_id", value.get("id", row.number))
            shown = str(shown) if isinstance(shown, str | int) else reprlib.repr(shown)
            bad.append(BadRow(row.place, shown[:200], str(problem)))
    return good, bad
