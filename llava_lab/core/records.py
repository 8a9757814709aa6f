"""Records: JSON objects with a checksum, whose fields are checked when they are read."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_lab.core.atomic import whole, write

CHECKSUM = "sha256"
NUMBER = (int, float)


def write_record(path: Path, record: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write a record with a checksum of its content; in one line where `indent` is None."""
    write(path, json.dumps({**record, CHECKSUM: _checksum(record)}, indent=indent) + "\n")


def read_record(
    path: Path, fields: Mapping[str, type | tuple[type, ...]], way_out: str
) -> dict[str, Any]:
    """Read a record, without its checksum.

    Args:
        path: The file.
        fields: Keys that must be there, with the types that their values may have.
        way_out: What to do about a damaged file.

    Raises:
        ValueError: If the file is no such record, or its checksum differs; names the file, what
            is wrong and the way out.
    """
    record = read_object(path, way_out)
    for key, kinds in fields.items():
        if key not in record:
            raise ValueError(f"{path}: damaged, has no {key!r}. {way_out}")
        value, known = record[key], kinds if isinstance(kinds, tuple) else (kinds,)
        if not isinstance(value, known) or (isinstance(value, bool) and bool not in known):
            names = " or ".join(kind.__name__ for kind in known)
            raise ValueError(
                f"{path}: damaged, {key!r} is {type(value).__name__}, not {names}. {way_out}"
            )
    written = record.pop(CHECKSUM, None)
    if written not in (None, _checksum(record)):
        raise ValueError(f"{path}: damaged, its checksum is of other contents. {way_out}")
    return record


def read_object(path: Path, way_out: str) -> dict[str, Any]:
    """Read a JSON object of any fields."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON ({error}). {way_out}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: damaged, holds {type(found).__name__}, no object. {way_out}")
    return found


def check_rows_name(path: Path) -> None:
    """Refuse a name under which rows would not be read again.

    Raises:
        ValueError: If it is neither .json nor .jsonl, or is a folder.
    """
    if path.suffix not in (".json", ".jsonl") or path.is_dir():
        raise ValueError(f"--out {path}: name a file .json or .jsonl, as rows are read")


def check_unwritten(path: Path) -> None:
    """Refuse an output that is there: it may be another shard's, or have cost money.

    Raises:
        FileExistsError: If it is.
    """
    if path.exists():
        raise FileExistsError(
            f"--out {path}: exists already. Give every shard and every folder its own, or move the "
            "file away to make it anew"
        )


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write a .json list, a row a line, or .jsonl; a million rows need not be in memory.

    Returns:
        How many rows there were.
    """
    number, is_list = 0, path.suffix == ".json"
    with whole(path) as draft, draft.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows, 1):
            before = ("[\n" if number == 1 else ",\n") if is_list else ""
            file.write(before + json.dumps(row, ensure_ascii=False) + "\n" * (not is_list))
        if is_list:
            file.write("\n]\n" if number else "[]\n")
    return number


def json_sha256(value: Any) -> str:
    """SHA-256 of a JSON value, as it is written in one line."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: Any) -> str:
    """A JSON value as one text, the same when it is read again: 12 comes before 5, as "12" does."""
    return json.dumps(json.loads(json.dumps(value)), sort_keys=True)


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(record).encode()).hexdigest()
