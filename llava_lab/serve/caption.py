"""Caption: images and videos -> LLaVA-format rows that describe them.

Every caption is on disk, in a journal beside the output, before the next one is waited for: a
killed command goes on where it was. The output is written whole when every input has its row.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_lab.core.atomic import write
from llava_lab.core.messages import listed
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.rows import Refused
from llava_lab.data.sample import read_turns
from llava_lab.serve.caption_engines import CaptionEngine, prompt_of
from llava_lab.serve.caption_inputs import CaptionInput
from llava_lab.serve.journal import Journal


def caption(
    inputs: Sequence[CaptionInput],
    engine: CaptionEngine,
    prompt: str | None,
    out: Path,
    request: str,
) -> None:
    """Caption what the journal does not hold yet, then write the output.

    Args:
        inputs: All inputs.
        engine: Captions them.
        prompt: The human's turn of every row; None asks for a detailed description.
        out: .json or .jsonl.
        request: Everything that decides the captions; a journal of another request is refused.

    Raises:
        ValueError: If inputs could not be captioned: they are listed, the others are kept.
    """
    if out.suffix not in (".json", ".jsonl") or out.is_dir():
        raise ValueError(f"--out {out}: name a file .json or .jsonl, as rows are read")
    if problem := unreadable(row_of(inputs[0], prompt, "A caption.")):
        raise ValueError(f"--prompt {prompt!r} makes rows that cannot be read: {problem}")
    journal = Journal(out, request)
    kept = journal.read()
    rows = {
        each.id: row_of(each, prompt, kept[each.id])
        for each in inputs
        if each.id in kept and unreadable(row_of(each, prompt, kept[each.id])) is None
    }
    failed: list[str] = []
    missing = [each for each in inputs if each.id not in rows]
    with journal:
        for each, reply in engine(missing):
            problem = reply
            if not isinstance(reply, Exception):
                rows[each.id] = row_of(each, prompt, reply)
                problem = unreadable(rows[each.id])
            if problem is None:
                journal.add(each.id, reply)
            else:
                failed.append(f"{each.name}: {problem}")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(inputs)} inputs have no caption; the same command tries them "
            f"again and keeps the others:\n  {listed(failed, 10)}"
        )
    lines = [json.dumps(rows[each.id], ensure_ascii=False) for each in inputs]
    text = "\n".join(lines) if out.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]"
    write(out, text + "\n")
    journal.path.unlink()


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
