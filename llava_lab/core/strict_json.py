"""Strict JSON (RFC 8259): whatever is wrong becomes one message with its place.

Python's own reader lets NaN, infinities and repeated keys pass, and ends in a RecursionError or in
a ValueError without a place where text is nested too deeply or a number has too many digits.
"""

import json
import math
from typing import Any

_DIGITS = 400  # more than any id or count has; Python has another message for 4,300


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _integer(text: str) -> int:
    if len(text) > _DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large for a number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice!r} is repeated in one object")
    return found


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_constant=_constant,
    parse_int=_integer,
    parse_float=_real,
)


def parse(text: str, place: str) -> Any:
    """Parse one JSON value.

    Args:
        text: The whole text.
        place: File and line of the text, for messages.

    Raises:
        ValueError: If it is not JSON; says where and why.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as problem:
        raise ValueError(f"{_at(place, problem)}: not JSON ({problem.msg})") from None
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{place}: not JSON ({_reason(problem)})") from None


def parse_list(text: str, place: str) -> Any:
    """Parse a JSON list; a message about one of its values says which, counted from 1."""
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as problem:
        where = f"{place}, line {problem.lineno}, column {problem.colno}"
        if problem.msg == "Extra data":
            hint = "; if it has one row a line, name it .jsonl"
            raise ValueError(f"{where}: not JSON ({problem.msg}){hint}") from None
        number = _element(text)
        within = f", in row {number}" if number else ""
        raise ValueError(f"{where}: not JSON ({problem.msg}){within}") from None
    except (ValueError, RecursionError) as problem:
        number = _element(text)
        where = f"{place}, row {number}" if number else place
        raise ValueError(f"{where}: not JSON ({_reason(problem)})") from None


def _at(place: str, problem: json.JSONDecodeError) -> str:
    line = f", line {problem.lineno}" if "\n" in problem.doc.strip() else ""
    return f"{place}{line}, column {problem.colno}"


def _reason(problem: Exception) -> str:
    return "nested too deeply" if isinstance(problem, RecursionError) else str(problem)


def _element(text: str) -> int | None:
    """Number of the first element of a list that cannot be parsed; None where it is no list."""
    place = _skip(text, 0)
    if text[place : place + 1] != "[":
        return None
    number = 1
    while True:
        try:
            _, place = _DECODER.raw_decode(text, _skip(text, place + 1))
        except (ValueError, RecursionError):
            return number
        place = _skip(text, place)
        if text[place : place + 1] != ",":
            return number
        number += 1


def _skip(text: str, place: int) -> int:
    """The next place that is no white space."""
    while text[place : place + 1] in (" ", "\t", "\n", "\r"):
        place += 1
    return place
