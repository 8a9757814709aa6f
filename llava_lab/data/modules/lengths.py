"""2. Lengths: rows -> how many tokens each of them is, counted once for a file and a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llava_lab.core.cache import remembered
from llava_lab.core.fingerprint import fingerprint
from llava_lab.core.progress import shown
from llava_lab.core.records import json_sha256
from llava_lab.data.media.clip import image_digests
from llava_lab.data.mix import counts
from llava_lab.data.modules.encoded import EncodedRows
from llava_lab.data.modules.stage import run_seed
from llava_lab.data.sample import Sample
from llava_lab.data.table import Samples, files_of
from llava_lab.data.tokens import IGNORE
from llava_lab.data.verified import Size, verified

if TYPE_CHECKING:
    from llava_lab.data.modules.image import ImageDataModule


class Length(NamedTuple):
    """How long a row is.

    Attributes:
        tokens: Its tokens, visual ones included, before it is cut.
        visual: Its visual tokens.
        messages: Its messages.
        lost: Tokens that are cut off and would have been trained on.
    """

    tokens: int
    visual: int
    messages: int
    lost: int


def lengths_of(
    data: "ImageDataModule", model: Any, samples: Sequence[Sample], what: str
) -> list[Length]:
    """Count the tokens of usable rows; of those of a table this is done once.

    They are kept by all that decides them: what the rows say, their pictures' sizes, template,
    tokenizer and views.

    Args:
        data: The data that reads the rows.
        model: The model, whose weights are not needed.
        samples: The rows.
        what: Name of what is read, for the progress bar.
    """
    rows = data.encoded(samples, model)
    sizes, faults = verified(files_of(samples), data.views, what)

    def count() -> list[list[int]]:
        every = [_length(rows, each, sizes) for each in shown(samples, f"{what}: tokens")]
        return [list(column) for column in zip(*every, strict=True)]

    if isinstance(samples, Samples):
        key = f"{rule_of(data, model, rows, sizes, faults)[:-8]}-lengths"
        columns = remembered(key, count, f"{what}: tokens")
    else:
        columns = count()
    return [Length(*row) for row in zip(*columns, strict=True)]


def costs_of(data: "ImageDataModule", model: Any) -> list[int]:
    """Tokens that each training row is as the model gets it, cut at the longest row.

    Args:
        data: The data, whose rows are read from tables.
        model: The model, whose weights are not needed.
    """
    assert isinstance(data.samples, Samples) and isinstance(data.held, Samples)
    trained, longest = data.samples, model.llm.length(data.max_length)
    found = np.zeros(trained.starts[-1], np.int64)
    # With the held-out rows they are all that can be used, which `check` has counted, too.
    usable = np.union1d(trained.rows, data.held.rows)
    for table, count, first in zip(trained.tables, counts(trained), trained.starts, strict=False):
        own = usable[(usable >= first) & (usable < first + len(table))]
        if count:
            part, what = Samples([table], own - first), Path(table.source.path).name
            found[own] = [min(row.tokens, longest) for row in lengths_of(data, model, part, what)]
    return found[trained.rows].tolist()


def rule_of(
    data: "ImageDataModule",
    model: Any,
    rows: EncodedRows,
    sizes: Mapping[Path, Size],
    faults: Mapping[Path, str],
) -> str:
    """Hash of all that decides how long the rows of a table are, and whether they are usable.

    Args:
        data: The data that reads the rows.
        model: The model.
        rows: The rows, of tables.
        sizes: Size of each picture and video that can be read.
        faults: What is wrong with each other one.
    """
    assert isinstance(rows.samples, Samples)
    read = image_digests(sizes)
    pictures = [[read[path], *size] for path, size in sizes.items()]
    broken = [[str(path), fault] for path, fault in faults.items()]
    seen = json_sha256([rows.samples.key(), pictures, broken])
    chat = [vars(template) for template in rows.templates.values()]
    chat += [list(rows.templates), json_sha256(model.llm.identity()), data.chat(model)]
    how = [type(data), data.views, model.view_spec, data.image_position, run_seed()]
    return fingerprint(seen, chat, how, rows.context)


def _length(rows: EncodedRows, sample: Sample, sizes: Mapping[Path, Size]) -> Length:
    """How long a row is; of several conversations the longest counts."""
    layouts = [rows.loader.layout(sizes[image]) for image in sample.images]
    every = [rows.encode(sample, turns, layouts, whole=True) for turns in sample.conversations]
    longest = max(every, key=lambda encoded: len(encoded.ids))
    lost = sum(label != IGNORE for label in longest.labels[rows.max_length :])
    visual = sum(layout.tokens for layout in layouts)
    return Length(len(longest.ids), visual, len(sample.messages), lost)
