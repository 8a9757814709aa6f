"""1. Sample: rows of LLaVA-format files -> validated samples."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llava_lab.data.fields import (
    IMAGE_PLACEHOLDER,
    VIDEO_PLACEHOLDER,
    check_placeholders,
    find_images,
    read_id,
    read_messages,
    with_image_placeholders,
)
from llava_lab.data.image_folder import ImageFolder
from llava_lab.data.keys import SAMPLE_KEYS
from llava_lab.data.layouts import in_llava_format
from llava_lab.data.rows import FileRow, Refused
from llava_lab.data.source import Source, read_each


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; `text` holds `<image>` in place of each image."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sample:
    """One validated row of a LLaVA-format file.

    Attributes:
        id: The row's own id.
        turns: User and assistant in turn, user first.
        images: Absolute paths, in the order of the placeholders; of a video, a VideoPath.
        source: File and number of the row, for messages: "mix.json, row 12".
        template: Chat template, if its source names one.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[Path, ...]
    source: str
    template: str | None = None

    @property
    def conversations(self) -> tuple[tuple[Turn, ...], ...]:
        """Conversations that the LM reads of the row: one, or one for each answer."""
        return (self.turns,)

    @property
    def messages(self) -> list[list[str]]:
        """Role and text of every message of the row."""
        return [[turn.role, turn.text] for turn in self.turns]


def read_samples(source: Source, seed: int, videos: bool = False) -> list[Sample]:
    """Read and validate the rows of one source, in file order.

    Ids may repeat, as they do in the released files.

    Args:
        source: Which file, which images, which rows.
        seed: Decides what "random:N" takes, together with the file's name.
        videos: Whether rows may have a video.

    Raises:
        BadRows: Some rows are not usable and `on_bad_row` is "error", or none is usable.
    """
    return read_each(source, seed, sample_reader(source, videos))


def sample_reader(source: Source, videos: bool) -> Callable[[FileRow, ImageFolder | None], Sample]:
    """Make the function that reads a row of a source as a sample, or refuses it."""
    return lambda row, folder: read_sample(row, folder, videos, source.template)


def read_sample(
    row: FileRow, folder: ImageFolder | None, videos: bool = True, template: str | None = None
) -> Sample:
    """Read a row as a sample, or refuse it.

    Args:
        row: The row.
        folder: Folder of its images.
        videos: Whether it may have a video.
        template: Chat template of its source.
    """
    value = in_llava_format(row.value)
    SAMPLE_KEYS.check(value)
    name = read_id(value, "id", row.number)
    images = find_images(value, folder, videos)
    return Sample(name, read_turns(value, len(images)), images, row.place, template)


def read_turns(row: dict[str, Any], media: int) -> tuple[Turn, ...]:
    """Return a row's conversation, with one `<image>` for each of its pictures or videos."""
    turns, video = [], row.get("video") is not None
    for role, text in read_messages(row):
        if role == "user":
            text = with_image_placeholders(text, video)
        elif video and VIDEO_PLACEHOLDER in text:
            raise Refused(f"an answer holds a literal {VIDEO_PLACEHOLDER}")
        turns.append(Turn(role, text))
    check_placeholders(sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns), media)
    return tuple(turns)
