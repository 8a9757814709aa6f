"""Journal: finished results beside an unfinished output, so that a killed command resumes.

It has one writer: while one process has it open, another that would write it is refused.
"""

import hashlib
import json
import os
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from llava_lab.core.lock import Held, lock
from llava_lab.core.progress import say
from llava_lab.core.strict_json import parse


class Journal:
    """File of results, one a line; the first line is the fingerprint of the request.

    Args:
        output: File that the results are written to at the end.
        request: Everything that decides the results.
    """

    def __init__(self, output: Path, request: str):
        self.path = output.with_name(output.name + ".journal")
        self.lock = output.with_name(output.name + ".lock")
        self.fingerprint = hashlib.sha256(request.encode()).hexdigest()
        self.foreign = 0

    def read(self, wanted: Collection[str] | None = None) -> dict[str, Any]:
        """Read results by id; an incomplete last line is removed.

        Args:
            wanted: Ids of all results of the output; None takes every result for one of it. A
                journal that holds others, too, is not removed with them.

        Raises:
            ValueError: If the journal belongs to another request, is damaged, or holds results
                and none that is wanted.
        """
        if not self.path.is_file() or not _holds_results(self.path):
            return {}
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        found: dict[str, Any] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            place = f"{self.path}, line {number}"
            match self._parsed(line, place):
                case {"asked": str(fingerprint)} if number == 1:
                    if fingerprint != self.fingerprint:
                        raise ValueError(
                            f"{self.path}: begun with another model or other options. Repeat that "
                            "command, or remove the file to begin anew."
                        )
                case [str(name), result] if number > 1:
                    found[name] = result
                case _:
                    raise ValueError(f"{place}: damaged; remove the file to begin anew")
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        self.foreign = 0 if wanted is None else len(found.keys() - set(wanted))
        if found and self.foreign == len(found):
            raise ValueError(
                f"{self.path}: holds {len(found)} results, and none of this command, such as "
                f"{next(iter(found))!r}. Give every shard and every folder its own --out, repeat "
                "the command that began it, or remove the file if nobody wants them"
            )
        return found

    @staticmethod
    def _parsed(line: bytes, place: str) -> Any:
        try:
            return parse(line.decode(), place)
        except ValueError as problem:
            raise ValueError(f"{place}: damaged ({problem}); remove it to begin anew") from None

    def __enter__(self) -> "Journal":
        self.held = ExitStack()
        try:
            self.held.enter_context(lock(self.lock, "it", wait=False))
        except Held as error:
            raise ValueError(
                f"{self.path}: another process is writing it ({error}), or share the work: each "
                "process an --out of its own"
            ) from None
        self.file = self.held.enter_context(self.path.open("a", encoding="utf-8"))
        if not _holds_results(self.path):
            self.file.truncate(0)  # of another request, or cut in its first line
            self._line({"asked": self.fingerprint})
        return self

    def __exit__(self, *_: object) -> None:
        self.held.close()

    def remove(self) -> None:
        """Remove it, when the output is written; one with results of other inputs stays."""
        if self.foreign:
            say(
                f"{self.path} stays: {self.foreign} of its results are of no input here. "
                "Remove it if nobody wants them"
            )
        else:
            self.path.unlink(missing_ok=True)
        with suppress(OSError):  # Windows removes no file that is open
            self.lock.unlink()

    def add(self, name: str, result: Any) -> None:
        """Append one result, and flush it to disk."""
        self._line([name, result])

    def _line(self, value: Any) -> None:
        self.file.write(json.dumps(value) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())


def _holds_results(path: Path) -> bool:
    """Whether there is a whole line behind the first; else the journal is begun anew."""
    with path.open("rb") as file:
        file.readline()
        return file.readline().endswith(b"\n")
