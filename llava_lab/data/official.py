"""1. Official: files of benchmarks as they are published -> rows; pictures inside -> files."""

import base64
import binascii
import csv
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from llava_lab.core.atomic import whole
from llava_lab.core.strict_json import parse
from llava_lab.data.rows import FileRow, Refused, nearest, read_rows
from llava_lab.data.shard_names import check_whole

# What pandas, with which the released scripts read tables, takes for an empty cell.
EMPTY = frozenset({"", "nan", "NaN", "NA", "N/A", "n/a", "NULL", "null", "None", "<NA>", "#N/A"})


def files_of(path: str) -> list[Path]:
    """Files that a path names; `*` in it stands for any text, as in names of parquet files."""
    parts = Path(path).parts
    at = next((place for place, part in enumerate(parts) if "*" in part), None)
    if at is None:
        return [Path(path)] if Path(path).exists() else []
    return sorted(Path(*parts[:at]).glob("/".join(parts[at:])))


def read_official(path: str, under: str | None = None) -> Iterator[FileRow]:
    """Read the rows of a file in any published layout.

    A JSON list, JSON lines (also under the name .json), a JSON object with the rows under a key, or
    whose keys are the rows' ids (each becomes `key` of its row); tables with tabs (.tsv), commas
    (.csv) or .parquet; a text file, whose first line is `line`, as descriptions of Video-ChatGPT's
    videos are; or a folder of text files of two columns with a tab between, as MME's answers
    (columns `folder`, `stem`, `left`, `right`). Each row has `file`, too, the name of its file
    without ending, and `row`, its number there.

    Args:
        path: The file, or a pattern of several.
        under: Key of the rows in a JSON object; null where the object itself, or a list, has them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, of no known kind, or one of several is missing.
    """
    files = files_of(path)
    if not files:
        raise FileNotFoundError(f"{path}: no such file{nearest(Path(path))}")
    if "*" in path:
        check_whole(files)
    for file in files:
        for row in _rows(file, under):
            if not isinstance(row.value, dict):
                raise ValueError(f"{row.place}: a {type(row.value).__name__}, not an object")
            yield row._replace(value={"file": file.stem, "row": row.number, **row.value})


def _rows(file: Path, under: str | None) -> Iterator[FileRow]:
    if file.is_dir():
        yield from _folder(file)
    elif file.suffix == ".jsonl":
        yield from read_rows(file)
    elif file.suffix == ".json":
        yield from _json(file, under)
    elif file.suffix in (".tsv", ".csv"):
        yield from _table(file, "\t" if file.suffix == ".tsv" else ",")
    elif file.suffix == ".parquet":
        yield from _parquet(file)
    elif file.suffix == ".txt":
        first, _, _ = file.read_text(encoding="utf-8-sig").partition("\n")
        yield FileRow(str(file), 1, {"line": first.strip()})
    else:
        raise ValueError(f"{file}: read are .json, .jsonl, .tsv, .csv, .parquet, .txt, and folders")


def _json(file: Path, under: str | None) -> Iterator[FileRow]:
    text = file.read_text(encoding="utf-8-sig")
    first, _, more = text.strip().partition("\n")
    if under is None and first.startswith("{") and first.endswith("}") and more:
        for number, line in enumerate(text.split("\n"), 1):  # U+2028 stands inside of a text
            if line.strip():
                place = f"{file}, line {number}"
                yield FileRow(place, number, parse(line, place))
        return
    value = parse(text, str(file))
    if under is not None:
        if not isinstance(value, dict) or under not in value:
            known = ", ".join(value) if isinstance(value, dict) else "a list"
            raise ValueError(f"{file}: has no {under!r}, under which the rows are; it has {known}")
        value = value[under]
    if isinstance(value, dict):
        by_id = all(isinstance(each, dict) for each in value.values())
        value = [{"key": key, **each} for key, each in value.items()] if by_id else [value]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{file}: holds no rows")
    for number, each in enumerate(value, 1):
        yield FileRow(f"{file}, row {number}", number, each)


def _table(file: Path, delimiter: str) -> Iterator[FileRow]:
    csv.field_size_limit(1 << 30)  # pictures are in cells
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.DictReader(opened, delimiter=delimiter)
        for number, row in enumerate(reader, 1):
            place = f"{file}, row {number}"
            if None in row or None in row.values():
                raise ValueError(f"{place}: has not as many cells as the head has names")
            cells = {key: None if cell in EMPTY else cell for key, cell in row.items()}
            yield FileRow(place, number, cells)


def _parquet(file: Path) -> Iterator[FileRow]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"{file}: needs pyarrow: pip install pyarrow") from None
    try:
        number = 0
        with ParquetFile(file) as opened:
            for batch in opened.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    number += 1
                    yield FileRow(f"{file}, row {number}", number, row)
    except (ArrowException, OSError) as problem:
        raise ValueError(f"{file}: cannot be read as parquet: {problem}") from None


def _folder(folder: Path) -> Iterator[FileRow]:
    for file in sorted(folder.glob("*/**/*.txt")):
        top = file.relative_to(folder).parts[0]
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
            left, tab, right = line.strip().partition("\t")
            if tab:
                row = {"folder": top, "stem": file.stem, "left": left, "right": right}
                yield FileRow(f"{file}, line {number}", number, row)


def unpack(cell: Any, folder: Path) -> str:
    """Write a picture that a file has inside into a folder, once; returns its name there.

    Args:
        cell: Bytes, an object with `bytes`, or base64 text.
        folder: The folder; it is made if it is not there.

    Raises:
        Refused: If it is no picture.
    """
    content: Any = cell.get("bytes") if isinstance(cell, Mapping) else cell
    try:
        if isinstance(content, str):
            content = base64.b64decode(content, validate=True)
        with Image.open(io.BytesIO(content)) as picture:
            ending = (picture.format or "png").lower()
    except (binascii.Error, UnidentifiedImageError, TypeError, ValueError):
        raise Refused("its picture is neither bytes nor base64 text of a picture") from None
    name = f"{hashlib.sha256(content).hexdigest()[:24]}.{'jpg' if ending == 'jpeg' else ending}"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        with whole(folder / name) as draft:
            draft.write_bytes(content)
    return name
