"""Exports served by vLLM: `caption` by the engine against our own engine, token for token.

    pytest -n 0 -m serving -s tests/serving

Every model is tiny and random, large enough for vLLM: a head of 32, views of patch_size**2 pixels
or more, patch grids of even sides. The first run makes vLLM's environment (`environment.py`).
"""

import base64
import json
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from PIL import Image
from vllm_server import serve

from llava_lab.__main__ import main
from llava_lab.convert.save import export_model
from llava_lab.data.questions import Question
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.evaluate.groups import by_images
from llava_lab.evaluate.prompts import question_loader
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.base import Encoder
from llava_lab.model.encoder.clip import ClipEncoder
from llava_lab.model.encoder.siglip import SiglipEncoder
from llava_lab.model.generate import answer
from llava_lab.model.llava import Llava
from llava_lab.model.llm import CausalLM
from llava_lab.serve.caption_engines import prompt_of
from llava_lab.serve.caption_inputs import CaptionInput, read_inputs
from llava_lab.tiny_world.videos import TinyVideos

pytestmark = [pytest.mark.serving, pytest.mark.timeout(1800)]

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 7,
}
LM = {
    "vocab_size": 768,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    # Large, so that answers differ from picture to picture.
    "initializer_range": 0.3,
}
SIZES = [
    *((56, 56), (100, 60), (60, 100), (300, 31), (31, 300), (13, 9)),
    *((640, 480), (480, 641), (224, 224), (112, 56), (57, 55), (1000, 40)),
]
GRIDS = "1x2, 2x1, 2x2, 3x1, 1x3"
LENGTH, FRAMES = 24, 8
CASES: dict[str, tuple[type[Encoder], str, str, Views]] = {
    "llava": (ClipEncoder, "llama", "v1", Pad()),
    "llava-siglip": (SiglipEncoder, "qwen2", "qwen_1_5", Square("squash")),
    "next": (ClipEncoder, "mistral", "mistral_instruct", AnyRes(GRIDS, ties="transformers")),
    "next-video": (ClipEncoder, "llama", "v1", Frames(FRAMES, image=AnyRes(GRIDS))),
}


def make(encoder: type[Encoder], lm: str, template: str, views: Views) -> Llava:
    torch.manual_seed(0)
    config = {**LM, "model_type": lm}
    llm = CausalLM(None, template, pretrained=False, config=config, tokenizer="asset:tokenizer")
    tower = encoder(None, layer=-2, pretrained=False, config=TOWER)
    model = Llava(tower, MLP, llm, newline=views.newline).eval()
    for weight in model.connector.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


def media(folder: Path, videos: bool) -> Path:
    """Pictures of several shapes, or clips of several lengths."""
    if videos:
        TinyVideos(folder / "world", train_videos=3, eval_videos=5).generate()
        return folder / "world" / "videos"
    draw = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for number, size in enumerate(SIZES):
        levels = draw.integers(0, 255, (5, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)
        picture.save(folder / "pictures" / f"{number:02d}.png")
    return folder / "pictures"


def captions(folder: Path, out: Path, model: str, *more: str) -> dict[str, str]:
    """What `caption` writes; an engine leaves out a character whose bytes are not all there."""
    arguments = ["--out", str(out), "--model", model, "--max-new-tokens", str(LENGTH), *more]
    main(["caption", str(folder), *arguments])
    rows = json.loads(out.read_text())
    return {row["id"]: row["conversations"][1]["value"].rstrip("\ufffd ") for row in rows}


def answers(items: list[CaptionInput], out: Path, model: str, *more: str) -> dict[str, str]:
    """What `answer` writes of two questions about each input."""
    rows = [
        {"question_id": f"{item.id}/{text}", item.kind: item.name, "text": text}
        for item in items
        for text in ("What is it?", "Which colors are there?")
    ]
    asked = out.with_suffix(".asked.jsonl")
    asked.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    images = str(items[0].path)[: -len(items[0].name)]
    flags = ["--images", images, "--out", str(out), "--max-new-tokens", str(LENGTH), *more]
    main(["answer", model, str(asked), *flags])
    found = [json.loads(line) for line in out.read_text().splitlines()]
    return {row["question_id"]: row["text"].rstrip("\ufffd ") for row in found}


def our_tokens(
    model: Llava, views: Views, items: list[CaptionInput]
) -> dict[str, tuple[list[int], list[int]]]:
    """Prompt and answer of every input by the model that was exported."""
    questions = [
        Question(item.id, (item.path,), f"<image>\n{prompt_of(item, None)}", None, (), item.name)
        for item in items
    ]
    found = {}
    for asked in question_loader(model, by_images(questions), views, max_new_tokens=LENGTH):
        said = answer(model, asked)
        found[said.ids[0]] = (asked.batch.ids.tolist(), said.tokens[0])
    return found


def their_tokens(url: str, name: str, item: CaptionInput) -> tuple[list[int], list[int]]:
    """Prompt and answer of an input by the engine."""
    key = f"{item.kind}_url"
    kind = "video/mp4" if item.kind == "video" else "image/png"
    data = base64.b64encode(item.path.read_bytes()).decode()
    content = [
        {"type": key, key: {"url": f"data:{kind};base64,{data}"}},
        {"type": "text", "text": prompt_of(item, None)},
    ]
    body = {"model": name, "messages": [{"role": "user", "content": content}], "temperature": 0}
    body |= {"max_tokens": LENGTH, "return_token_ids": True}
    reply = requests.post(f"{url}/chat/completions", json=body, timeout=600)
    assert reply.ok, reply.text
    return reply.json()["prompt_token_ids"], reply.json()["choices"][0]["token_ids"]


@pytest.mark.parametrize("name", CASES)
def test_vllm_answers_as_we_do(name: str, tmp_path: Path) -> None:
    *parts, views = CASES[name]
    model = make(*parts, views)
    out = tmp_path / name
    export_model(model, views, out)
    folder = media(tmp_path, views.videos)
    items = read_inputs(folder, None)
    began = time.perf_counter()
    with serve(str(out), name, tmp_path / "vllm.log", FRAMES) as url:
        ready = time.perf_counter()
        theirs = captions(folder, tmp_path / "theirs.json", name, "--engine-url", url)
        said = answers(items, tmp_path / "theirs.jsonl", name, "--engine-url", url)
        tokens = {item.id: their_tokens(url, name, item) for item in items}
        done = time.perf_counter()
    frames = ["--frames", str(FRAMES)] if views.videos else []
    ours = captions(folder, tmp_path / "ours.json", str(out), *frames)
    mismatches = [key for key in ours if ours[key] != theirs[key]]
    known = answers(items, tmp_path / "ours.jsonl", str(out), *frames)
    mismatches += [key for key in known if known[key] != said[key]]
    key = "video_token_index" if views.videos else "image_token_index"
    place = json.loads((out / "config.json").read_text())[key]
    for name_, (prompt, said) in our_tokens(model, views, items).items():
        prompt = [token if token >= 0 else place for token in prompt]
        if (prompt, said) != tokens[name_]:
            mismatches.append(name_)
    print(
        f"\n{name}: {4 * len(items)} requests, {len(mismatches)} mismatches, "
        f"{ready - began:.0f} s to start, {done - ready:.1f} s to answer"
    )
    assert not mismatches
    assert len(set(ours.values())) > len(items) // 2, "the pictures must matter"
