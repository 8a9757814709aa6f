"""What mutated inputs are read as, and an independent reading that it must be equal to.

A reading raises what the package raises where an input is refused, and `Wrong` where it is read as
something else than its bytes say: by Python's json, by YAML's loader, by torchvision's, Pillow's or
FFmpeg's plain decoders.
"""

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torchvision.io import ImageReadMode, decode_image

from llava_lab.__main__ import main
from llava_lab.convert.load import load_model
from llava_lab.convert.released import import_checkpoint
from llava_lab.core.journal import Journal
from llava_lab.core.yaml_file import read_mapping
from llava_lab.data.media.clip import load_clip
from llava_lab.data.media.picture import load_image
from llava_lab.data.modules.preference import read_preferences
from llava_lab.data.questions import read_questions
from llava_lab.data.sample import read_samples
from llava_lab.data.source import Source
from llava_lab.evaluate.judge import JudgePrompt
from llava_lab.experiment.sweep import Sweep
from llava_lab.serve.caption_inputs import read_inputs

NOISE = "QA_GT_caption_based_noisy"
SHOWN = (".png", ".jpg", ".mp4")


class Wrong(Exception):
    """An input that was read as something else than what it says."""


def same(found: Any, expected: Any, what: str) -> None:
    """Refuse a reading that is not the independent one."""
    if found != expected:
        raise Wrong(f"{what}: {found!r:.300} in place of {expected!r:.300}")


# Pictures and videos.


def picture(path: Path) -> None:
    """A picture's pixels, as torchvision's decoders see them; of other formats, as Pillow does."""
    found = np.asarray(load_image(path)).astype(int)
    content = path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        kind, mode = image.format, image.mode
        plain = np.asarray(image.convert("RGB")).astype(int)
    if kind in ("PNG", "JPEG") and mode in ("RGB", "L", "P") and "transparency" not in image.info:
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        try:
            other = decode_image(data, ImageReadMode.RGB)
        except RuntimeError:  # stricter than we are, as about a text chunk
            other = None
        if other is not None:
            plain = other.permute(1, 2, 0).numpy().astype(int)
    if mode in ("I;16", "I;16B", "I", "F"):
        return  # how levels are scaled is tested elsewhere
    if found.shape != plain.shape or np.abs(found - plain).max() > (4 if kind == "JPEG" else 0):
        raise Wrong(f"{path}: pixels are not those of another decoder")


def video(path: Path) -> None:
    """Frames of a video, as a decoder shows them that goes from its first byte to its last."""

    def every(count: int, fps: float) -> Sequence[int]:
        return range(0, count, 3)

    clip = load_clip(path, every)
    shown, damaged, sound = [], set(), True
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(container.streams.video[0])):
            # A frame is drawn upon the one before it, up to the next key frame.
            sound = not frame.is_corrupt and (sound or bool(frame.key_frame))
            damaged |= set() if sound else {number}
            shown.append(frame.to_image())
    wanted = range(0, len(shown), 3)
    same(len(clip.frames), len(wanted), f"{path}: number of frames")
    for number, frame in zip(wanted, clip.frames, strict=True):
        if number in damaged:
            raise Wrong(f"{path}: frame {number} rests on one that the decoder calls corrupt")
        if not np.array_equal(np.asarray(frame), np.asarray(shown[number])):
            raise Wrong(f"{path}: frame {number} is not that of a whole decode")


# Rows.


def rows_of(path: Path) -> list[Any]:
    """The rows of a file by Python's own reader."""
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".json":
        return json.loads(text)
    return [json.loads(line) for line in text.replace("\r", "\n").split("\n") if line.strip()]


def nothing_passed_over(row: dict[str, Any], read: Sequence[str]) -> None:
    """Refuse a row of which a picture, a video or a conversation was not read."""
    for key, value in row.items():
        named = value if isinstance(value, list) else [value]
        shows = any(isinstance(name, str) and name.endswith(SHOWN) for name in named)
        talks = any(isinstance(turn, dict) and ({"from", "role"} & set(turn)) for turn in named)
        known = [row.get(name) for name in read]
        if key not in ("id", "question_id", *read) and (shows or talks) and value not in known:
            raise Wrong(f"key {key!r} is passed over: {value!r:.200}")


def media_of(row: dict[str, Any]) -> list[str]:
    """Names of what a row shows."""
    for key in ("image", "images", "video"):
        if row.get(key):
            return row[key] if isinstance(row[key], list) else [row[key]]
    return []


def names_of(images: Sequence[Path], folder: Path) -> list[str]:
    """Names of files as rows have them."""
    return [str(image.relative_to(folder)) for image in images]


def samples(path: Path) -> None:
    """Conversations."""
    folder = path.parent / "images"
    found = read_samples(Source(path, folder), 0, videos=True)
    rows = rows_of(path)
    same(len(found), len(rows), "number of rows")
    for number, (sample, row) in enumerate(zip(found, rows, strict=True), 1):
        nothing_passed_over(row, ("image", "video", "conversations"))
        turns = [[turn["from"], turn["value"].replace(NOISE, "")] for turn in row["conversations"]]
        turns = turns[1:] if turns[0][0] == "gpt" else turns
        told = [[{"user": "human", "assistant": "gpt"}[t.role], t.text] for t in sample.turns]
        if row.get("video"):
            turns = [[role, text.replace("<video>", "<image>")] for role, text in turns]
        same(told, turns, "turns")
        if path.suffix == ".jsonl":
            number = int(sample.source.rsplit(" ", 1)[1])
        same(sample.id, str(row.get("id", number)), "id")
        same(names_of(sample.images, folder.absolute()), media_of(row), "pictures")
        same(sum(text.count("<image>") for _, text in told), len(sample.images), "placeholders")


def questions(path: Path) -> None:
    """Questions."""
    folder = path.parent / "images"
    found = read_questions(path, folder)
    rows = rows_of(path)
    if "conversations" in rows[0]:
        return  # read as conversations, which are tested above
    same(len(found), len(rows), "number of rows")
    for question, row in zip(found, rows, strict=True):
        nothing_passed_over(row, ("image", "video", "text", "caption", "answer", "answers"))
        same(question.id, str(row["question_id"]), "id")
        marks = ("<image>", "<video>") if row.get("video") else ("<image>",)
        same(bare(question.text, marks), bare(row["text"], marks), "text")
        same(names_of(question.images, folder.absolute()), media_of(row), "pictures")
        same(question.text.count("<image>"), len(question.images), "placeholders")
        same(question.category, row.get("category"), "category")
        answers = row["answer"] if row.get("answer") is not None else row.get("answers")
        answers = [] if answers is None else answers if isinstance(answers, list) else [answers]
        same(list(question.answers), [text.replace(NOISE, "") for text in answers], "answers")


def bare(text: str, marks: Sequence[str] = ("<image>", "<video>")) -> str:
    """Text without placeholders and white space."""
    for mark in marks:
        text = text.replace(mark, "")
    return "".join(text.replace(NOISE, "").split())


def flat(value: Any) -> str:
    """The text of a field as TRL has it: text, or one message, or its parts."""
    if isinstance(value, str):
        return value
    (message,) = value
    content = message["content"]
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or f"<{part['type']}>" for part in content)


def preferences(path: Path) -> None:
    """Pairs of answers."""
    folder = path.parent / "images"
    found = read_preferences(Source(path, folder), 0)
    rows = rows_of(path)
    same(len(found), len(rows), "number of rows")
    for pair, row in zip(found, rows, strict=True):
        nothing_passed_over(row, ("image", "images", "video", "prompt", "chosen", "rejected"))
        prompt, chosen, rejected = (row.get(key) for key in ("prompt", "chosen", "rejected"))
        if prompt is None:
            prompt, chosen, rejected = chosen[:-1], chosen[-1:], rejected[-1:]
        same(bare(pair.turns[0].text), bare(flat(prompt)), "prompt")
        same(pair.turns[0].text.count("<image>"), len(pair.images), "placeholders")
        same(pair.turns[1].text, flat(chosen).replace(NOISE, ""), "chosen")
        same(pair.rejected, flat(rejected).replace(NOISE, ""), "rejected")
        same(names_of(pair.images, folder.absolute()), media_of(row), "pictures")
        asked = flat(prompt).count("<image>") + flat(prompt).count("<video>")
        same(asked in (0, len(pair.images)), True, "placeholders that match")


def captions(path: Path) -> None:
    """Rows of pictures and videos to caption."""
    found = read_inputs(path, path.parent / "images")
    rows = rows_of(path)
    for item, row in zip(found, rows, strict=True):
        nothing_passed_over(row, ("image", "video", "conversations"))
        same([item.name], media_of(row), "picture")
        same(item.id, item.name if row.get("id") is None else str(row["id"]), "id")


# YAML files and records.


def sweep(path: Path) -> None:
    """A sweep file."""
    found, said = Sweep.read(path), yaml.safe_load(path.read_text())
    same(found.name, str(said.get("sweep", path.stem)), "sweep")
    same(found.seeds, tuple(said.get("seeds", [0])), "seeds")
    same(list(found.axes), list(said["axes"]), "axes")
    same(
        [len(values) for values in found.axes.values()], [len(v) for v in said["axes"].values()], ""
    )
    found.points()


def judge_prompt(path: Path) -> None:
    """What a judge is told."""
    found, said = JudgePrompt(str(path), ("question",)).texts, yaml.safe_load(path.read_text())
    same(found, {role: text.strip("\n") for role, text in said.items()}, "texts")


def options(path: Path) -> None:
    """An options file's top level."""
    same(read_mapping(path), yaml.safe_load(path.read_text()) or {}, "options")


def journal(path: Path) -> None:
    """A journal; a cut last line is left out."""
    path = path.with_name("rows.jsonl.journal")  # of another name it is none
    found = Journal(path.with_suffix(""), "asked").read()
    lines = path.read_bytes().decode().split("\n") if path.is_file() else []
    same(found, dict(json.loads(line) for line in lines[1:-1]), "results")


def verb(arguments: Sequence[str]) -> str:
    """What a verb prints; its one message becomes a ValueError, a fault an AssertionError."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main([*arguments])
    except SystemExit as stopped:
        said = err.getvalue() if isinstance(stopped.code, int | None) else f"{stopped.code}"
        if stopped.code in (0, None):
            return out.getvalue()
        errors = [line for line in said.splitlines() if "error:" in line]
        if stopped.code == 2 and len(errors) == 1:
            raise ValueError(said) from None
        raise AssertionError(f"exit status {stopped.code}: {said[-2000:]}") from None
    return out.getvalue()


def results(path: Path) -> None:
    """A run's results as a table."""
    verb(["table", str(path)])
    said = json.loads(path.read_text())
    same(isinstance(said["stages"], list), True, "stages")


# Checkpoints.


def ours(path: Path) -> None:
    """A MODEL folder of ours: its tensors are those of its files."""
    folder = path.parent
    model, _ = load_model(folder)
    state = model.state_dict()
    for file in folder.rglob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if not bool(torch.isfinite(tensor.float()).all()):
                raise Wrong(f"{file}: {name} is not finite")
            if used(name):
                same_tensor(tensor, list(state.values()), f"{file}: {name}")


def released(path: Path) -> None:
    """A released checkpoint, imported and loaded: its tensors are those of its files."""
    out = path.parent.with_name("imported")
    import_checkpoint(str(path.parent), out, "v1")
    model, _ = load_model(out)
    state = list(model.state_dict().values())
    for name, tensor in load_file(path.parent / "model.safetensors").items():
        if used(name):
            same_tensor(tensor, state, name)


def used(name: str) -> bool:
    """Whether a tensor is of a layer that the model has: the tower ends before its last one."""
    return "post_layernorm" not in name and "encoder.layers.2." not in name


def same_tensor(tensor: torch.Tensor, state: Sequence[torch.Tensor], what: str) -> None:
    """Refuse a model without this tensor."""
    alike = (each for each in state if each.shape == tensor.shape)
    if not any(torch.equal(each, tensor.to(each.dtype)) for each in alike):
        raise Wrong(f"{what}: no such tensor in the model")
