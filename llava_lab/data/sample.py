"""1. Sample: rows of LLaVA-format files -> validated samples and questions."""

import hashlib
import reprlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from llava_lab.data.fields import (
    IMAGE_PLACEHOLDER,
    VIDEO_PLACEHOLDER,
    check_placeholders,
    find_images,
    read_id,
    read_messages,
    read_text,
)
from llava_lab.data.keys import QUESTION_KEYS, SAMPLE_KEYS
from llava_lab.data.rows import (
    BadRow,
    BadRows,
    FileRow,
    ImageFolder,
    Refused,
    choose,
    collector_paused,
    parse_sampling,
    read_rows,
)

_Item = TypeVar("_Item")

# The prompts that say once for a whole row how its questions are to be answered (LLaVA-1.5 §3.3).
FORMAT_PROMPTS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; `text` holds `<image>` where an image stands."""

    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sample:
    """One validated row.

    Attributes:
        id: The row's own id.
        turns: User and assistant in turn, user first.
        images: Absolute paths, in the order of the placeholders; of a video, a VideoPath.
        source: Where the row stands, for messages: "mix.json, row 12".
        template: Chat template of its own, if its source names one.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[Path, ...]
    source: str
    template: str | None = None

    @property
    def conversations(self) -> tuple[tuple[Turn, ...], ...]:
        """All that the LM may read of the row: one conversation, or one for each answer."""
        return (self.turns,)

    @property
    def said(self) -> list[list[str]]:
        """Everything that is said in the row, and by whom."""
        return [[turn.role, turn.text] for turn in self.turns]


@dataclass(frozen=True)
class Question:
    """One question to be answered on its own.

    Attributes:
        id: The question's own id; "row id/turn" for one that comes from a conversation.
        images: Absolute paths, in the order of the placeholders; of a video, a VideoPath.
        text: What the user says, with one `<image>` for each image.
        category: What the file calls this kind of question.
        answers: Right answers; none where the file keeps them secret.
        source: Where the row stands, for messages: "pope.jsonl, line 12".
        caption: What the images show, in words, for those who judge answers without seeing them.
    """

    id: str
    images: tuple[Path, ...]
    text: str
    category: str | None
    answers: tuple[str, ...]
    source: str
    caption: str | None = None

    @property
    def prompt(self) -> str:
        """The text without its placeholders, as answer files show it."""
        return _without_images(self.text)


@dataclass(frozen=True)
class Source:
    """A LLaVA-format file of conversations and the folder of its images.

    Args:
        path: File of rows: .json with one list, or .jsonl with one row a line.
        images: Folder that the rows' image paths start from and stay inside of; none if every row
            is text.
        sampling: Which rows to take, before they are validated: "all", "first:N", "end:N" or
            "random:N". N is a count or a percentage such as "10%", rounded up.
        on_bad_row: "error" refuses the file and lists its bad rows; "skip" leaves them out and
            warns once with their number. Bad are rows whose fields are wrong, whose pictures cannot
            be read, whose text holds a mark of the template, or that are too long to train on.
        template: Chat template of these rows; null takes the stage's.
    """

    path: Path
    images: Path | None = None
    sampling: str = "all"
    on_bad_row: Literal["error", "skip"] = "error"
    template: str | None = None

    def __post_init__(self) -> None:
        try:
            parse_sampling(self.sampling)
        except ValueError as problem:
            raise ValueError(f"{self.path}: {problem}") from None


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
    """What reads a row of a source as a sample, or refuses it."""
    return lambda row, folder: _read_sample(row, folder, videos, source.template)


@dataclass(frozen=True)
class Found(Generic[_Item]):
    """Rows of a source that could be read, and those that could not.

    Attributes:
        source: The source.
        items: What was read, in file order.
        bad: Rows that were not.
        total: How many rows there are.
        fault: What the bad rows have in common, for messages.
    """

    source: Source
    items: list[_Item]
    bad: list[BadRow]
    total: int
    fault: str = "are not usable"

    def settled(self) -> "Found[_Item]":
        """The same, if `on_bad_row` lets bad rows be left out.

        Raises:
            BadRows: If there are any and `on_bad_row` is "error", or no other row.
        """
        path = Path(self.source.path)
        if self.bad and (self.source.on_bad_row == "error" or not self.items):
            way_out = "mend them, or set on_bad_row: skip to leave them out" if self.items else ""
            raise BadRows(path, self.bad, self.total, way_out, self.fault)
        return self

    def warn(self, stacklevel: int = 2) -> None:
        """Say once how many rows are left out, and why the first is."""
        if self.bad:
            number = f"{len(self.bad)} of {self.total} rows are left out"
            warning = f"{self.source.path}: {number}; the first: {self.bad[0]}"
            warnings.warn(warning, stacklevel=stacklevel + 1)


def read_each(
    source: Source, seed: int, read: Callable[[FileRow, ImageFolder | None], _Item]
) -> list[_Item]:
    """What `read` makes of each row of a source; those it refuses go the way of `on_bad_row`."""
    found = read_source(source, seed, read)
    found.warn(stacklevel=3)  # of read_samples and its like
    return found.items


@collector_paused()
def read_source(
    source: Source, seed: int, read: Callable[[FileRow, ImageFolder | None], _Item]
) -> Found[_Item]:
    """What `read` makes of each row of a source, and what it refuses.

    Raises:
        BadRows: If there is any and `on_bad_row` is "error", or no other row.
    """
    path = Path(source.path)
    folder = _open_folder(source.images)
    rows = choose(read_rows(path), source.sampling, f"{seed}/{path.name}", path)
    items, bad = _read_each(rows, lambda row: read(row, folder))
    return Found(source, items, bad, len(rows)).settled()


@collector_paused()
def hold_out(samples: Sequence[Sample], fraction: float) -> tuple[list[Sample], list[Sample]]:
    """Split samples into those to train on and about `fraction` of them to hold out.

    The side of a sample depends on the names of its images (of its id if it has none), not on
    the other samples' order or on a seed. Samples that share an image, also through a third one,
    stay together. An image's name is that of its file and folder, so that the split survives a
    move of the data and `clip1/0.jpg` is not taken for `clip2/0.jpg`. At least one group is held
    out, however few there are.

    Args:
        samples: What to split.
        fraction: Share to hold out, from 0 to below 1.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"hold out a fraction from 0 to below 1, not {fraction}")
    if not fraction:
        return list(samples), []
    keys = [_names(sample) for sample in samples]
    group = _join(keys)
    keys_of_groups = sorted(set(group.values()), key=_unit_hash)
    held_keys = {key for key in keys_of_groups if _unit_hash(key) < fraction}
    if not held_keys:
        held_keys = set(keys_of_groups[:1])
    train: list[Sample] = []
    held: list[Sample] = []
    for sample, names in zip(samples, keys, strict=True):
        (held if group[names[0]] in held_keys else train).append(sample)
    if not (train and held):
        sides = f"{len(train)} samples to train on and {len(held)} held out"
        raise ValueError(f"holding out {fraction} of {len(samples)} leaves {sides}")
    return train, held


@collector_paused()
def read_questions(
    path: Path,
    images: Path | None,
    held_out: float = 0.0,
    on_bad_row: Literal["error", "skip"] = "error",
) -> list[Question]:
    """Read questions from a question file, or from conversations in the LLaVA format.

    A question file has `question_id` and `text`, and may have `image` (a path or a list) or
    `video`, `category`, `answer` or `answers`, and `caption`. In a file of conversations each
    answer of gpt makes one question, asked on its own: the images that its row has shown so far
    stand in front of it, and a response-format prompt at the end of the row's first question is
    repeated. Rows without images are left out there.

    Args:
        path: The file, .json or .jsonl.
        images: Folder that image paths start from and stay inside of; none if there are no images.
        held_out: Keep only the conversations that `hold_out` with this fraction holds out.
        on_bad_row: "error" refuses the file and lists its bad rows; "skip" leaves them out and
            warns once with their number.

    Raises:
        BadRows: Some rows are not usable and `on_bad_row` is "error", or none is usable.
        ValueError: If a share of a question file should be held out; no stage trains on one.
    """
    path = Path(path)
    folder = _open_folder(images)
    rows = read_rows(path)
    first = rows[0].value
    if isinstance(first, dict) and "conversations" in first:
        samples, bad = _read_each(rows, lambda row: _read_sample(row, folder))
        samples = hold_out(samples, held_out)[1] if held_out else samples
        questions = [question for sample in samples for question in _ask_each(sample)]
    else:
        if held_out:
            raise ValueError(
                f"{path}: held_out is {held_out}, but these are questions and not the "
                "conversations of a stage; set held_out to 0"
            )
        questions, bad = _read_each(rows, lambda row: read_question(row, folder))
    if bad and (on_bad_row == "error" or not questions):
        raise BadRows(path, bad, len(rows))
    if bad:
        number = f"{len(bad)} of {len(rows)} rows are left out"
        warnings.warn(f"{path}: {number}; the first: {bad[0]}", stacklevel=3)
    if not questions:
        raise ValueError(f"{path}: none of its {len(rows)} conversations has an image to ask about")
    return questions


def _open_folder(images: Path | None) -> ImageFolder | None:
    return None if images is None else ImageFolder(Path(images))


def _read_each(
    rows: Iterable[FileRow], read: Callable[[FileRow], _Item]
) -> tuple[list[_Item], list[BadRow]]:
    good: list[_Item] = []
    bad: list[BadRow] = []
    for row in rows:
        try:
            if not isinstance(row.value, dict):
                raise Refused(f"a row must be an object, not {type(row.value).__name__}")
            good.append(read(row))
        except Refused as problem:
            value = row.value if isinstance(row.value, dict) else {}
            shown = value.get("question_id", value.get("id", row.number))
            shown = str(shown) if isinstance(shown, str | int) else reprlib.repr(shown)
            bad.append(BadRow(row.place, shown[:200], str(problem)))
    return good, bad


def _read_sample(
    row: FileRow, folder: ImageFolder | None, videos: bool = True, template: str | None = None
) -> Sample:
    SAMPLE_KEYS.check(row.value)
    name = read_id(row.value, "id", row.number)
    images = find_images(row.value, folder, videos)
    return Sample(name, read_turns(row.value, len(images)), images, row.place, template)


def read_turns(row: dict[str, Any], media: int) -> tuple[Turn, ...]:
    """Return a row's conversation, with one `<image>` for each of its pictures or videos."""
    turns = tuple(Turn(role, text) for role, text in read_messages(row))
    if row.get("video") is not None:
        turns = tuple(replace(turn, text=_shown(turn.text)) for turn in turns)
    if any(IMAGE_PLACEHOLDER in turn.text for turn in turns[1::2]):
        raise Refused(f"an answer holds a literal {VIDEO_PLACEHOLDER}")
    check_placeholders(sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns), media)
    return turns


def read_question(row: FileRow, folder: ImageFolder | None) -> Question:
    """Return the question of a question file's row, or refuse the row."""
    value = row.value
    name = read_id(value, "question_id")
    QUESTION_KEYS.check(value)
    text = read_text(value.get("text"), "'text'")
    if not text.replace(IMAGE_PLACEHOLDER, "").strip():
        raise Refused("'text' is empty")
    category = value.get("category")
    if category is not None:
        category = read_text(category, "'category'")
    images = find_images(value, folder, videos=True)
    if value.get("video") is not None:
        text = _shown(text)
    if IMAGE_PLACEHOLDER not in text:
        text = _with_images(text, len(images))
    check_placeholders(text.count(IMAGE_PLACEHOLDER), len(images))
    caption = value.get("caption")
    if caption is not None:
        lines = caption if isinstance(caption, list) else [caption]
        caption = "\n".join(read_text(line, "'caption'") for line in lines)
    return Question(name, images, text, category, _read_answers(row), row.place, caption)


def _read_answers(row: FileRow) -> tuple[str, ...]:
    keys = [key for key in ("answer", "answers") if row.value.get(key) is not None]
    if not keys:
        return ()
    if len(keys) > 1:
        raise Refused("has both 'answer' and 'answers'; keep one of them")
    value = row.value[keys[0]]
    values = value if isinstance(value, list) else [value]
    answers = tuple(read_text(each, f"{keys[0]!r}") for each in values)
    if not answers or not all(answer.strip() for answer in answers):
        raise Refused(f"{keys[0]!r} is empty; leave it out where the answer is not known")
    return answers


def _ask_each(sample: Sample) -> Iterator[Question]:
    """Ask each question of a conversation on its own, about the images shown up to there."""
    shown = 0
    repeated = _format_prompt(sample.turns[0].text)
    pairs = zip(sample.turns[::2], sample.turns[1::2], strict=True)
    for number, (user, assistant) in enumerate(pairs, 1):
        text = _with_images(user.text, shown)
        shown += user.text.count(IMAGE_PLACEHOLDER)
        if repeated and not _format_prompt(text):
            text = f"{text.rstrip()}\n{repeated}"
        if shown:
            name, images = f"{sample.id}/{number}", sample.images[:shown]
            answers = (assistant.text.strip(),)
            yield Question(name, images, text, "conversation", answers, sample.source)


def _format_prompt(text: str) -> str:
    """Return the response-format prompt that `text` ends with, or nothing."""
    line = _without_images(text).rpartition("\n")[2].strip()
    return line if line in FORMAT_PROMPTS else ""


def _shown(text: str) -> str:
    return text.replace(VIDEO_PLACEHOLDER, IMAGE_PLACEHOLDER)


def _with_images(text: str, images: int) -> str:
    return f"{IMAGE_PLACEHOLDER}\n" * images + text


def _without_images(text: str) -> str:
    return text.replace(f"{IMAGE_PLACEHOLDER}\n", "").replace(IMAGE_PLACEHOLDER, "").strip()


def _names(sample: Sample) -> tuple[str, ...]:
    if not sample.images:
        return (f"id {sample.id}",)
    return tuple(f"{image.parent.name}/{image.name}" for image in sample.images)


def _join(keys: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """Map each name to the smallest name that it is linked to by appearing in one tuple."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for names in keys:
        for name in names:
            parent.setdefault(name, name)
            low, high = sorted((root(names[0]), root(name)))
            parent[high] = low
    return {name: root(name) for name in parent}


def _unit_hash(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
