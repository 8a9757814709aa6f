"""3. Preferences: rows of a prompt with a chosen and a rejected answer -> trees of one prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llava_lab.data.fields import find_images, read_id, read_media
from llava_lab.data.geometry import Layout
from llava_lab.data.image_folder import ImageFolder
from llava_lab.data.keys import PREFERENCE_KEYS
from llava_lab.data.modules.answers import AnswerBatch, AnswerDataModule, EncodedAnswers
from llava_lab.data.pair_rows import check_answer, place_marks, read_pair, with_image_key
from llava_lab.data.rows import FileRow, Refused
from llava_lab.data.sample import Sample, Turn
from llava_lab.data.source import Source, read_each


@dataclass(frozen=True, kw_only=True)
class Preference(Sample):
    """A prompt with two answers; `turns` ends with the chosen one.

    Attributes:
        rejected: The answer that is worse.
    """

    rejected: str

    @property
    def messages(self) -> list[list[str]]:
        """All messages of the row."""
        return [*super().messages, ["rejected", self.rejected]]

    @property
    def conversations(self) -> tuple[tuple[Turn, ...], ...]:
        """The conversations with the chosen and with the rejected answer."""
        return self.turns, (*self.turns[:-1], Turn("assistant", self.rejected))


def read_preferences(source: Source, seed: int) -> list[Preference]:
    """Read and validate rows `{id, image or video, prompt, chosen, rejected}`, in file order.

    TRL's rows are read, too: a list of `images`, and messages in place of texts.

    Args:
        source: Which file, which images, which rows.
        seed: Decides what "random:N" takes, together with the file's name.

    Raises:
        BadRows: Some rows are not usable and `on_bad_row` is "error", or none is usable.
    """
    return read_each(source, seed, preference_reader(source))


def preference_reader(source: Source) -> Callable[[FileRow, ImageFolder | None], Preference]:
    """The function that reads a row of a source as a preference, or refuses it."""
    return lambda row, folder: _read_preference(row, folder, source.template)


def _read_preference(
    row: FileRow, folder: ImageFolder | None, template: str | None = None
) -> Preference:
    PREFERENCE_KEYS.check(row.value)
    name = read_id(row.value, "id", row.number)
    value = with_image_key(row.value)
    images = find_images(value, folder, videos=True)
    prompt, chosen, rejected = _read_texts(value, len(images))
    turns = (Turn("user", prompt), Turn("assistant", chosen))
    return Preference(name, turns, images, row.place, template, rejected=rejected)


def _read_texts(row: dict[str, Any], media: int) -> tuple[str, str, str]:
    """The prompt, with a placeholder for each picture or video, and the two answers."""
    prompt, chosen, rejected = read_pair(row)
    for key, text in (("chosen", chosen), ("rejected", rejected)):
        check_answer(text, key)
    if chosen.strip() == rejected.strip():
        raise Refused("'chosen' and 'rejected' are the same answer")
    return place_marks(prompt, media, row.get("video") is not None), chosen, rejected


def unreadable(row: dict[str, Any]) -> str | None:
    """Why a row cannot be read, whatever its files are; None where it can."""
    try:
        names, video = read_media(row)
        _read_texts(row, len(names) + (video is not None))
    except Refused as problem:
        return str(problem)
    return None


@dataclass(frozen=True)
class Pairs(AnswerBatch):
    """Preferences, packed: of each a prompt, its chosen and its rejected answer."""


class EncodedPairs(EncodedAnswers):
    """Preferences, encoded at access."""

    def measure(self, sample: Sample, layouts: Sequence[Layout]) -> None:
        """Refuse a pair whose answers are the same tokens, too."""
        prompt, chosen, rejected = self.tree(sample, layouts)
        if chosen.ids == rejected.ids:
            tokens = len(prompt.ids) + len(chosen.ids)
            raise ValueError(
                f"'chosen' and 'rejected' are the same {tokens} tokens, cut at max_length "
                f"{self.max_length}; raise it or remove the row"
            )


class PreferenceDataModule(AnswerDataModule):
    """Rows of a prompt, about an image, a video or nothing, with a chosen and a rejected answer."""

    rows = EncodedPairs
    batch = Pairs

    def reader(self, source: Source) -> Callable[[FileRow, ImageFolder | None], Preference]:
        """The function that reads a row of a source as a preference, or refuses it."""
        return preference_reader(source)
