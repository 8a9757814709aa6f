"""`answer` and `caption` by our engine, by vLLM and by transformers' `generate`, from files.

    python tests/benchmarks/serve.py --lm HuggingFaceTB/SmolLM2-135M-Instruct    two CPU cores
    python tests/benchmarks/serve.py --size 7b                                   one GPU of 80 GB
    python tests/benchmarks/serve.py --size tiny --rounds 1 --pictures 1 --videos 1    a trial

18 questions about each picture, 5 about each video of 16 frames, and captions of as many others;
greedy.
What is measured is what a user waits for but for the start: files are read, decoded and scaled.

    ours        what the verbs do, all pictures at once
    vLLM        the same verbs with --engine-url: its OpenAI server on this machine, all requests at
                once; tests/serving/environment.py makes its environment. On a GPU: LLAVA_LAB_VLLM
                names one with `pip install vllm`
    generate    transformers' `generate`, one question after the other, for `--plain` of the
                questions: each computes its picture anew

`7b` takes released checkpoints from the hub. Other sizes are exported by us in published shapes:
tower and connector are random, since none so small is released, and so is the LM unless `--lm`
names one. All sides have the same cores and take turns; every round has pictures and videos that
no side has seen. Tokens are compared with ours, and differences counted.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import requests
import torch
from answer import QUESTIONS, enliven
from common import SIZES, Size, llama, medians, options, prepared, report, say, tower
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers import __version__ as transformers_version
from transformers.utils import logging

from llava_lab.convert.save import export_model
from llava_lab.core.journal import Journal
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.questions import Question
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.video import Frames
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.clip import ClipEncoder
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.serve import answer as answering
from llava_lab.serve.caption_engines import LocalEngine, RemoteEngine, prompt_of
from llava_lab.serve.caption_inputs import CaptionInput
from llava_lab.serve.models import show_videos
from llava_lab.serve.remote import RemoteModel, answer_remotely

sys.path.append(str(Path(__file__).resolve().parents[1] / "serving"))
from vllm_server import ON_CPU, serve

FRAMES, FILM = 16, 48
TOWER = tower(56, 7, 32, 64, 4, 2)
TINY = Size(llama(64, 96, 2, 2, 1, 768), TOWER, 64)
RELEASED = {"pictures": "llava-hf/llava-1.5-7b-hf", "videos": "llava-hf/LLaVA-NeXT-Video-7B-hf"}
ASKED = (
    "What is in the picture?",
    "Which colors are there?",
    "How many things are there?",
    "What is at the left?",
    "What is at the right?",
    "Is anything written there?",
    "What is the largest thing?",
    "What happens next?",
    "Is it indoors or outdoors?",
    "What is at the top?",
    "What is at the bottom?",
    "Are there people?",
    "What is unusual about it?",
    "Which shape is in the middle?",
    "What time of the day is it?",
    "Is it bright or dark?",
    "What would be a good title?",
    "What is the smallest thing?",
)
Tokens = dict[str, list[int]]
Task = Callable[[], Tokens]


def make(given: argparse.Namespace, kind: str, folder: Path) -> str:
    """The checkpoint that all sides load: a released one's id, or the folder of one of ours."""
    if given.size == "7b":
        return RELEASED[kind]
    size = TINY if given.size == "tiny" else SIZES[given.size]
    torch.manual_seed(0)
    if given.lm:
        llm = CausalLM(given.lm, given.template, 8192)
    else:
        # Words are those of our small tokenizer: every token is to have a text.
        config = {**size.lm, "vocab_size": 768, "bos_token_id": 1, "eos_token_id": 2}
        config |= {"pad_token_id": 3}
        llm = CausalLM(None, "v1", 8192, False, None, config, "asset:tokenizer")
        enliven(llm.model)
    views = Frames(FRAMES, image=AnyRes("1x2, 2x1, 2x2")) if kind == "videos" else Pad()
    encoder = ClipEncoder(None, pretrained=False, config=size.encoder)
    model = Llava(encoder, MLP, llm, newline=views.newline).eval()
    for weight in model.connector.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=2 * weight.shape[1] ** -0.5)
    out = folder / kind
    export_model(model, views, out, verify=False)
    return str(out)


def write_pictures(folder: Path, number: int, draw: np.random.Generator) -> list[Path]:
    """Soft noise in the size of a photograph."""
    paths = [folder / f"{each}.jpg" for each in range(number)]
    for path in paths:
        levels = draw.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def write_videos(folder: Path, number: int, draw: np.random.Generator) -> list[Path]:
    """Three seconds of noise that moves, in H.264."""
    paths: list[Path] = [VideoPath(folder / f"{each}.mp4") for each in range(number)]
    for path in paths:
        levels = draw.integers(0, 255, (8, 24, 3), dtype=np.uint8)
        whole = Image.fromarray(levels).resize((1024, 336), Image.Resampling.BICUBIC)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=16, options={"threads": "1"})
            stream.width = stream.height = 336
            stream.pix_fmt = "yuv420p"
            for place in range(FILM):
                shown = whole.crop((14 * place, 0, 14 * place + 336, 336))
                container.mux(stream.encode(av.VideoFrame.from_image(shown)))
            container.mux(stream.encode())
    return paths


def work(
    kind: str, number: int, folder: Path, draw: np.random.Generator
) -> tuple[list[Question], list[CaptionInput]]:
    """The questions and the captions of a round, about files that no request has named before."""
    write = write_pictures if kind == "pictures" else write_videos
    for what in ("asked", "shown"):
        (folder / what).mkdir(parents=True)
    asked = [
        Question(f"{path.name}/{n}", (path,), f"<image>\n{text}", None, (), path.name)
        for path in write(folder / "asked", number, draw)
        for n, text in enumerate(ASKED[: QUESTIONS[kind]])
    ]
    shown = write(folder / "shown", number, draw)
    return asked, [CaptionInput(path.name, path.name, path) for path in shown]


class Ours:
    """The verbs on our engine."""

    def __init__(self, source: str, kind: str, given: argparse.Namespace):
        self.given, self.tokens = given, Tokens()
        template = "v1" if given.size == "7b" else None
        self.engine = LocalEngine(source, None, given.caption, 8, FRAMES, template=template)
        self.model, self.views = self.engine.opened
        self.model.to(given.dtype)
        if kind == "videos":
            self.views = show_videos(self.model, self.views, FRAMES, None)
        tell = answering.answer

        def told(model: Any, asked: Any) -> Any:
            said = tell(model, asked)
            self.tokens |= dict(zip(said.ids, said.tokens, strict=True))
            return said

        answering.answer = told

    def answer(self, asked: Sequence[Question]) -> Tokens:
        length = self.given.max_new_tokens
        more = {"max_new_tokens": length, "images_per_batch": 8}
        answering.answer_questions(self.model, self.views, asked, **more)
        return {each.id: self.tokens[each.id] for each in asked}

    def caption(self, shown: Sequence[CaptionInput]) -> Tokens:
        raise_any(reply for _, reply in self.engine(shown))
        return {each.id: self.tokens[each.id] for each in shown}


class Remote(RemoteModel):
    """A model behind a server, which also tells the tokens of its answers."""

    def __init__(self, url: str, length: int):
        super().__init__(url, "mine", length, in_flight=128)
        self.sampling["return_token_ids"] = True
        self.here, self.tokens = threading.local(), {}
        self.engine.session.hooks["response"].append(self._keep)

    def _keep(self, reply: requests.Response, **_: Any) -> None:
        if reply.ok:
            self.here.tokens = reply.json()["choices"][0]["token_ids"]

    def ask(self, media: Sequence[Path], text: str, whole: bool = True) -> str:
        """Captions may be cut off here, as those of our engine are."""
        said = super().ask(media, text, whole=False)
        self.tokens[media[0].name, text] = self.here.tokens
        return said


class Vllm:
    """The verbs on a server."""

    def __init__(self, url: str, given: argparse.Namespace):
        self.url, self.given = url, given

    def answer(self, asked: Sequence[Question]) -> Tokens:
        model = Remote(self.url, self.given.max_new_tokens)
        with tempfile.TemporaryDirectory() as folder:
            answer_remotely(model, asked, None, Journal(Path(folder) / "answers", ""))
        return {each.id: model.tokens[each.images[0].name, each.prompt] for each in asked}

    def caption(self, shown: Sequence[CaptionInput]) -> Tokens:
        model = Remote(self.url, self.given.caption)
        raise_any(reply for _, reply in RemoteEngine(model, None)(shown))
        return {each.id: model.tokens[each.name, prompt_of(each, None)] for each in shown}


class Generate:
    """Transformers alone, one question after the other."""

    def __init__(self, source: str, given: argparse.Namespace):
        self.given = given
        self.processor = AutoProcessor.from_pretrained(source)
        # Pictures are scaled by Pillow as ours are, and not by torchvision, which rounds otherwise.
        pillow = AutoImageProcessor.from_pretrained(source, backend="pil")
        self.processor.image_processor = pillow
        kind = AutoModelForImageTextToText
        self.model = kind.from_pretrained(source, dtype=given.dtype).eval().to(given.device)

    def answer(self, asked: Sequence[Question]) -> Tokens:
        length = self.given.max_new_tokens
        some = random.Random(1).sample(list(asked), min(self.given.plain, len(asked)))
        return {each.id: self._say(each.images[0], each.prompt, length) for each in some}

    def caption(self, shown: Sequence[CaptionInput]) -> Tokens:
        some = shown[: max(1, self.given.plain // 4)]
        return {
            each.id: self._say(each.path, prompt_of(each, None), self.given.caption)
            for each in some
        }

    @torch.no_grad()
    def _say(self, path: Path, text: str, length: int) -> list[int]:
        is_video = isinstance(path, VideoPath)
        content = [{"type": "video" if is_video else "image"}, {"type": "text", "text": text}]
        turns = [{"role": "user", "content": content}]
        prompt = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        media = {"videos": [decoded(path)]} if is_video else {"images": [Image.open(path)]}
        inputs = self.processor(text=[prompt], **media, return_tensors="pt")
        inputs = inputs.to(self.given.device, self.given.dtype)
        said = self.model.generate(**inputs, max_new_tokens=length, do_sample=False)
        return said[0, inputs["input_ids"].shape[1] :].tolist()


def decoded(path: Path) -> np.ndarray:
    """Frames of a video, spread evenly."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack([frames[i] for i in np.linspace(0, len(frames) - 1, FRAMES, dtype=int)])


def raise_any(replies: Iterator[Any]) -> None:
    """A reply that is an error ends the run."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise SystemExit(str(reply))


@contextmanager
def opened(source: str, kind: str, given: argparse.Namespace, folder: Path) -> Iterator[Any]:
    """All sides, by name."""
    ways: dict[str, Any] = {"ours": Ours(source, kind, given)}
    ways["generate"] = Generate(source, given)
    if given.without_vllm:
        yield ways
        return
    gpu = given.device.type == "cuda"
    # Beside ours and transformers' on one GPU.
    more = ["--dtype", "bfloat16", "--gpu-memory-utilization", "0.45"] if gpu else ON_CPU
    log = folder / f"{kind}.log"
    with serve(source, "mine", log, FRAMES, more, 0 if gpu else given.threads) as url:
        ways["vLLM"] = Vllm(url, given)
        given.vllm = requests.get(f"{url.removesuffix('/v1')}/version", timeout=30).json()
        yield ways


def one_round(
    ways: dict[str, Any], asked: list[Question], shown: list[CaptionInput], turn: int
) -> tuple[dict[str, float], dict[str, Tokens]]:
    """Rates of all sides, and what they said; another side begins in each round."""
    names = [*ways]
    rates, said = {}, {}
    for name in names[turn % len(names) :] + names[: turn % len(names)]:
        for what, todo in (("questions", asked), ("captions", shown)):
            way = ways[name].answer if what == "questions" else ways[name].caption
            began = time.perf_counter()
            tokens = way(todo)
            rates[f"{name}: {what}"] = len(tokens) / (time.perf_counter() - began)
            said.setdefault(name, {}).update(tokens)
    return rates, said


def measured(
    kind: str, number: int, given: argparse.Namespace, folder: Path
) -> Iterator[tuple[str, dict[str, float | str]]]:
    """A row of the table for each side."""
    draw = np.random.default_rng(0)
    rounds, equal, total = [], {}, {}
    with opened(make(given, kind, folder), kind, given, folder) as ways:
        for turn in range(given.rounds + 1):
            todo = work(kind, number if turn else 1, folder / f"{kind}-{turn}", draw)
            rates, said = one_round(ways, *todo, turn)
            if not turn:
                say(f"{kind}: all sides are warm")
                continue
            say(f"{kind}, round {turn}: " + ", ".join(f"{n} {r:.2f}/s" for n, r in rates.items()))
            rounds.append(rates)
            for name, tokens in said.items():
                same = sum(said["ours"][key] == found for key, found in tokens.items())
                equal[name] = equal.get(name, 0) + same
                total[name] = total.get(name, 0) + len(tokens)
    rate = medians(rounds)
    ratio = medians([over_generate(each) for each in rounds])
    for name in ways:
        row: dict[str, float | str] = {}
        for what in ("questions", "captions"):
            row[f"{what}/s"] = rate[f"{name}: {what}"]
            row[f"{what}, over generate"] = ratio[f"{name}: {what}"]
        row["same tokens as ours"] = f"{equal[name]} of {total[name]}"
        yield f"{number} {kind}: {name}", row


def over_generate(rates: dict[str, float]) -> dict[str, float]:
    """How many times as fast as `generate` each side is."""
    return {name: r / rates[f"generate: {name.partition(': ')[2]}"] for name, r in rates.items()}


def main() -> None:
    """Pictures, then videos; a table of both."""
    parser = options(__doc__, "135m")
    parser.add_argument("--lm", help="folder or hub id of the LM, in place of random weights")
    parser.add_argument("--template", default="qwen_1_5", help="of --lm; this is ChatML")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--videos", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--caption", type=int, default=48, help="longest caption in tokens")
    parser.add_argument(
        "--plain", type=int, metavar="N", default=4, help="asked of `generate` a round"
    )
    parser.add_argument("--without-vllm", action="store_true")
    parser.add_argument("--conditions", default="", help="of the machine, for the title")
    parser.set_defaults(threads=2)
    given = prepared(parser)
    given.vllm = {}
    logging.disable_progress_bar()
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, number in (("pictures", given.pictures), ("videos", given.videos)):
            if number:
                table |= dict(measured(kind, number, given, Path(folder)))
    where = (
        torch.cuda.get_device_name() if given.device.type == "cuda" else f"{given.threads} cores"
    )
    parts = [f"Serving {given.size}", where, f"at most {given.max_new_tokens} tokens an answer"]
    versions = {"vllm": given.vllm.get("version"), "transformers": transformers_version}
    parts += [f"{given.caption} a caption", *(f"{name} {each}" for name, each in versions.items())]
    parts += [given.conditions] if given.conditions else []
    report(", ".join(parts), table, given.json, lm=given.lm and Path(given.lm).name, **versions)


if __name__ == "__main__":
    main()
