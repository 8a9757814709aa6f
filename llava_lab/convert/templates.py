"""Templates: a checkpoint's own chat template -> the template of ours that writes the same.

A chat template is a program. It is run in a process with limits on time and memory, and templates
are compared by what they write for a small conversation, not by strings in their text.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llava_lab.convert.files import read_json, read_text
from llava_lab.data.chat import get_template
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.sample import Turn
from llava_lab.data.templates import CHAT_FORMATS
from llava_lab.data.tokens import adds_bos

CPU_SECONDS = 5
MEMORY_BYTES = 2 << 30
TURNS = (
    Turn("user", f"{IMAGE_PLACEHOLDER}\nWhat is this?"),
    Turn("assistant", "A small boat."),
    Turn("user", "And its colour?"),
)
# Both are compared: the second shows how an answer ends.
CONVERSATIONS = (TURNS[:1], TURNS)
PROGRAM = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({CPU_SECONDS}, {CPU_SECONDS}))
from transformers.utils.chat_template_utils import render_jinja_template
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY_BYTES}, {MEMORY_BYTES}))
request = json.load(sys.stdin)
written = []
for messages in request["conversations"]:
    try:
        found, _ = render_jinja_template(
            [messages], chat_template=request["template"], add_generation_prompt=True,
            **request["tokens"],
        )
        written.append(found[0])
    except MemoryError:
        raise
    except Exception:
        written.append(None)
print(json.dumps(written))
"""


def read_chat_template(folder: Path) -> tuple[str, str]:
    """Read a checkpoint's chat template, and name its file; two empty texts if there is none."""
    if (folder / "chat_template.jinja").is_file():
        return read_text(folder / "chat_template.jinja"), "chat_template.jinja"
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        path = folder / name
        found = read_json(path).get("chat_template") if path.is_file() else None
        if found is None:
            continue
        if isinstance(found, list):  # several by name
            named = {e["name"]: e["template"] for e in found if isinstance(e, dict) and len(e) == 2}
            found = named.get("default", next(iter(named.values()), None))
        if not isinstance(found, str):
            raise ValueError(f"{path}: chat_template is no text, nor a list of named ones")
        return found, name
    return "", ""


def opens_with_bos(text: str, bos: str) -> bool:
    """Whether a chat template puts the beginning-of-sequence token before a text.

    One that opens with the token does. But where a format of ours opens with the token as its mark,
    as ChatML does with SmolLM2's `<|im_start|>`, the first is the mark, and it takes two.
    """
    marks = any(f"{each.system}{each.question}".startswith(bos) for each in CHAT_FORMATS.values())
    opening = re.escape(2 * bos if marks else bos)
    return re.match(rf"\s*\{{\{{-?\s*(bos_token\b|['\"]{opening})", text) is not None


def match(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Find the template of ours that writes the same as the checkpoint's own; and that one's file.

    Raises:
        ValueError: If it has none, or none of ours writes the same; the user has to choose.
    """
    choose = f"Choose by --template, one of {', '.join(CHAT_FORMATS)}"
    text, name = read_chat_template(folder)
    if not text:
        raise ValueError(f"{folder}: brings no chat template. {choose}")
    theirs = _written(text, tokenizer, str(folder / name))
    ours = {style: _ours(style, tokenizer) for style in CHAT_FORMATS}
    same = [style for style, written in ours.items() if written is not None and written in theirs]
    # Two names of one format (v0, llava_v0) are one match.
    if same and all(CHAT_FORMATS[style] == CHAT_FORMATS[same[0]] for style in same):
        return same[0], name
    shown = next((each[0] for each in theirs if each[0]), "")
    raise ValueError(
        f"{folder / name}: the chat template writes {shown!r} for a question about a picture, "
        f"which none of ours does to the letter. {choose}"
    )


def check_cost(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Refuse a chat template that takes too much for a small conversation.

    Raises:
        ValueError: If it takes more time or memory than an honest template.
    """
    if isinstance(tokenizer.chat_template, str):
        _written(tokenizer.chat_template, tokenizer, source)


def _ours(name: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...] | None:
    """Render conversations with a template of ours; None if the tokenizer lacks its markers."""
    template = get_template(name)
    try:
        pieces = [template.pieces(turns, tokenizer) for turns in CONVERSATIONS]
    except ValueError:
        return None
    return tuple("".join(piece.text for piece in written) for written in pieces)


def _written(
    text: str, tokenizer: PreTrainedTokenizerBase, source: str
) -> list[tuple[str | None, ...]]:
    """Render conversations with a chat template, with content as parts and as one text."""
    bos = str(tokenizer.bos_token) if adds_bos(tokenizer) else ""  # which we put, too
    tokens = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    both = [_in_parts(turns) for turns in CONVERSATIONS], [_as_text(t) for t in CONVERSATIONS]
    request = {"template": text, "tokens": tokens, "conversations": [*both[0], *both[1]]}
    found = _run(json.dumps(request), source)
    plain = [None if each is None else each.removeprefix(bos) for each in found]
    return [tuple(plain[: len(CONVERSATIONS)]), tuple(plain[len(CONVERSATIONS) :])]


@lru_cache(maxsize=8)
def _run(request: str, source: str) -> list[str | None]:
    command = [sys.executable, "-I", "-c", PROGRAM]
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, text=True, timeout=60 + CPU_SECONDS
        )
        return json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError) as error:
        raise ValueError(
            f"{source}: its chat template takes more than {CPU_SECONDS} s or "
            f"{MEMORY_BYTES >> 30} GiB for three turns, or ends the process: it does more than "
            "write. Remove it, and choose a template by --template"
        ) from error


def _as_text(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [{"role": turn.role, "content": turn.text} for turn in turns]


def _in_parts(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    messages = []
    for turn in turns:
        text = turn.text.removeprefix(f"{IMAGE_PLACEHOLDER}\n")
        parts = [{"type": "image"}] if text != turn.text else []
        messages.append({"role": turn.role, "content": [*parts, {"type": "text", "text": text}]})
    return messages
