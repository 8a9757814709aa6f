"""The verb caption: pictures and videos -> LLaVA-format rows that say what they show.

Every answer is on disk, in a journal beside the output, before the next one is waited for: a killed
command goes on where it was. The output is written whole when every input has its row.
"""

import argparse
import base64
import json
import mimetypes
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from llava_lab.core.atomic import write
from llava_lab.core.engine import ChatEngine, Cut, Unsaid
from llava_lab.core.verbs import (
    MODEL_HELP,
    add_model_options,
    listed,
    one_message,
    positive,
    verb_parser,
)
from llava_lab.data.fields import read_id, read_media
from llava_lab.data.keys import CAPTION_KEYS
from llava_lab.data.rows import (
    VIDEO_FILES,
    FileRow,
    ImageFolder,
    Refused,
    VideoPath,
    frame_files,
    read_rows,
)
from llava_lab.data.sample import IMAGE_PLACEHOLDER, Question, read_turns
from llava_lab.serve.journal import Journal

PROMPT = "Describe this {kind} in detail."
TRIES = 3  # how often an engine is asked that does not answer


@dataclass(frozen=True)
class CaptionInput:
    """One input.

    Attributes:
        id: Of its row in the output.
        name: As the row names it.
        path: Where it is; of a video, a VideoPath.
    """

    id: str
    name: str
    path: Path

    @property
    def kind(self) -> str:
        """The key of it in a row."""
        return "video" if isinstance(self.path, VideoPath) else "image"


class Engine(Protocol):
    """What captions: yields pairs of item and text in any order, and what could not be done."""

    def __call__(
        self, items: Sequence[CaptionInput]
    ) -> Iterator[tuple[CaptionInput, str | Exception]]:
        """Caption all items."""
        ...


def main(arguments: Sequence[str]) -> None:
    """`caption`: a folder, images and videos of a folder or a file become training rows."""
    parser = verb_parser(
        "caption", "Caption pictures and videos into a LLaVA-format JSON; the same command goes on."
    )
    parser.add_argument(
        "inputs",
        type=Path,
        help="folder, or .json/.jsonl rows with `image` or `video`",
    )
    parser.add_argument("--images", type=Path, help="folder that the rows' paths start from")
    parser.add_argument("--out", type=Path, required=True, help=".json or .jsonl to write")
    parser.add_argument(
        "--model", required=True, help=f"{MODEL_HELP}; or the engine's name of its model"
    )
    add_model_options(parser)
    parser.add_argument(
        "--engine-url", help="any OpenAI-compatible engine: http://127.0.0.1:8000/v1"
    )
    parser.add_argument("--prompt", help="by default 'Describe this image [or video] in detail.'")
    parser.add_argument("--frames", type=positive, help="of a video, locally; or else 16")
    parser.add_argument("--stride", type=positive, help="pooling of its frames; or else 2")
    parser.add_argument("--max-new-tokens", type=positive, default=256)
    parser.add_argument("--images-per-batch", type=positive, default=8, help="of the local model")
    parser.add_argument("--in-flight", type=positive, default=32, help="requests to it at once")
    parser.add_argument(
        "--stop", help="text that ends an engine's answers, such as '###' of the template v0"
    )
    parser.add_argument(
        "--shard",
        type=_shard,
        default=(0, 1),
        metavar="I/N",
        help="every N-th input from the I-th, from 0",
    )
    options = parser.parse_args(arguments)
    if options.engine_url and (options.frames or options.stride):
        parser.error("--frames and --stride are the local model's; an engine has its own setting")
    if options.engine_url and (options.template or options.trust_code):
        parser.error("--template and --trust-code are the local model's; an engine has its own")
    with one_message():
        items = read_items(options.inputs, options.images)
        index, number = options.shard
        items = items[index::number]
        model, prompt, length = options.model, options.prompt, options.max_new_tokens
        if options.engine_url:
            engine: Engine = RemoteEngine(
                options.engine_url, model, prompt, length, options.in_flight, options.stop
            )
        else:
            engine = LocalEngine(
                model,
                prompt,
                length,
                options.images_per_batch,
                options.frames,
                options.stride,
                options.template,
                options.trust_code,
            )
        shown = [options.template, options.frames, options.stride]
        # Of an engine's captions only whole ones are kept, whatever the most of their tokens is.
        most = None if options.engine_url else length
        asked = json.dumps([model, options.engine_url, prompt, most, *shown, options.stop])
        caption(items, engine, prompt, options.out, asked)
        print(f"llava_lab: {len(items)} captions: {options.out}")


def _shard(text: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdigit() and number.isdigit() and int(index) < int(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(index), int(number)


def read_items(inputs: Path, images: Path | None) -> list[CaptionInput]:
    """Inputs in order: images and videos of a folder by name, or rows of a file with one each.

    Raises:
        ValueError: If there is none, two have one id, or a row has none or several.
    """
    if inputs.is_dir():
        known = (*Image.registered_extensions(), *VIDEO_FILES)
        paths = [path for path in inputs.rglob("*") if path.suffix.lower() in known]
        items = [_file(path, inputs) for path in sorted(paths) if path.is_file()]
    else:
        folder = ImageFolder(images or inputs.parent)
        items = [_item(row, folder) for row in read_rows(inputs)]
    twice = [name for name, times in Counter(item.id for item in items).items() if times > 1]
    if twice:
        raise ValueError(
            f"{inputs}: {len(twice)} ids stand there twice, the first {twice[0]!r}; "
            "what is done is kept by id, so give each row its own"
        )
    if not items:
        raise ValueError(f"{inputs}: there is no image and no video")
    return items


def _file(path: Path, folder: Path) -> CaptionInput:
    """The input that a file of a folder is."""
    name = str(path.relative_to(folder))
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name)
        raise ValueError(f"{folder}: file name {shown!r} is not UTF-8; rename it") from None
    return CaptionInput(name, name, VideoPath(path) if path.suffix.lower() in VIDEO_FILES else path)


def _item(row: FileRow, folder: ImageFolder) -> CaptionInput:
    """The input that a row names."""
    values = row.value if isinstance(row.value, dict) else {}
    try:
        CAPTION_KEYS.check(values)
        images, video = read_media(values)
        names = images if video is None else [video]
        if len(names) != 1:
            raise Refused(f"`image` is {values.get('image')!r}, not one path")
        path = folder.find(names[0], "image" if video is None else "video")
        name = names[0] if values.get("id") is None else read_id(values, "id")
    except Refused as problem:
        raise ValueError(f"{row.place}: {problem}") from None
    return CaptionInput(name, names[0], path if video is None else VideoPath(path))


def caption(
    items: Sequence[CaptionInput], engine: Engine, prompt: str | None, out: Path, asked: str
) -> None:
    """Caption what the journal does not hold yet, then write the output.

    Args:
        items: All inputs.
        engine: What captions.
        prompt: The human's turn of every row; None asks for a detailed description.
        out: .json or .jsonl.
        asked: What decides the captions; a journal of another question is refused.

    Raises:
        ValueError: If inputs could not be captioned: they are listed, the others are kept.
    """
    if out.suffix not in (".json", ".jsonl") or out.is_dir():
        raise ValueError(f"--out {out}: name a file .json or .jsonl, as rows are read")
    if problem := unreadable(row_of(items[0], prompt, "A caption.")):
        raise ValueError(f"--prompt {prompt!r} makes rows that cannot be read: {problem}")
    journal = Journal(out, asked)
    kept = journal.read()
    rows = {
        item.id: row_of(item, prompt, kept[item.id])
        for item in items
        if item.id in kept and unreadable(row_of(item, prompt, kept[item.id])) is None
    }
    failed: list[str] = []
    missing = [item for item in items if item.id not in rows]
    with journal:
        for item, said in engine(missing):
            problem = said
            if not isinstance(said, Exception):
                rows[item.id] = row_of(item, prompt, said)
                problem = unreadable(rows[item.id])
            if problem is None:
                journal.add(item.id, said)
            else:
                failed.append(f"{item.name}: {problem}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(items)} inputs have no caption; the same command tries them "
            f"again and keeps the others:\n  {listed(failed, 10)}"
        )
    lines = [json.dumps(rows[item.id], ensure_ascii=False) for item in items]
    text = "\n".join(lines) if out.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    write(out, text + "\n")
    journal.path.unlink()


def row_of(item: CaptionInput, prompt: str | None, said: Any) -> dict[str, Any]:
    """The row of an input and its caption."""
    return {
        "id": item.id,
        item.kind: item.name,
        "conversations": [
            {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{prompt_of(item, prompt)}"},
            {"from": "gpt", "value": said},
        ],
    }


def unreadable(row: dict[str, Any]) -> str | None:
    """Why a stage could not read a row of a caption; None where it can."""
    try:
        read_turns(row, 1)
    except Refused as problem:
        return f"{problem}; the caption is {row['conversations'][1]['value']!r:.200}"
    return None


def prompt_of(item: CaptionInput, prompt: str | None) -> str:
    """What is asked of an input."""
    return PROMPT.format(kind=item.kind) if prompt is None else prompt


class LocalEngine:
    """Our own model: batches of images, greedy.

    Args:
        model: What `open_model` opens.
        prompt: What is asked of every input, or None.
        max_new_tokens: Longest caption.
        images_per_batch: Images or videos at once.
        frames: Frames of a video; None takes those of training, or else 16.
        stride: Pooling of a frame; None takes that of training, or else 2.
        template: As for `open_model`.
        trusted: As for `open_model`.
    """

    def __init__(
        self,
        model: str,
        prompt: str | None,
        max_new_tokens: int,
        images_per_batch: int,
        frames: int | None = None,
        stride: int | None = None,
        template: str | None = None,
        trusted: Sequence[str] = (),
    ):
        self.source, self.prompt = model, prompt
        self.template, self.trusted = template, trusted
        self.max_new_tokens, self.images_per_batch = max_new_tokens, images_per_batch
        self.frames, self.stride = frames, stride

    def __call__(
        self, items: Sequence[CaptionInput]
    ) -> Iterator[tuple[CaptionInput, str | Exception]]:
        """Caption all items, batch by batch."""
        if not items:
            return
        # Not for an engine: it imports torch.
        from llava_lab.serve.commands import open_model, show_videos

        model, views = open_model(self.source, self.template, self.trusted)
        if any(item.kind == "video" for item in items):
            views = show_videos(model, views, self.frames, self.stride)
        for start in range(0, len(items), self.images_per_batch):
            batch = items[start : start + self.images_per_batch]
            try:
                said = self._ask(model, views, batch)
            except (OSError, ValueError):  # one bad image must not cost its batch
                for item in batch:
                    try:
                        yield item, self._ask(model, views, [item])[0]
                    except (OSError, ValueError) as error:
                        yield item, error
            else:
                yield from zip(batch, said, strict=True)

    def _ask(self, model: Any, views: Any, items: Sequence[CaptionInput]) -> list[str]:
        from llava_lab.serve.commands import answer_questions

        questions = [
            Question(
                id=item.id,
                images=(item.path.absolute(),),
                text=f"{IMAGE_PLACEHOLDER}\n{prompt_of(item, self.prompt)}",
                category=None,
                answers=(),
                source=item.name,
            )
            for item in items
        ]
        return answer_questions(
            model,
            views,
            questions,
            max_new_tokens=self.max_new_tokens,
            images_per_batch=self.images_per_batch,
        )


class RemoteEngine:
    """Any engine with OpenAI's chat completions, such as vLLM and SGLang; greedy.

    Args:
        url: Up to and with /v1.
        model: The engine's name of its model.
        prompt: What is asked of every input, or None.
        max_new_tokens: Longest caption.
        in_flight: Requests at once.
        stop: Text that ends an answer, or None where a token does.
    """

    def __init__(
        self,
        url: str,
        model: str,
        prompt: str | None,
        max_new_tokens: int,
        in_flight: int,
        stop: str | None = None,
    ):
        self.engine = ChatEngine(url, model, in_flight)
        self.prompt, self.stop, self.max_new_tokens = prompt, stop, max_new_tokens

    def __call__(
        self, items: Sequence[CaptionInput]
    ) -> Iterator[tuple[CaptionInput, str | Exception]]:
        """Caption all items, as answers come."""
        return self.engine.each(self._ask, items)

    def _ask(self, item: CaptionInput) -> str:
        # A folder of frames goes as so many pictures.
        frames = item.path.is_dir()
        kind = "image_url" if item.kind == "image" or frames else "video_url"
        files = frame_files(item.path) if frames else [item.path]
        content: list[dict[str, Any]] = [
            {"type": kind, kind: {"url": _data_url(file)}} for file in files
        ]
        content.append({"type": "text", "text": prompt_of(item, self.prompt)})
        messages = [{"role": "user", "content": content}]
        sampling: dict[str, Any] = {"max_tokens": self.max_new_tokens, "temperature": 0}
        if self.stop is not None:
            sampling["stop"] = [self.stop]
        for tries in range(1, TRIES + 1):
            try:
                return self.engine.say(messages, **sampling)
            except Cut as problem:
                raise Unsaid(f"{problem}; raise --max-new-tokens") from None
            except Unsaid as problem:
                if tries == TRIES:
                    raise Unsaid(f"{problem}, asked {TRIES} times") from None
        raise AssertionError("returned or raised")


def _data_url(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
