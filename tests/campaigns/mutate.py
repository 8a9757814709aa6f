"""Mutations of a file: of its bytes, of its place on disk, and of the values that it holds."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

Bytes = Callable[[bytes, random.Random], bytes]


def _span(content: bytes, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.choice((1, 2, 16, 200, 4000)))


def flip(content: bytes, rng: random.Random) -> bytes:
    """Flip one to eight bits."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(content: bytes, rng: random.Random) -> bytes:
    """Keep the beginning."""
    return content[: rng.randrange(len(content))]


def behead(content: bytes, rng: random.Random) -> bytes:
    """Keep the end."""
    return content[rng.randrange(len(content)) :]


def drop(content: bytes, rng: random.Random) -> bytes:
    """Leave a stretch out."""
    start, end = _span(content, rng)
    return content[:start] + content[end:]


def zero(content: bytes, rng: random.Random) -> bytes:
    """Write zeros over a stretch."""
    start, end = _span(content, rng)
    return content[:start] + bytes(end - start) + content[end:]


def repeat(content: bytes, rng: random.Random) -> bytes:
    """Write a stretch twice."""
    start, end = _span(content, rng)
    return content[:end] + content[start:end] + content[end:]


def insert(content: bytes, rng: random.Random) -> bytes:
    """Put random bytes somewhere."""
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.choice((1, 4, 100))) + content[place:]


def empty(content: bytes, rng: random.Random) -> bytes:
    """Leave nothing."""
    return b""


def append(content: bytes, rng: random.Random) -> bytes:
    """Put something behind the end: bytes, or the file once more."""
    return content + rng.choice((b"\0", b"\n", b"]", rng.randbytes(50), content))


def pointer(content: bytes, rng: random.Random) -> bytes:
    """What Git leaves of a large file, or a server in place of one."""
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"
    return rng.choice((lfs, b"<!DOCTYPE html><html>Not found</html>"))


BYTES: tuple[Bytes, ...] = (
    *(flip, flip, cut, cut, behead, drop, zero, repeat, insert, empty, append, pointer),
)


def recode(content: bytes, rng: random.Random) -> bytes:
    """Another encoding of a text, or other ends of its lines."""
    text = content.decode()
    name = rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "crlf", "cr"))
    if name in ("crlf", "cr"):
        return text.replace("\n", "\r\n" if name == "crlf" else "\r").encode()
    return text.encode(name, errors="replace")


def garble(content: bytes, rng: random.Random) -> bytes:
    """What people and programs do to JSON that is none then, or another."""
    text = content.decode()
    deep = "[" * rng.choice((50, 5_000, 300_000))
    swaps = (
        ("}", ",}"),
        ("]", ",]"),
        ('"', "'"),
        (":", "="),
        ("{", '{"id": 1, "id": 2, '),
        ("{", '{"x": NaN, '),
        ("{", '{"x": Infinity, '),
        ("{", '{"x": ' + "9" * rng.choice((50, 5000)) + ", "),
        ("{", '{"x": 1e999, '),
        ("{", '{"x": ' + deep + ", "),
        ("{", '{"x": ' + deep + deep.replace("[", "]") + ", "),
        (": ", ': "\\ud83d" '),
        ('": "', '": "\\ud83d'),
        ('": "', '": "\\u0000'),
        ('": "', '": "\0'),
        ("\n", "\n// a remark\n"),
    )
    old, new = rng.choice(swaps)
    places = [at for at in range(len(text)) if text.startswith(old, at)]
    if not places:
        return flip(content, rng)
    at = rng.choice(places)
    return (text[:at] + new + text[at + len(old) :]).encode()


def move(path: Path, rng: random.Random) -> Path:
    """Something else in the file's place, or another ending; returns where it is now."""
    kind = rng.choice(("folder", "loop", "dangling", "gone", "ending", "pipe", "link"))
    if kind == "ending":
        endings = (".json", ".jsonl", ".png", ".jpg", ".mp4", ".yaml", ".txt", "", ".JSON")
        return path.rename(path.with_suffix(rng.choice(endings)))
    kept = path.with_name("kept-" + path.name)
    path.rename(kept)
    match kind:
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "dangling":
            path.symlink_to("nowhere")
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(kept)
    return path


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 7, 10**30, 1.5, "", " ", "x", "\0", "<image>", "<video>", "</s>"),
    *("../secret.png", "/etc/passwd", "a" * 5000, [], {}, [[]], [None], {"a": 1}, ["a", 1]),
    *("null", "None", "NaN", "é", "日本語", "\u2028", "\ufeff", "1e5", "yes", "${a}", "!!python/x"),
)
NAMES = (
    *("images", "image", "video", "videos", "messages", "conversation", "Image", "img", "prompt"),
    *("text", "question", "answer", "system", "id", "imgae", "image_path", "media", "caption"),
)


def change(value: Any, rng: random.Random) -> Any:
    """The value with one of its parts changed, at any depth."""
    places = list(_places(value))
    if not places:
        return deepcopy(rng.choice(ODD))
    holder, key = rng.choice(places)
    match rng.choice(("odd", "odd", "delete", "rename", "twice", "nest", "swap", "list")):
        case "odd":
            holder[key] = deepcopy(rng.choice(ODD))
        case "delete":
            del holder[key]
        case "rename" if isinstance(holder, dict):
            holder[rng.choice((*NAMES, f"{key}s", str(key)[:-1], str(key).upper()))] = holder.pop(
                key
            )
        case "twice" if isinstance(holder, list):
            holder.insert(key, holder[key])
        case "swap" if isinstance(holder, list):
            rng.shuffle(holder)
        case "list":
            holder[key] = [holder[key]]
        case _:
            for _ in range(rng.choice((1, 40))):
                holder[key] = {"a": holder[key]}
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder and key in a value."""
    if not isinstance(value, dict | list):
        return
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        yield from _places(inner)


def restructure(content: bytes, rng: random.Random, suffix: str) -> bytes:
    """Change values of a text that holds JSON, JSON lines or YAML."""
    text = content.decode()
    if suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
        found = change(rows, rng)
        return "".join(json.dumps(row) + "\n" for row in found or ODD[:1]).encode()
    if suffix == ".yaml":
        return yaml.safe_dump(change(yaml.safe_load(text), rng), sort_keys=False).encode()
    return json.dumps(change(json.loads(text), rng)).encode()


def mutate(path: Path, rng: random.Random) -> tuple[Path, str]:
    """Mutate a file where it stands; returns where it is now and what was done.

    Args:
        path: The file.
        rng: Decides what is done.
    """
    content, text = path.read_bytes(), path.suffix in (".json", ".jsonl", ".yaml")
    if rng.random() < 0.08:
        return move(path, rng), "move"
    if text and content and rng.random() < 0.8:
        if rng.random() < 0.65:
            times, changed = rng.choice((1, 1, 1, 3)), content
            for _ in range(times):
                changed = restructure(changed, rng, path.suffix)
            path.write_bytes(changed)
            return path, "change"
        kind = rng.choice((recode, garble, garble))
    else:
        kind = rng.choice(BYTES)
    path.write_bytes(kind(content, rng) if content else b"x")
    return path, kind.__name__


def copied(base: Path, folder: Path) -> Path:
    """A fresh copy of a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder, symlinks=True)
    return folder
