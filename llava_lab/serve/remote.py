"""Remote: questions about images and videos -> answers of an inference server (vLLM, SGLang)."""

import base64
import mimetypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_lab.core.engine import ChatEngine, TruncatedReply, UnusableReply
from llava_lab.core.journal import Journal
from llava_lab.core.messages import listed
from llava_lab.core.progress import progress
from llava_lab.core.records import json_sha256
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.image_folder import VideoPath, frame_files
from llava_lab.data.media import inside
from llava_lab.data.questions import Question

TRIES = 3  # requests before an unusable reply is an error


class RemoteModel:
    """A model behind any server of OpenAI's chat completions, asked greedily.

    Args:
        url: Address of the server, up to and with /v1.
        model: The server's name of its model.
        max_new_tokens: Longest answer.
        in_flight: Requests at once.
        stop: Text that ends an answer, or None where a token does.
    """

    def __init__(
        self, url: str, model: str, max_new_tokens: int, in_flight: int, stop: str | None = None
    ):
        self.engine = ChatEngine(url, model, in_flight)
        self.sampling: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": 0}
        if stop is not None:
            self.sampling["stop"] = [stop]

    def ask(self, media: Sequence[Path], text: str, whole: bool = True) -> str:
        """Ask about images and videos, which come before the text.

        Args:
            media: The images; of a video, a VideoPath. A folder of frames is sent as images.
            text: The question.
            whole: Refuse an answer that is empty or truncated.

        Raises:
            UnusableReply: If it was asked several times and no reply holds an answer.
            ValueError: If the server is not reached, or refuses.
        """
        content = [part for path in media for part in _parts(path)]
        content.append({"type": "text", "text": text})
        messages = [{"role": "user", "content": content}]
        for tries in range(1, TRIES + 1):
            try:
                return self.engine.complete(messages, whole=whole, **self.sampling)
            except TruncatedReply as problem:
                raise UnusableReply(f"{problem}; raise --max-new-tokens") from None
            except UnusableReply as problem:
                if tries == TRIES:
                    raise UnusableReply(f"{problem}, asked {TRIES} times") from None
        raise AssertionError("returned or raised")


def _parts(path: Path) -> Iterator[dict[str, Any]]:
    is_video = isinstance(path, VideoPath) and not path.is_dir()
    kind = "video_url" if is_video else "image_url"
    for file in frame_files(path) if path.is_dir() else [path]:
        yield {"type": kind, kind: {"url": _data_url(file)}}


def _data_url(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "image/png"
    packed = inside.content(file)
    content = file.read_bytes() if packed is None else packed
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def answer_remotely(
    model: RemoteModel, questions: Sequence[Question], prompt: str | None, journal: Journal
) -> list[str]:
    """Answer questions in their order; those in the journal are not asked again.

    As with a model of ours, an answer may be empty, or truncated.

    Args:
        model: The model.
        questions: The questions; their ids may repeat.
        prompt: Line that is added to every question, or None.
        journal: Keeps each answer by all that its question asks.

    Raises:
        ValueError: If a question cannot be put to a server, before any is asked; if the journal is
            of other questions; or if some could not be answered: they are listed, the others are
            kept.
    """
    asked = [_text_of(question, prompt) for question in questions]
    # Not by place: a row that was left out may be asked when the command is repeated.
    keys = [_key(question, text) for question, text in zip(questions, asked, strict=True)]
    failed: list[str] = []

    def ask(place: int) -> str:
        return model.ask(questions[place].images, asked[place], whole=False)

    with journal:
        texts: dict[str, str] = journal.read(keys)
        missing = [place for place, key in enumerate(keys) if key not in texts]
        with progress("answers", len(missing)) as bar:
            for place, reply in model.engine.each(ask, missing):
                bar.update()
                if isinstance(reply, Exception):
                    failed.append(f"{questions[place].source}: {reply}")
                else:
                    texts[keys[place]] = reply
                    journal.add(keys[place], reply)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(questions)} questions have no answer; the same command asks "
            f"them again and keeps the others:\n  {listed(failed, 10)}"
        )
    return [texts[key] for key in keys]


def _key(question: Question, text: str) -> str:
    """Name of a question in the journal: its row, and all that it asks and shows."""
    shown = [str(path) for path in question.images]
    return json_sha256([question.source, question.id, text, shown])


def _text_of(question: Question, prompt: str | None) -> str:
    """The question without its images, which an export's chat template puts before the text."""
    lines = question.text if prompt is None else f"{question.text}\n{prompt}"
    if len(question.images) == 1:
        return lines.replace(IMAGE_PLACEHOLDER, "").strip()
    text = lines.removeprefix(f"{IMAGE_PLACEHOLDER}\n" * len(question.images))
    if IMAGE_PLACEHOLDER in text:
        raise ValueError(
            f"{question.source}: has images between its words, and an engine puts them before the "
            "text; answer it without --engine-url"
        )
    return text
