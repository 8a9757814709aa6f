"""Captions: files of captioned pictures -> their ids, names and texts."""

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llava_lab.core.atomic import check_regular
from llava_lab.data.fields import read_id, read_media, read_messages, read_text
from llava_lab.data.rows import BadRows, FileRow, Refused, collector_paused, read_rows
from llava_lab.data.source import parse_rows

# How LLaVA names the pictures of CC3M: haotian-liu/LLaVA@c121f04, docs/Data.md.
CC3M_ID = "GCC_train_{number:09d}"


class Caption(NamedTuple):
    """A picture's caption: the row's id, the picture's name, the text."""

    id: str
    image: str
    text: str


@collector_paused()
def read_captions(path: Path) -> list[Caption]:
    """Read a file of captions.

    Args:
        path: CC3M as it is published (.tsv: caption, address; pictures are named by their line as
            LLaVA names them); or .json or .jsonl rows with `image` and `caption`, or whose first
            answer is the caption.

    Raises:
        BadRows: If rows hold no caption of one picture.
        ValueError: If an id is repeated.
    """
    rows = _read_tsv(path) if path.suffix == ".tsv" else read_rows(path, each=True)
    captions, bad = parse_rows(rows, _read)
    if bad:
        total = len(captions) + len(bad)
        raise BadRows(path, bad, total, "mend or remove them", "hold no caption of one picture")
    if not captions:
        raise ValueError(f"{path}: holds no rows")
    twice = [name for name, times in Counter(each.id for each in captions).items() if times > 1]
    if twice:
        raise ValueError(f"{path}: {len(twice)} ids are repeated, the first {twice[0]!r}")
    return captions


def _read_tsv(path: Path) -> Iterator[FileRow]:
    check_regular(path, "file of captions")
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, cells in enumerate(csv.reader(file, "excel-tab", quoting=csv.QUOTE_NONE), 1):
            name = CC3M_ID.format(number=number - 1)
            text = cells[0] if len(cells) == 2 else None  # anything else is refused below
            row = {"id": name, "image": f"{name}.jpg", "caption": text}
            yield FileRow(f"{path}, line {number}", number, row)


def _read(row: FileRow) -> Caption:
    images, video = read_media(row.value)
    if video is not None or len(images) != 1:
        raise Refused("shows not one image")
    if "conversations" in row.value:
        text = read_messages(row.value)[1][1]
    elif row.value.get("caption") is None:
        raise Refused("has no 'caption'; a line of a .tsv has a caption, a tab and an address")
    else:
        text = read_text(row.value["caption"], "'caption'")
    if not text.strip():
        raise Refused("its caption is empty")
    name = images[0] if row.value.get("id") is None else read_id(row.value, "id")
    return Caption(name, images[0], text.strip())
