"""Caption: images and videos -> LLaVA-format rows that describe them.

Every caption is on disk, in a journal beside the output, before the next one is waited for: a
killed command goes on where it was. The output is written whole when every input has its row.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_lab.core.journal import Journal
from llava_lab.core.messages import listed
from llava_lab.core.progress import progress
from llava_lab.core.records import check_rows_name, check_unwritten, write_rows
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.rows import Refused
from llava_lab.data.sample import read_turns
from llava_lab.serve.caption_engines import CaptionEngine, prompt_of
from llava_lab.serve.caption_inputs import CaptionInput


def caption(
    inputs: Sequence[CaptionInput],
    engine: CaptionEngine,
    prompt: str | None,
    out: Path,
    request: str,
) -> int:
    """Caption what the journal does not hold yet, then write the output.

    Args:
        inputs: All inputs.
        engine: Captions them.
        prompt: The human's turn of every row; None asks for a detailed description.
        out: .json or .jsonl.
        request: Everything that decides the captions; a journal of another request is refused.

    Returns:
        How many were captioned now, the others were in the journal.

    Raises:
        FileExistsError: If the output is there already.
        ValueError: If inputs could not be captioned: they are listed, the others are kept; or if
            the journal is of other inputs.
    """
    check_rows_name(out)
    check_unwritten(out)
    if problem := unreadable(row_of(inputs[0], prompt, "A caption.")):
        raise ValueError(f"--prompt {prompt!r} makes rows that cannot be read: {problem}")
    failed: list[str] = []
    with Journal(out, request) as journal:
        replies = journal.read([each.key for each in inputs])
        missing = [
            each
            for each in inputs
            if each.key not in replies or unreadable(row_of(each, prompt, replies[each.key]))
        ]
        with progress("captions", len(missing)) as bar:
            for each, reply in engine(missing):
                bar.update()
                problem = reply
                if not isinstance(reply, Exception):
                    problem = unreadable(row_of(each, prompt, reply))
                if problem is None:
                    replies[each.key] = reply
                    journal.add(each.key, reply)
                else:
                    failed.append(f"{each.name}: {problem}")
        if failed:
            raise ValueError(
                f"{len(failed)} of {len(inputs)} inputs have no caption; the same command tries "
                f"them again and keeps the others:\n  {listed(failed, 10)}"
            )
        write_rows(out, (row_of(each, prompt, replies[each.key]) for each in inputs))
        journal.remove()
    return len(missing)


def row_of(shown: CaptionInput, prompt: str | None, reply: Any) -> dict[str, Any]:
    """The row of an input and its caption."""
    return {
        "id": shown.id,
        shown.kind: shown.name,
        "conversations": [
            {"from": "human", "value": f"{IMAGE_PLACEHOLDER}\n{prompt_of(shown, prompt)}"},
            {"from": "gpt", "value": reply},
        ],
    }


def unreadable(row: dict[str, Any]) -> str | None:
    """Why training could not read the row of a caption; None if it can."""
    try:
        read_turns(row, 1)
    except Refused as problem:
        return f"{problem}; the caption is {row['conversations'][1]['value']!r:.200}"
    return None
