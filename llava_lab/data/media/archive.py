"""3. Archive: a .zip or .tar file and a name in it -> that member's bytes, read in place.

Where each member stands is found once and kept in a table that all processes map into memory: the
558,128 pictures of LCS-558K are found again without reading the archive's own list in every worker.
"""

import itertools
import struct
import tarfile
import zipfile
import zlib
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from llava_lab.core.atomic import whole
from llava_lab.core.cache import alone, cache_folder, kept_if_possible, stamp
from llava_lab.core.records import json_sha256

ARCHIVES = (".zip", ".tar")
_RULE = 2  # another number where the same archive is listed or refused otherwise
_ENCRYPTED = 0x1
_LOCAL_HEADER = 30  # bytes before a zip member's name, which end with the lengths of name and extra
_NUMBERS = ("start", "length", "size", "packed", "check")


class _Member(NamedTuple):
    """Where a member stands: its bytes in the archive; its own size and checksum (-1 for none)."""

    name: str
    start: int
    length: int
    size: int
    packed: int
    check: int


class Archive:
    """Where the members of an archive stand, sorted by name.

    Args:
        path: The archive.
        stored: The table of its members: a file, which is mapped into memory, or its content.
    """

    def __init__(self, path: Path, stored: Path | pa.Table):
        self.path = path
        if isinstance(stored, Path):
            with pa.memory_map(str(stored)) as file:
                stored = pa.ipc.open_file(file).read_all()
        self.table = stored
        self.names = stored["name"].combine_chunks()

    def __contains__(self, name: str) -> bool:
        return self._place(name) is not None

    def members(self) -> list[str]:
        """Names of all members, in the order in which they stand in the archive."""
        return self.names.take(pa.array(np.argsort(self.table["start"].to_numpy()))).to_pylist()

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            FileNotFoundError: If there is none of that name.
            ValueError: If it is damaged.
        """
        place = self._place(name)
        if place is None:
            raise FileNotFoundError(f"{self.path / name}: not in that archive")
        start, length, size, packed, check = (self.table[key][place].as_py() for key in _NUMBERS)
        with self.path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
        if packed and len(content) == length:
            try:
                content = zlib.decompress(content, -zlib.MAX_WBITS)
            except zlib.error as problem:
                raise ValueError(f"{self.path / name}: damaged ({problem})") from None
        if len(content) != size or check not in (-1, zlib.crc32(content)):
            raise ValueError(f"{self.path / name}: damaged or cut short in its archive")
        return content

    def _place(self, name: str) -> int | None:
        place = bisect_left(range(len(self.names)), name, key=lambda at: self.names[at].as_py())
        there = place < len(self.names) and self.names[place].as_py() == name
        return place if there else None


def open_archive(path: Path) -> Archive:
    """Open an archive; where its members stand is found once.

    Raises:
        ValueError: If it is damaged, compressed as a whole, encrypted, or has a name twice.
    """
    return _open(path, stamp(path.stat()))


@lru_cache(maxsize=1024)
def _open(path: Path, state: str) -> Archive:
    name, key = (json_sha256(values)[:24] for values in ([str(path.absolute())], [state, _RULE]))
    stored = cache_folder("archives") / f"{name}-{key}.arrow"
    if (kept := _kept(path, stored)) is not None:
        return kept
    with alone(stored.with_name(f"{name}.lock"), f"{path}: members listed"):
        if (kept := _kept(path, stored)) is not None:
            return kept
        content = _listed(path)
        with kept_if_possible(stored.parent):
            with whole(stored) as draft, pa.ipc.new_file(str(draft), content.schema) as file:
                file.write_table(content)
            for old in stored.parent.glob(f"{name}-*.arrow"):
                if old != stored:
                    old.unlink(missing_ok=True)
    return Archive(path, content)


def _kept(path: Path, stored: Path) -> Archive | None:
    try:
        return Archive(path, stored)
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None


def _listed(path: Path) -> pa.Table:
    """Find the members of an archive."""
    try:
        found = sorted(_zipped(path) if path.suffix == ".zip" else _tarred(path))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, struct.error) as problem:
        packed = "; if it is compressed as a whole, gunzip it" if path.suffix == ".tar" else ""
        raise ValueError(f"{path}: damaged, or no {path.suffix} ({problem}){packed}") from None
    for one, other in itertools.pairwise(found):
        if one.name == other.name:
            raise ValueError(f"{path}: holds {one.name!r} twice; keep one of them")
    columns = list(zip(*found, strict=True)) or [()] * len(_Member._fields)
    types = {"name": pa.large_string(), **dict.fromkeys(_NUMBERS, pa.int64())}
    return pa.table({key: pa.array(columns[at], types[key]) for at, key in enumerate(types)})


def _tarred(path: Path) -> Iterator[_Member]:
    with tarfile.open(path, "r:") as archive:
        last = ""
        for member in archive:
            last = member.name
            if member.issparse() or member.islnk() or member.issym():
                raise ValueError(f"{path}: {member.name!r} is a link or has holes; write it whole")
            if member.isreg():
                name = member.name.removeprefix("./")
                yield _Member(name, member.offset_data, member.size, member.size, 0, -1)
        _check_end(path, archive.offset, last)


def _check_end(path: Path, end: int, last: str) -> None:
    """Refuse a .tar in which members may follow: tarfile stops at a damaged header in silence.

    Args:
        path: The archive.
        end: Where its last member ends: behind it are blocks of zeros alone.
        last: Name of that member.
    """
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(tarfile.BLOCKSIZE)
        whole = len(rest) == tarfile.BLOCKSIZE
        while whole and rest:
            whole, rest = not any(rest), file.read(1 << 20)
    if not whole:
        raise ValueError(
            f"{path}: damaged or cut short at byte {end} of {path.stat().st_size}, behind member "
            f"{last!r}; fetch it again, or unpack it if archives were put one behind another"
        )


def _zipped(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for info in archive.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & _ENCRYPTED:
                raise ValueError(f"{path}: {info.filename!r} is encrypted; write it without")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{path}: {info.filename!r} is neither stored nor deflated")
            file.seek(info.header_offset)
            lengths = struct.unpack("<HH", file.read(_LOCAL_HEADER)[-4:])
            start = info.header_offset + _LOCAL_HEADER + sum(lengths)
            name = info.filename.removeprefix("./")
            packed = int(info.compress_type == zipfile.ZIP_DEFLATED)
            yield _Member(name, start, info.compress_size, info.file_size, packed, info.CRC)
