"""12. Check rows: a source of a stage -> its bad rows, its cuts, its lengths, its pictures."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from llava_lab.data.image_folder import VideoPath
from llava_lab.data.known_files import KnownFiles
from llava_lab.data.media.inside import content_or_path
from llava_lab.data.modules.encoded import EncodedRows
from llava_lab.data.modules.image import ImageDataModule
from llava_lab.data.modules.lengths import Length, lengths_of
from llava_lab.data.modules.phrases import PhraseDataModule
from llava_lab.data.rows import BadRow, BadRows
from llava_lab.data.sample import Sample
from llava_lab.data.source import Source
from llava_lab.data.table import files_of
from llava_lab.data.verified import Size, verified

PLAIN_MODES = ("RGB", "L")  # what photographs are; others are converted, and may look otherwise
TIMED = 16  # rows that are loaded to see how long a pass takes


@dataclass(frozen=True)
class Looked:
    """What a source of rows holds.

    Attributes:
        stage: Name of the stage that reads it.
        source: The source.
        total: Number of its rows.
        bad: Rows that cannot be trained on; a file that cannot be read is one.
        lengths: How long each other row is.
        cut: Rows that are longer than the longest that is read: place, id, and what is lost.
        repeated: Ids that several rows have, and how many.
        modes: Pictures by their mode, where that is not the usual one.
        seconds: Time in which one process loads a row, or None.
    """

    stage: str
    source: Source
    total: int
    bad: list[BadRow]
    lengths: list[Length] = field(default_factory=list)
    cut: list[BadRow] = field(default_factory=list)
    repeated: dict[str, int] = field(default_factory=dict)
    modes: dict[str, list[Path]] = field(default_factory=dict)
    seconds: float | None = None

    @property
    def refused(self) -> int:
        """Number of bad rows that keep the stage from being trained."""
        return len(self.bad) if self.source.on_bad_row == "error" or not self.lengths else 0


def look_at(data: ImageDataModule, model: Any, source: Source) -> Looked:
    """Look at every row of a source, however many are bad.

    Args:
        data: The stage's data.
        model: The model, whose weights are not needed.
        source: The source.
    """
    try:
        found = data.usable(model, data.parsed(replace(source, on_bad_row="skip")))
    except BadRows as problem:
        return Looked(str(data.name), source, problem.total, problem.rows)
    except (OSError, ValueError) as problem:
        return Looked(str(data.name), source, 0, [of_file(source.path, problem)])
    rows, what = data.encoded(found.items, model), Path(source.path).name
    files = files_of(found.items)
    sizes, _ = verified(files, data.views, what)
    lengths = lengths_of(data, model, found.items, what)
    cut = [
        BadRow(sample.source, sample.id, _cut(rows, sample, sizes, each))
        for number, each in enumerate(lengths)
        if each.tokens > rows.max_length
        for sample in [rows.samples[number]]
    ]
    counts = Counter(sample.id for sample in rows.samples)
    repeated = {name: count for name, count in counts.items() if count > 1}
    modes = odd_modes(files)
    return Looked(
        str(data.name),
        source,
        found.total,
        found.bad,
        lengths,
        cut,
        repeated,
        modes,
        _seconds(rows),
    )


def look_at_phrases(data: PhraseDataModule) -> Looked:
    """Look at pictures with phrases."""
    source = Source(data.path, data.images)
    try:
        data.read()
    except BadRows as problem:
        return Looked(str(data.name), source, problem.total, problem.rows)
    except (OSError, ValueError) as problem:
        return Looked(str(data.name), source, 0, [of_file(source.path, problem)])
    files = [image for image, _ in data.rows]
    _, faults = verified(files, data.views, data.path.name)
    bad = [BadRow(str(path), "", fault) for path, fault in faults.items()]
    return Looked(str(data.name), source, len(data.rows), bad, modes=odd_modes(files))


def of_file(path: Path, problem: Exception) -> BadRow:
    """A file that cannot be read, as a bad row."""
    return BadRow(str(path), "", str(problem).removeprefix(f"{path}").lstrip(":, "))


def _cut(rows: EncodedRows, sample: Sample, sizes: Mapping[Path, Size], length: Length) -> str:
    """Where a row is cut, and what is lost."""
    layouts = [rows.loader.layout(sizes[image]) for image in sample.images]
    marks = [turn.text.count("<image>") for turn in sample.turns]
    end = len(sample.turns)
    for end in range(2, len(sample.turns) + 1, 2):
        seen = layouts[: sum(marks[:end])]
        if len(rows.encode(sample, sample.turns[:end], seen, whole=True).ids) > rows.max_length:
            break
    return (
        f"{length.tokens:,} tokens, cut at {rows.max_length:,}: in message {end - 1} or {end} of "
        f"{len(sample.turns)}; {length.lost:,} tokens less to train on"
    )


_modes = KnownFiles("mode")


def odd_modes(files: Sequence[Path]) -> dict[str, list[Path]]:
    """Pictures by their mode, where that is not the usual one."""
    pictures = [path for path in files if not isinstance(path, VideoPath)]
    found, _ = _modes.find(pictures, _mode, "modes of pictures")
    odd: dict[str, list[Path]] = {}
    for path, mode in found.items():
        if mode not in PLAIN_MODES:
            odd.setdefault(mode, []).append(path)
    return odd


def _mode(path: Path) -> str:
    with Image.open(content_or_path(path)) as picture:
        return picture.mode


def _seconds(rows: EncodedRows) -> float:
    """Time in which this process loads a row, of some rows from all over the file."""
    chosen = range(0, len(rows), max(1, len(rows) // TIMED))[:TIMED]
    began = time.perf_counter()
    for number in chosen:
        rows[number]
    return (time.perf_counter() - began) / len(chosen)
