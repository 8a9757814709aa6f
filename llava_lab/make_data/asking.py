"""Asking: captions -> rows that ask for them in words drawn from a list."""

import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_lab.core.yaml_file import read_mapping
from llava_lab.data.rows import Refused
from llava_lab.make_data.captions import Caption
from llava_lab.make_data.written import row_of


def read_requests(path: Path) -> list[str]:
    """Read a list of requests: a YAML file of `source` and `requests`.

    Raises:
        ValueError: If there are none, one is repeated, or one is no text.
    """
    found = read_mapping(path)
    requests = found.get("requests")
    if not set(found) <= {"source", "requests"} or not isinstance(requests, list) or not requests:
        raise ValueError(f"{path}: a list of requests has `source` and `requests`, a list of texts")
    for number, request in enumerate(requests, 1):
        if not isinstance(request, str) or not request.strip():
            raise ValueError(f"{path}: request {number} is {request!r}, no text")
        if request in requests[: number - 1]:
            raise ValueError(f"{path}: request {number}, {request!r}, is repeated")
    return requests


def draw_request(requests: Sequence[str], seed: int, name: str) -> str:
    """A request for a row, drawn by its id."""
    return requests[int(random.Random(f"{seed}/request/{name}").random() * len(requests))]


def picture_first(seed: int, name: str) -> bool:
    """Whether a row's picture stands before its first question, or behind: drawn, as LLaVA does."""
    return random.Random(f"{seed}/place/{name}").random() < 0.5


def caption_rows(
    captions: Iterable[Caption], requests: Sequence[str], seed: int
) -> Iterator[dict[str, Any]]:
    """A row for each caption: a request, and the caption as its answer.

    Raises:
        ValueError: If a caption could not be read as an answer.
    """
    for each in captions:
        turns = [(draw_request(requests, seed, each.id), each.text)]
        try:
            yield row_of(each.id, each.image, turns, picture_first(seed, each.id))
        except Refused as problem:
            raise ValueError(f"caption {each.id}: {problem}") from None
