"""The verb caption: pictures and videos -> LLaVA-format rows that say what they show.

Every answer is on disk, in a journal beside the output, before the next one is waited for: a killed
command goes on where it was. The output is written whole when every input has its row.
"""

import argparse
import base64
import hashlib
import json
import mimetypes
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import requests
from PIL import Image
from urllib3.util import Retry

from llava_lab.data.rows import ImageFolder, Refused, VideoPath, frame_files, read_rows
from llava_lab.data.sample import IMAGE_PLACEHOLDER, Question
from llava_lab.disk import write
from llava_lab.verbs import MODEL_HELP, listed, one_message, verb_parser

PROMPT = "Describe this {kind} in detail."
VIDEO_FILES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
# An engine that restarts is back within a minute or so: 0.5 + 1 + 2 + ... seconds between tries.
RETRIES, BACKOFF = 8, 0.5
RETRIED = (408, 409, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Item:
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

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[Item, str | Exception]]:
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
    parser.add_argument(
        "--engine-url", help="any OpenAI-compatible engine: http://127.0.0.1:8000/v1"
    )
    parser.add_argument("--prompt", help="by default 'Describe this image [or video] in detail.'")
    parser.add_argument("--frames", type=int, help="of a video, by the local model; or else 16")
    parser.add_argument("--stride", type=int, help="pooling of its frames; or else 2")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--images-per-batch", type=int, default=8, help="of the local model")
    parser.add_argument("--in-flight", type=int, default=32, help="requests at once to the engine")
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
    with one_message(parser):
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
                model, prompt, length, options.images_per_batch, options.frames, options.stride
            )
        shown = [options.frames, options.stride]
        asked = json.dumps([model, options.engine_url, prompt, length, *shown, options.stop])
        caption(items, engine, prompt, options.out, asked)
        print(f"llava_lab: {len(items)} captions: {options.out}")


def _shard(text: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdigit() and number.isdigit() and int(index) < int(number)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N - 1")
    return int(index), int(number)


def read_items(inputs: Path, images: Path | None) -> list[Item]:
    """Inputs in order: images and videos of a folder by name, or rows of a file with one each.

    Raises:
        ValueError: If there is none, two have one id, or a row has none or several.
    """
    if inputs.is_dir():
        known = (*Image.registered_extensions(), *VIDEO_FILES)
        paths = sorted(path for path in inputs.rglob("*") if path.suffix.lower() in known)
        names = [str(path.relative_to(inputs)) for path in paths]
        items = [
            Item(name, name, VideoPath(path) if path.suffix.lower() in VIDEO_FILES else path)
            for name, path in zip(names, paths, strict=True)
        ]
    else:
        folder = ImageFolder(images or inputs.parent)
        items = []
        for row in read_rows(inputs):
            values = row.value if isinstance(row.value, dict) else {}
            kind: Literal["image", "video"] = "video" if "video" in values else "image"
            name = values.get(kind)
            if not isinstance(name, str):
                raise ValueError(f"{row.place}: `{kind}` is {name!r}, not one path")
            try:
                path = folder.find(name, kind)
            except Refused as error:
                raise ValueError(f"{row.place}: {error}") from error
            path = VideoPath(path) if kind == "video" else path
            items.append(Item(str(values.get("id", name)), name, path))
    twice = [name for name, times in Counter(item.id for item in items).items() if times > 1]
    if twice:
        raise ValueError(f"{inputs}: {len(twice)} ids stand there twice, the first {twice[0]!r}")
    if not items:
        raise ValueError(f"{inputs}: there is no image and no video")
    return items


def caption(
    items: Sequence[Item], engine: Engine, prompt: str | None, out: Path, asked: str
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
    out.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(out.with_name(out.name + ".journal"), asked)
    done = journal.read()
    failed: list[str] = []
    with journal:
        for item, said in engine([item for item in items if item.id not in done]):
            if isinstance(said, Exception):
                failed.append(f"{item.name}: {said}")
            else:
                done[item.id] = said
                journal.add(item.id, said)
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(items)} inputs have no caption; the same command tries them "
            f"again and keeps the others:\n  {listed(failed, 10)}"
        )
    rows = [
        {
            "id": item.id,
            item.kind: item.name,
            "conversations": [
                {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{prompt_of(item, prompt)}"},
                {"from": "gpt", "value": done[item.id]},
            ],
        }
        for item in items
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    text = "\n".join(lines) if out.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    write(out, text + "\n")
    journal.path.unlink()


def prompt_of(item: Item, prompt: str | None) -> str:
    """What is asked of an input."""
    return PROMPT.format(kind=item.kind) if prompt is None else prompt


class Journal:
    """Captions on disk, one line each, the first line says what was asked.

    Args:
        path: The file.
        asked: What decides the captions.
    """

    def __init__(self, path: Path, asked: str):
        self.path, self.mark = path, hashlib.sha256(asked.encode()).hexdigest()

    def read(self) -> dict[str, str]:
        """Captions by id; a line that a kill cut short is cut off."""
        if not self.path.is_file():
            return {}
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.decode().splitlines()
        if lines and json.loads(lines[0])["asked"] != self.mark:
            raise ValueError(
                f"{self.path}: begun with another model, engine, prompt or length. Repeat that "
                "command, or remove the file to begin anew."
            )
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        return dict(json.loads(line) for line in lines[1:])

    def __enter__(self) -> "Journal":
        new = not self.path.is_file() or not self.path.stat().st_size
        self.file = self.path.open("a", encoding="utf-8")
        if new:
            self._line({"asked": self.mark})
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, name: str, text: str) -> None:
        """Keep one caption."""
        self._line([name, text])

    def _line(self, value: Any) -> None:
        self.file.write(json.dumps(value) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())


class LocalEngine:
    """Our own model: batches of images, greedy.

    Args:
        model: What `open_model` opens.
        prompt: What is asked of every input, or None.
        max_new_tokens: Longest caption.
        images_per_batch: Images or videos at once.
        frames: Frames of a video; None takes those of training, or else 16.
        stride: Pooling of a frame; None takes that of training, or else 2.
    """

    def __init__(
        self,
        model: str,
        prompt: str | None,
        max_new_tokens: int,
        images_per_batch: int,
        frames: int | None = None,
        stride: int | None = None,
    ):
        self.source, self.prompt = model, prompt
        self.max_new_tokens, self.images_per_batch = max_new_tokens, images_per_batch
        self.frames, self.stride = frames, stride

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[Item, str | Exception]]:
        """Caption all items, batch by batch."""
        if not items:
            return
        # Not for an engine: it imports torch.
        from llava_lab.exchange.commands import open_model, show_videos

        model, policy = open_model(self.source)
        if any(item.kind == "video" for item in items):
            policy = show_videos(model, policy, self.frames, self.stride)
        for start in range(0, len(items), self.images_per_batch):
            batch = items[start : start + self.images_per_batch]
            try:
                said = self._ask(model, policy, batch)
            except (OSError, ValueError):  # one bad image must not cost its batch
                for item in batch:
                    try:
                        yield item, self._ask(model, policy, [item])[item.id]
                    except (OSError, ValueError) as error:
                        yield item, error
            else:
                for item in batch:
                    yield item, said[item.id]

    def _ask(self, model: Any, policy: Any, items: Sequence[Item]) -> dict[str, str]:
        from llava_lab.exchange.commands import answer_questions

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
            policy,
            questions,
            max_new_tokens=self.max_new_tokens,
            images_per_batch=self.images_per_batch,
        )


class RemoteEngine:
    """Any engine with OpenAI's chat completions, such as vLLM and SGLang; greedy.

    Refused and broken requests are tried again with longer and longer waits.

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
        self.url, self.model, self.prompt, self.stop = url.rstrip("/"), model, prompt, stop
        self.max_new_tokens, self.in_flight = max_new_tokens, in_flight
        self.session = requests.Session()
        retry = Retry(
            RETRIES, backoff_factor=BACKOFF, status_forcelist=RETRIED, allowed_methods=["POST"]
        )
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=in_flight, max_retries=retry)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        if key := os.environ.get("OPENAI_API_KEY"):
            self.session.headers["Authorization"] = f"Bearer {key}"

    def __call__(self, items: Sequence[Item]) -> Iterator[tuple[Item, str | Exception]]:
        """Caption all items, as answers come."""
        waiting = iter(items)
        asked: dict[Future[str], Item] = {}
        with ThreadPoolExecutor(self.in_flight) as pool:
            while True:
                for item in waiting:
                    asked[pool.submit(self._ask, item)] = item
                    if len(asked) >= self.in_flight:
                        break
                if not asked:
                    return
                finished, _ = wait(asked, return_when=FIRST_COMPLETED)
                for future in finished:
                    item = asked.pop(future)
                    error = future.exception()
                    if error is None:
                        yield item, future.result()
                    elif isinstance(error, (OSError, ValueError)):
                        yield item, error
                    else:
                        raise error

    def _ask(self, item: Item) -> str:
        # A folder of frames goes as so many pictures.
        frames = item.path.is_dir()
        kind = "image_url" if item.kind == "image" or frames else "video_url"
        files = frame_files(item.path) if frames else [item.path]
        content: list[dict[str, Any]] = [
            {"type": kind, kind: {"url": _data_url(file)}} for file in files
        ]
        content.append({"type": "text", "text": prompt_of(item, self.prompt)})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.max_new_tokens,
            "temperature": 0,
        }
        if self.stop is not None:
            body["stop"] = [self.stop]
        reply = self.session.post(f"{self.url}/chat/completions", json=body, timeout=600)
        if not reply.ok:
            raise ValueError(f"{self.url} says {reply.status_code}: {reply.text[:300]}")
        try:
            return str(reply.json()["choices"][0]["message"]["content"]).strip()
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"{self.url} answers without a choice: {reply.text[:300]}") from error


def _data_url(file: Path) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"
