"""1. Cells: a row of a published file, a template -> text: "COCO_val2014_{image_id:012d}.jpg".

A template names columns in braces, with dots into objects and lists (`{conversations.0.value}`),
and behind a colon what is done to the value: a format of Python's, or words of `WORDS`, one after
another (`{question:line,lower}`).
"""

import json
import re
import string
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.rows import Refused


def _asked(text: str) -> str:
    """A question of MME without its request for a yes or no, which LLaVA's file leaves out."""
    return " ".join(text.replace("Please answer yes or no.", " ").split())


# Empty cells as texts: haotian-liu/LLaVA@c121f04, llava/eval/model_vqa_mmbench.py.
NOTHING = ("", "nan", "none")

# What can be done to a value.
WORDS: dict[str, Callable[[Any], str]] = {
    "line": lambda value: str(value).split("\n")[0],
    "strip": lambda value: str(value).strip(),
    "lower": lambda value: str(value).lower(),
    "stem": lambda value: PurePosixPath(str(value)).stem,
    "tail": lambda value: str(value).rpartition("_")[2],
    "bare": lambda value: str(value).replace(IMAGE_PLACEHOLDER, "").strip(),
    "asked": lambda value: _asked(str(value)),
    "letter": lambda value: dict(enumerate(string.ascii_uppercase))[int(value)],  # -1 has none
    "subject": lambda value: str(value).partition("_")[2].rpartition("_")[0],
    "above": lambda value: "" if str(value).lower() in NOTHING else f"{value}\n",
    "context": lambda value: f"Context: {value}\n" if value else "",
    "capital": lambda value: str(value).capitalize(),
    "lines": lambda value: "\n".join(value),
    "commas": lambda value: ", ".join(value),
    "below": lambda value: f"\n{value}" if value else "",
    "unit": lambda value: f" (Unit: {value})" if value else "",
    "joined": lambda value: "_".join(sorted(value)),
    "shown": lambda value: "image" if value else "text",
    "type": lambda value: f"{str(value)[:1]}/{'TN' if value == 'TP' else value}",
    "parsed": lambda value: json.loads(value)["gt_parse"]["text_sequence"],
}


class _Cells(string.Formatter):
    """Fills a template with the cells of a row."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        return cell(kwargs, field_name), field_name

    def format_field(self, value: Any, format_spec: str) -> str:
        words = format_spec.split(",") if format_spec else []
        if not all(word in WORDS for word in words):
            return format(value, format_spec)
        if value is None and words != ["shown"]:
            return ""
        for word in words:
            value = WORDS[word](value)
        return str(value)


def cell(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column, or None where the row does not have it.

    Args:
        row: The row.
        name: Name of the column; dots lead into objects and lists.
    """
    value: Any = row
    for part in [name] if name in row else name.split("."):
        if isinstance(value, list) and part.isdecimal():
            value = value[int(part)] if int(part) < len(value) else None
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def filled(template: str, row: Mapping[str, Any]) -> str:
    """Fill in a template.

    Raises:
        Refused: If a column is not there, or its value does not suit what is done to it.
    """
    for name, words in fields(template):
        if cell(row, name) is None and name.split(".")[0] not in row and words != "shown":
            known = ", ".join(key for key in row if isinstance(key, str))
            raise Refused(f"has no {name!r}, which {template!r} names; it has {known}")
    try:
        return _Cells().vformat(template, (), row)
    except (ValueError, TypeError, IndexError, KeyError) as problem:
        raise Refused(f"{template!r} cannot be filled in: {problem}") from None


def fields(template: str) -> Iterator[tuple[str, str]]:
    """Names of a template's columns, each with what is done to it."""
    for _, name, words, _ in string.Formatter().parse(template):
        if name is not None:
            yield name, words or ""


def is_template(text: str) -> bool:
    """Whether a text is a template, and not the name of a column."""
    return re.search(r"\{[^{}]+\}", text) is not None
