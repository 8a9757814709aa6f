"""1. Questions: a question file, or conversations -> validated questions, each asked on its own."""

import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llava_lab.data.fields import (
    IMAGE_PLACEHOLDER,
    check_placeholders,
    find_images,
    read_id,
    read_text,
    with_image_placeholders,
)
from llava_lab.data.image_folder import ImageFolder, open_folder
from llava_lab.data.keys import QUESTION_KEYS
from llava_lab.data.rows import BadRows, FileRow, Refused, collector_paused, read_rows
from llava_lab.data.sample import Sample, read_sample
from llava_lab.data.source import Source, parse_rows, read_source
from llava_lab.data.split import hold_out

# Response-format prompts, which hold for all questions of a row (LLaVA-1.5 §3.3).
FORMAT_PROMPTS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)


@dataclass(frozen=True)
class Question:
    """One question to be answered on its own.

    Attributes:
        id: The question's own id; "row id/turn" for one that comes from a conversation.
        images: Absolute paths, in the order of the placeholders; of a video, a VideoPath.
        text: What the user says, with one `<image>` for each image.
        category: Category of the question in the file.
        answers: Correct answers; empty if the file does not publish them.
        source: File and line of the row, for messages: "pope.jsonl, line 12".
        caption: Description of the images, for a judge that cannot see them.
        choices: Texts of the options of a multiple choice, in the order of their letters.
        kind: What sort of answer is wanted, in the words of the benchmark's own metric.
    """

    id: str
    images: tuple[Path, ...]
    text: str
    category: str | None
    answers: tuple[str, ...]
    source: str
    caption: str | None = None
    choices: tuple[str, ...] = ()
    kind: str = ""

    @property
    def prompt(self) -> str:
        """The text without placeholders, as it is written to answer files."""
        return _without_images(self.text)


@collector_paused()
def read_questions(
    path: Path,
    images: Path | None,
    on_bad_row: Literal["error", "skip"] = "error",
) -> list[Question]:
    """Read questions from a question file, or from conversations in the LLaVA format.

    A question file has `question_id` and `text`, and may have `image` (a path or a list) or
    `video`, `category`, `answer` or `answers`, and `caption`. In a file of conversations every
    answer of gpt makes one question of its own: the images that its row has shown so far are put in
    front of it, and a response-format prompt at the end of the row's first question is repeated.
    Rows without images are skipped there.

    Args:
        path: The file, .json or .jsonl.
        images: Folder that image paths start from and stay inside of; none if there are no images.
        on_bad_row: "error" refuses the file and lists its bad rows; "skip" leaves them out and
            warns once with their number.

    Raises:
        BadRows: Some rows are not usable and `on_bad_row` is "error", or none is usable.
        ValueError: If no conversation has an image.
    """
    path = Path(path)
    folder = open_folder(images)
    rows = read_rows(path)
    first = rows[0].value
    if isinstance(first, dict) and "conversations" in first:
        samples, bad = parse_rows(rows, lambda row: read_sample(row, folder))
        questions = [question for sample in samples for question in _ask_each(sample)]
    else:
        questions, bad = parse_rows(rows, lambda row: read_question(row, folder))
    if bad and (on_bad_row == "error" or not questions):
        raise BadRows(path, bad, len(rows))
    if bad:
        number = f"{len(bad)} of {len(rows)} rows are left out"
        warnings.warn(f"{path}: {number}; the first: {bad[0]}", stacklevel=3)
    return _some(questions, path, f"{len(rows)} conversations")


@collector_paused()
def read_held_out(
    source: Source, share: float, left_out: Callable[[], Collection[str]] | None = None
) -> list[Question]:
    """Read the questions of the conversations that a stage of the file holds out.

    Rows and images are found as a stage finds them: in a file, in shards, in an archive.

    Args:
        source: The file or the shards, with the images.
        share: The stage's `hold_out`.
        left_out: Finds the places of rows that stages of the file leave out; what is bad is left
            out here, too. None where they refuse bad rows.

    Raises:
        BadRows: Some rows are not usable and `left_out` is None, or none is usable.
        ValueError: If these are questions, which no stage trains on, or none has an image.
    """
    path = Path(source.path)

    def read(row: FileRow, folder: ImageFolder | None) -> Sample:
        if row.number == 1 and "question_id" in row.value and "conversations" not in row.value:
            raise ValueError(
                f"{path}: held_out is {share}, but these are questions and not the conversations "
                "of a stage; set held_out to 0"
            )
        return read_sample(row, folder)

    source = replace(source, on_bad_row="error" if left_out is None else "skip")
    found = read_source(source, 0, read)
    known = left_out() if left_out else ()
    # The stage has said how many it leaves out.
    replace(found, bad=[each for each in found.bad if each.source not in known]).warn(stacklevel=3)
    samples = [each for each in found.items if each.source not in known]
    held = hold_out(samples, share)[1]
    asked = [question for sample in held for question in _ask_each(sample)]
    return _some(asked, path, f"{len(held)} held-out conversations")


def _some(questions: list[Question], path: Path, conversations: str) -> list[Question]:
    """Questions, of which there is one at least."""
    if not questions:
        raise ValueError(f"{path}: none of its {conversations} has an image to ask about")
    return questions


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
    text = with_image_placeholders(text, value.get("video") is not None)
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
    """Make a question of each turn of a conversation, with the images shown up to there."""
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


def _with_images(text: str, images: int) -> str:
    return f"{IMAGE_PLACEHOLDER}\n" * images + text


def _without_images(text: str) -> str:
    return text.replace(f"{IMAGE_PLACEHOLDER}\n", "").replace(IMAGE_PLACEHOLDER, "").strip()
