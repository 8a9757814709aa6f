"""Kinds: a kind of instruction data -> what an LM is told about a picture, and its reply as turns.

LLaVA (arXiv:2304.08485, section 3 and Table 13) shows a text-only LM the captions and boxes of a
picture behind a system message and examples of its own kind. The texts here are ours.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_lab.core.numbers import at_least
from llava_lab.core.records import json_sha256
from llava_lab.core.yaml_file import read_mapping
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.make_data.asking import draw_request, read_requests
from llava_lab.make_data.coco import Picture, box_text
from llava_lab.make_data.written import Turns
from llava_lab.model.weights import locate

KEYS = {"system", "user", "turns", "requests", "unwanted", "temperature", "max_tokens", "examples"}
_BETWEEN = re.compile(r"^\s*={3,}\s*$", re.MULTILINE)
_SPEAKS = re.compile(r"^\s*(question|answer)\s*:", re.IGNORECASE | re.MULTILINE)
_SPOKEN = re.compile(r"(question|answer)\s*:\s*(.*)", re.IGNORECASE | re.DOTALL)
_REFUSAL = re.compile(
    r"(i('m| am) (sorry|unable)|sorry\b|i (can't|cannot)\b|as an? (ai|language model))",
    re.IGNORECASE,
)


class Refusal(ValueError):
    """The LM declines to write."""


@dataclass(frozen=True)
class Kind:
    """One kind of instruction data.

    Attributes:
        name: Name of its file.
        system: What the LM is told first.
        user: Template of what it is told of a picture, with `{captions}` and `{boxes}`.
        examples: What it is told of other pictures, each with a reply.
        turns: Fewest and most questions of a reply; (0, 0) where the whole reply is an answer.
        requests: Requests that such a reply answers.
        unwanted: Words that show that the LM speaks of its text, not of a picture.
        temperature: Sampling temperature.
        max_tokens: Longest reply.
        sha256: Hash of all of these.
    """

    name: str
    system: str
    user: str
    examples: tuple[tuple[str, str], ...]
    turns: tuple[int, int]
    requests: tuple[str, ...]
    unwanted: tuple[str, ...]
    temperature: float
    max_tokens: int
    sha256: str

    @property
    def sampling(self) -> dict[str, Any]:
        """Options of a request."""
        return {"temperature": self.temperature, "max_tokens": self.max_tokens}

    def messages(self, picture: Picture) -> list[dict[str, str]]:
        """What an LM is told about a picture."""
        said = [("system", self.system)]
        for shown, reply in self.examples:
            said += [("user", shown), ("assistant", reply)]
        said.append(("user", self._shown(picture)))
        return [{"role": role, "content": text} for role, text in said]

    def read(self, reply: str, name: str, seed: int) -> Turns:
        """The questions and answers of a reply.

        Args:
            reply: The reply.
            name: Id of the row, by which a request for a whole reply is drawn.
            seed: Seed of that draw.

        Raises:
            Refusal: If the LM declines.
            ValueError: If the reply is not of the form that is asked for, or speaks of its text.
        """
        if _REFUSAL.match(reply.strip()):
            raise Refusal(f"the LM declines: {reply[:80]!r}")
        for word in self.unwanted:
            if re.search(rf"\b{re.escape(word)}", reply, re.IGNORECASE):
                raise ValueError(f"speaks of its {word!r}")
        if IMAGE_PLACEHOLDER in reply:
            raise ValueError(f"holds a literal {IMAGE_PLACEHOLDER}")
        if self.requests:
            return [(draw_request(self.requests, seed, name), reply.strip())]
        return self._turns(reply)

    def _turns(self, reply: str) -> Turns:
        parts = [part.strip() for part in _BETWEEN.split(reply) if part.strip()]
        found = [_SPOKEN.fullmatch(part) for part in parts]
        texts = [match[2].strip() for match in found if match]
        who = [match[1].lower() for match in found if match]
        number, least, most = len(texts) // 2, *self.turns
        plain = all(texts) and not any(_SPEAKS.search(text) for text in texts)
        if len(texts) < len(parts) or who != ["question", "answer"] * number or not plain:
            raise ValueError("is not `Question:`, `Answer:` and so on with lines of === between")
        if not least <= number <= most:
            raise ValueError(f"has {number} questions; asked for are {least} to {most}")
        return list(zip(texts[::2], texts[1::2], strict=True))

    def _shown(self, picture: Picture) -> str:
        boxes = "\n".join(f"{name}: {box_text(box)}" for name, box in picture.boxes)
        return _filled(self.user, "\n".join(picture.captions), boxes)


def read_kind(file: str) -> Kind:
    """Read a kind from its file.

    Args:
        file: A YAML file, or the name of one that ships with the package: `conversation`,
            `detailed_description`, `complex_reasoning`.

    Raises:
        ValueError: If a key is missing, unknown, or holds something else.
    """
    path = Path(file if file.endswith(".yaml") else locate(f"asset:make/kinds/{file}.yaml"))
    found = read_mapping(path)
    if odd := sorted(found.keys() ^ KEYS):
        raise ValueError(f"{path}: missing or unknown: {', '.join(odd)}")
    least, most = _range(path, found["turns"])
    requests = found["requests"]
    if (requests is None) == (most == 0):
        raise ValueError(f"{path}: either `turns`, or `requests` of which each reply answers one")
    asked = read_requests(Path(locate(requests))) if requests else []
    texts = {key: _text(path, key, found[key]) for key in ("system", "user")}
    if "{captions}" not in texts["user"]:
        raise ValueError(f"{path}: `user` shows no {{captions}}")
    examples = [_example(path, texts["user"], each) for each in found["examples"] or []]
    unwanted = [_text(path, "unwanted", each) for each in found["unwanted"] or []]
    temperature, length = found["temperature"], found["max_tokens"]
    if not isinstance(temperature, int | float) or not isinstance(length, int):
        raise ValueError(f"{path}: temperature {temperature!r}, max_tokens {length!r}: no numbers")
    at_least(0, f"{path}: ", temperature=temperature)
    at_least(1, f"{path}: ", max_tokens=length)
    decides = [texts, examples, (least, most), asked, unwanted, temperature, length]
    return Kind(
        path.stem,
        texts["system"],
        texts["user"],
        tuple(examples),
        (least, most),
        tuple(asked),
        tuple(unwanted),
        float(temperature),
        length,
        json_sha256(decides),
    )


def _range(path: Path, value: Any) -> tuple[int, int]:
    if value is None:
        return 0, 0
    if not isinstance(value, list) or [type(n) for n in value] != [int, int] or value[0] < 1:
        raise ValueError(f"{path}: `turns` is {value!r}, not [fewest, most], from 1 on")
    if value[0] > value[1]:
        raise ValueError(f"{path}: `turns` is {value!r}: fewest above most")
    return value[0], value[1]


def _text(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{path}: `{key}` is {value!r:.80}, no text")
    return value.strip()


def _example(path: Path, user: str, value: Any) -> tuple[str, str]:
    if not isinstance(value, dict) or set(value) != {"captions", "boxes", "reply"}:
        raise ValueError(f"{path}: an example has `captions`, `boxes` and `reply`")
    texts = {key: str(each or "").strip() for key, each in value.items()}
    return _filled(user, texts["captions"], texts["boxes"]), texts["reply"]


def _filled(user: str, captions: str, boxes: str) -> str:
    values = {"captions": captions, "boxes": boxes or "(none are marked)"}
    return re.sub(r"\{(captions|boxes)\}", lambda found: values[found[1]], user)
