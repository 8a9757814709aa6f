"""3. Columns: a .parquet file, a row and a column -> the bytes of the picture there.

A row group is what parquet reads at once: HF's writers make it of 100 rows with pictures. The last
ones that were read are kept, so that a pass in the file's order reads each once.
"""

import os
import threading
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow.parquet import FileMetaData, ParquetFile

from llava_lab.core.cache import stamp

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
BYTES = (
    *(pa.types.is_binary, pa.types.is_large_binary),
    *(pa.types.is_binary_view, pa.types.is_fixed_size_binary),
)
KEPT_BYTES = 256 << 20  # of row groups, in each process


class _Groups:
    """The row groups that this process read last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: OrderedDict[tuple[Path, str, int, str], pa.ChunkedArray] = OrderedDict()

    def get(self, path: Path, state: str, group: int, column: str) -> pa.ChunkedArray:
        """The pictures of a row group."""
        key = path, state, group, column
        with self.lock:
            if key not in self.kept:
                with ParquetFile(path, metadata=_metadata(path, state)) as file:
                    leaves = [leaf for leaf in _leaves(file.schema, column) if _is_content(leaf)]
                    table = file.read_row_group(group, columns=leaves, use_threads=False)
                self.kept[key] = table[column]
                while len(self.kept) > 1 and sum(a.nbytes for a in self.kept.values()) > KEPT_BYTES:
                    self.kept.popitem(last=False)
            self.kept.move_to_end(key)
            return self.kept[key]


_groups = _Groups()


def _start_anew() -> None:
    global _groups  # a fork may have copied a lock that another thread held
    _groups = _Groups()


os.register_at_fork(after_in_child=_start_anew)


def read_cell(path: Path, name: str) -> bytes:
    """The bytes of a picture.

    Args:
        path: The file.
        name: Number of the row, from 1, and name of the column: "17.image"; behind it the number of
            the picture, where the column holds lists: "17.images.2".

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is damaged.
    """
    state = stamp(path.stat())
    number, _, column = name.partition(".")
    try:
        starts, columns = _starts(path, state)
        item = None
        if column not in columns:
            column, _, item = column.rpartition(".")
        row = int(number) - 1
        group = int(np.searchsorted(starts, row, side="right")) - 1
        cell: Any = None
        if column in columns and 0 <= row < starts[-1]:
            cell = _groups.get(path, state, group, column)[row - int(starts[group])].as_py()
        if item is not None and cell is not None:
            cell = cell[int(item) - 1] if 0 < int(item) <= len(cell) else None
    except (pa.ArrowException, OSError) as problem:
        raise ValueError(f"{path}: cannot be read as parquet ({problem})") from None
    content = cell["bytes"] if isinstance(cell, dict) else cell
    if content is None:
        raise FileNotFoundError(f"{path}, row {number}: {column!r} holds no picture")
    return content


@lru_cache(maxsize=1024)
def _metadata(path: Path, state: str) -> FileMetaData:
    with ParquetFile(path) as file:
        return file.metadata


@lru_cache(maxsize=1024)
def _starts(path: Path, state: str) -> tuple[np.ndarray, frozenset[str]]:
    """Where each row group starts, and the names of the columns."""
    found = _metadata(path, state)
    counts = [found.row_group(group).num_rows for group in range(found.num_row_groups)]
    return np.cumsum([0, *counts]), frozenset(found.schema.to_arrow_schema().names)


def pictures(schema: pa.Schema) -> list[str]:
    """Columns that hold pictures: bytes, an object with `bytes`, or lists of either."""

    def holds(kind: pa.DataType) -> bool:
        if any(is_list(kind) for is_list in LISTS):
            return holds(kind.value_type)
        if pa.types.is_struct(kind):
            at = kind.get_field_index("bytes")
            return at >= 0 and holds(kind.field(at).type)
        return any(is_bytes(kind) for is_bytes in BYTES)

    return [field.name for field in schema if holds(field.type)]


def _leaves(schema: Any, column: str) -> list[str]:
    """Paths of what parquet stores of a column."""
    paths = (schema.column(at).path for at in range(len(schema)))
    return [path for path in paths if path.split(".")[0] == column]


def _is_content(leaf: str) -> bool:
    return leaf.rpartition(".")[2] != "path"


def without_content(file: ParquetFile) -> list[str]:
    """What to read of a file to know its rows, and which pictures they have, but not their bytes.

    A column of nothing but bytes is read whole.
    """
    leaves: list[str] = []
    held = pictures(file.schema_arrow)
    for column in file.schema_arrow.names:
        own = _leaves(file.schema, column)
        names = [leaf for leaf in own if not _is_content(leaf)]
        leaves += names if column in held and names else own
    return leaves
