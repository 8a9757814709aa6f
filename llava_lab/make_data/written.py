"""Written: rows of made data -> a file that training reads, and a record of how it was made."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llava_lab.core.records import file_sha256, write_record, write_rows
from llava_lab.core.version import __version__
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.sample import read_turns

Turns = list[tuple[str, str]]  # questions with their answers


def row_of(name: str, image: str | None, turns: Turns, first: bool = True) -> dict[str, Any]:
    """A LLaVA-format row.

    Args:
        name: Its id.
        image: Name of its picture; None where it has none.
        turns: What is asked and answered.
        first: Whether the picture stands before the first question, or behind it.

    Raises:
        Refused: If training could not read the row.
    """
    asked, answer = turns[0]
    if image is not None:
        asked = f"{IMAGE_PLACEHOLDER}\n{asked}" if first else f"{asked}\n{IMAGE_PLACEHOLDER}"
    said = [(asked, answer), *turns[1:]]
    row = {
        "id": name,
        **({} if image is None else {"image": image}),
        "conversations": [
            {"from": speaker, "value": text}
            for turn in said
            for speaker, text in zip(("human", "gpt"), turn, strict=True)
        ],
    }
    read_turns(row, 0 if image is None else 1)
    return row


def write_made(
    out: Path, rows: Iterable[Mapping[str, Any]], inputs: Iterable[Path], how: Mapping[str, Any]
) -> int:
    """Write rows, and beside them a record with hashes of all that they were made of.

    Args:
        out: .json or .jsonl; the record is OUT.made.json.
        rows: LLaVA-format rows.
        inputs: Files that were read.
        how: Options, counts, prompts.

    Returns:
        How many rows there are.
    """
    number = write_rows(out, rows)
    digests = {str(path): file_sha256(path) for path in inputs}
    record = {"rows": number, "sha256_of_rows": file_sha256(out), "inputs": digests}
    write_record(record_of(out), {"llava_lab": __version__, **record, **how})
    return number


def record_of(out: Path) -> Path:
    """The record of how a file was made."""
    return out.with_name(f"{out.name}.made.json")
