"""1. Choices: the cells of a multiple choice -> its options, and the lines that show them."""

import ast
import string
from collections.abc import Mapping, Sequence
from typing import Any

from llava_lab.data.cells import NOTHING, cell, filled, is_template
from llava_lab.data.rows import Refused


def options_of(cells: Mapping[str, Any], columns: str | Sequence[str] | None) -> tuple[str, ...]:
    """The options of a row; none where it has none.

    Args:
        cells: The row.
        columns: Column of a list of them, which may be written as text (MMMU); or columns of one
            each, of which the first empty one is the end; so is an option that is called "None".
            Templates of one each are all options, whatever they are called.
    """
    if columns is None:
        return ()
    if not isinstance(columns, str):
        found = []
        for name in columns:
            if is_template(name):
                found.append(filled(name, cells))
                continue
            value = cell(cells, name)
            if value is None or str(value).lower() in NOTHING:
                break
            found.append(str(value))
        return tuple(found)
    value = cell(cells, columns)
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (SyntaxError, ValueError):
            raise Refused(f"{columns!r} is no list of options: {value[:60]!r}") from None
    if value is not None and not isinstance(value, list | tuple):
        raise Refused(f"{columns!r} is no list of options, but {type(value).__name__}")
    return tuple(map(str, value or ()))


def written(options: Sequence[str]) -> str:
    """Options as prompts show them, a line each: "A. cat"."""
    letters = zip(string.ascii_uppercase, options, strict=False)
    return "\n".join(f"{letter}. {option}" for letter, option in letters)
