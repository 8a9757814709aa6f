"""1. Table: samples in the columns of an Arrow file, which all processes of a machine share.

A million rows as Python objects take gigabytes in every process; a memory-mapped file takes pages
of memory that the ranks and the workers have together. A file of rows is parsed once, and its table
found again by the digest of the file's bytes and by all that decides how a row is read.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa

from llava_lab.core.atomic import whole
from llava_lab.core.cache import alone, cache_folder, kept_if_possible
from llava_lab.core.records import json_sha256
from llava_lab.core.version import __version__
from llava_lab.data.image_folder import VideoPath, open_folder
from llava_lab.data.media.clip import image_digest
from llava_lab.data.rows import FileRow, Refused, Unreadable, place_of
from llava_lab.data.sample import Sample, Turn, sample_reader
from llava_lab.data.source import ParsedRows, Source, parse_rows, read_source
from llava_lab.data.split import held_out, image_names, sample_name

BAD = b"bad rows"  # key of the schema's metadata
READER = 5  # another number where the same file is read as other rows, within one version


class Table:
    """Samples of one source, in columns.

    Args:
        stored: The Arrow file, which is mapped into memory; or its content.
        source: The source; places and paths of its rows are those that it has now.
        key: Hash of what decides the samples.
    """

    def __init__(self, stored: Path | pa.Table, source: Source, key: str):
        self.stored, self.source, self.key = stored, source, key
        if isinstance(stored, Path):
            with pa.memory_map(str(stored)) as file:
                content = pa.ipc.open_file(file).read_all()
        else:
            content = stored
        self.bad: list[list[Any]] = json.loads(content.schema.metadata[BAD])
        columns = {name: content[name].chunk(0) for name in content.column_names}
        self.ids, texts, images = columns["id"], columns["texts"], columns["images"]
        self.numbers = columns["number"].to_numpy()
        self.shards, self.shard = columns["shard"].dictionary.to_pylist(), columns["shard"].indices
        self.words = columns["words"].to_numpy()
        self.videos = columns["video"].to_numpy(zero_copy_only=False)
        self.texts, self.text_starts = texts.values, texts.offsets.to_numpy()
        self.names = images.values.dictionary
        self.images, self.image_starts = images.values.indices.to_numpy(), images.offsets.to_numpy()
        self.root = source.media()

    def __reduce__(self) -> tuple[Any, ...]:
        return Table, (self.stored, self.source, self.key)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> Sample:
        first, end = self.text_starts[row], self.text_starts[row + 1]
        texts = self.texts.slice(first, end - first).to_pylist()
        turns = [Turn("assistant" if at % 2 else "user", text) for at, text in enumerate(texts)]
        numbers = self.images[self.image_starts[row] : self.image_starts[row + 1]]
        images = tuple(self.path(number, self.videos[row]) for number in numbers)
        shard = self.shards[self.shard[row].as_py()]
        place = place_of(Path(self.source.path) / shard, int(self.numbers[row]))
        return Sample(self.ids[row].as_py(), tuple(turns), images, place, self.source.template)

    def path(self, number: int, video: bool) -> Path:
        """Path of an image or a video."""
        assert self.root is not None
        path = self.root / self.names[int(number)].as_py()
        return VideoPath(path) if video else path

    def files(self, rows: np.ndarray) -> list[Path]:
        """Images and videos of some rows, each once."""
        chosen = np.zeros(len(self), bool)
        chosen[rows] = True
        counts = np.diff(self.image_starts)
        found = {}
        for video in (False, True):
            mask = np.repeat(chosen & (self.videos == video), counts)
            for number in np.unique(self.images[mask]):
                found[self.path(number, video), video] = None
        return [path for path, _ in found]

    def split_names(self, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Of each row the names by which it is held out or not, of those of all its images."""
        for row, (first, end) in enumerate(itertools.pairwise(self.image_starts.tolist())):
            own = tuple(names[number] for number in self.images[first:end])
            yield own or (sample_name(self.ids[row].as_py()),)


class Samples(Sequence[Sample]):
    """Some rows of tables, in an order; a sample is made when it is asked for.

    Args:
        tables: The tables.
        rows: Numbers of the rows, counted through all tables; None takes all.
    """

    def __init__(self, tables: Sequence[Table], rows: np.ndarray | None = None):
        self.tables = list(tables)
        self.starts = np.cumsum([0, *map(len, tables)])
        self.rows = np.arange(self.starts[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> "Samples": ...

    def __getitem__(self, index: int | slice) -> "Sample | Samples":
        if isinstance(index, slice):
            return Samples(self.tables, self.rows[index])
        row = int(self.rows[index])
        table = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.tables[table][row - int(self.starts[table])]

    def __add__(self, other: "Samples") -> "Samples":
        rows = np.concatenate([self.rows, other.rows + self.starts[-1]])
        return Samples([*self.tables, *other.tables], rows)

    def _of_tables(self) -> Iterator[tuple[Table, np.ndarray]]:
        """Each table with those of its rows that are taken, in order."""
        for number, table in enumerate(self.tables):
            own = self.rows - self.starts[number]
            yield table, own[(own >= 0) & (own < len(table))]

    def files(self) -> list[Path]:
        """Images and videos of all rows, each once or, in several tables, more often."""
        return [path for table, rows in self._of_tables() for path in table.files(rows)]

    def words(self) -> list[int]:
        """Number of words of each row's messages."""
        every = np.concatenate([table.words for table in self.tables])
        return every[self.rows].tolist()

    def modalities(self, videos_apart: bool) -> list[int]:
        """0 for text, 1 for images; 2 for videos where they are apart."""
        parts = []
        for table in self.tables:
            seen = (np.diff(table.image_starts) > 0).astype(np.int8)
            parts.append(seen + (table.videos & videos_apart))
        return np.concatenate(parts)[self.rows].tolist()

    def split_names(self) -> list[tuple[str, ...]]:
        """Of each row the names by which it is held out or not."""
        paths = [
            [(of.root or Path()) / each for each in of.names.to_pylist()] for of in self.tables
        ]
        both = list(zip(self.tables, paths, strict=True))
        packed = (path for of, every in both if of.source.images is None for path in every)
        named = image_names(itertools.chain(*paths), packed)
        every = [x for of, own in both for x in of.split_names([named[path] for path in own])]
        return [every[row] for row in self.rows]

    def templates(self) -> set[str | None]:
        """Chat templates that the sources name."""
        return {table.source.template for table, rows in self._of_tables() if len(rows)}

    def without(self, numbers: Iterable[int]) -> "Samples":
        """The rows without those at some places."""
        return Samples(self.tables, np.delete(self.rows, sorted(numbers)))

    def hold_out(self, fraction: float) -> "tuple[Samples, Samples]":
        """Rows to train on and rows that are held out, by the rule of `split.hold_out`."""
        if not fraction:
            return self, Samples(self.tables, self.rows[:0])
        held = np.array(held_out(self.split_names(), fraction))
        return Samples(self.tables, self.rows[~held]), Samples(self.tables, self.rows[held])

    def key(self) -> str:
        """Hash of what the rows say and of where in which file they stand."""
        tables = [[each.key, Path(each.source.path).name] for each in self.tables]
        total = hashlib.sha256(json.dumps(tables).encode())
        total.update(self.rows.astype(np.int64).tobytes())
        return total.hexdigest()


def files_of(samples: Sequence[Sample]) -> list[Path]:
    """Images and videos of all samples."""
    if isinstance(samples, Samples):
        return samples.files()
    return [image for sample in samples for image in sample.images]


def read_table(source: Source, seed: int, videos: bool) -> ParsedRows[Sample]:
    """Read the rows of a source, or find their table where the file was read before.

    Args:
        source: Which file, which images, which rows.
        seed: Decides what "random:N" takes, together with the file's name.
        videos: Whether rows may have a video.

    Raises:
        BadRows: If a row is refused and `on_bad_row` is "error", or all are.
    """
    path = Path(source.path)
    drawn = f"{seed}/{path.name}" if source.sampling.startswith("random") else ""
    rule = [__version__, READER, path.suffix, source.sampling, drawn, videos]
    rule.append(source.images is None)
    name = json_sha256([str(path.absolute()), *rule])[:24]
    read = [[str(each.relative_to(path)), image_digest(each)] for each in source.files()]
    key = json_sha256([read, *rule])
    stored = cache_folder("rows") / f"{name}-{key[:24]}.arrow"
    if (found := _found(stored, source, key, videos)) is not None:
        return found
    with alone(stored.with_name(f"{name}.lock"), f"{path}: rows read"):
        if (found := _found(stored, source, key, videos)) is not None:
            return found
        parsed = read_source(source, seed, sample_reader(source, videos))
        content: Any = _columns(parsed)
        with kept_if_possible(stored.parent):
            with whole(stored) as draft, pa.ipc.new_file(str(draft), content.schema) as file:
                file.write_table(content)
            for old in stored.parent.glob(f"{name}-*.arrow"):
                if old != stored:  # of what the file held before
                    old.unlink(missing_ok=True)
            content = stored
    table = Table(content, source, key)
    return ParsedRows(source, Samples([table]), parsed.bad, parsed.total)


def _found(stored: Path, source: Source, key: str, videos: bool) -> ParsedRows[Sample] | None:
    """The stored table, unless its pictures are gone, or its bad rows are bad no more."""
    try:
        table = Table(stored, source, key)
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None
    folder = open_folder(source.media())
    try:
        for video in (False, True):
            rows = np.repeat(table.videos == video, np.diff(table.image_starts))
            for number in np.unique(table.images[rows]):
                assert folder is not None
                folder.find_again(table.names[int(number)].as_py(), "video" if video else "image")
    except Refused:
        return None
    read, path = sample_reader(source, videos), Path(source.path)
    rows = [FileRow(place_of(path / at, n), n, _read(value)) for at, n, value in table.bad]
    good, bad = parse_rows(rows, lambda row: read(row, folder))
    total = len(table) + len(bad)
    return None if good else ParsedRows(source, Samples([table]), bad, total).settled()


def _columns(parsed: ParsedRows[Sample]) -> pa.Table:
    """Samples as columns, in one batch."""
    rows, source = parsed.items, parsed.source
    root, path = source.media(), Path(source.path)
    images = [image.relative_to(root) for row in rows for image in row.images] if root else []
    names: dict[str, int] = {}
    indices = [names.setdefault(str(image), len(names)) for image in images]
    dictionary = pa.DictionaryArray.from_arrays(
        pa.array(indices, pa.int32()), pa.array(list(names), pa.large_string())
    )
    texts = pa.array([turn.text for row in rows for turn in row.turns], pa.large_string())
    columns = {
        "id": pa.array([row.id for row in rows], pa.large_string()),
        "texts": pa.LargeListArray.from_arrays(_starts([len(r.turns) for r in rows]), texts),
        "images": pa.LargeListArray.from_arrays(_starts([len(r.images) for r in rows]), dictionary),
        "video": pa.array([any(isinstance(i, VideoPath) for i in r.images) for r in rows]),
        "shard": pa.array([_shard(r.source, path) for r in rows]).dictionary_encode(),
        "number": pa.array([int(r.source.rpartition(" ")[2]) for r in rows], pa.int64()),
        "words": pa.array(
            [sum(len(turn.text.split()) for turn in row.turns) for row in rows], pa.int32()
        ),
    }
    bad = [[_shard(r.place, path), r.number, _written(r.value)] for r in parsed.refused]
    return pa.table(columns).replace_schema_metadata({BAD: json.dumps(bad, default=str)})


def _shard(place: str, path: Path) -> str:
    """Name of the shard of a row, within the source's folder; "." where the source is a file."""
    return str(Path(place.rpartition(", ")[0]).relative_to(path))


def _written(value: Any) -> Any:
    """A row's value in a list, or as text why it has none."""
    return value.reason if isinstance(value, Unreadable) else [value]


def _read(written: Any) -> Any:
    return Unreadable(written) if isinstance(written, str) else written[0]


def _starts(counts: Sequence[int]) -> pa.Array:
    return pa.array(np.cumsum([0, *counts]), pa.int64())
