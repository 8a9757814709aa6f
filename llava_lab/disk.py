"""Files and folders that come into being whole or not at all."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEFTOVER_SECONDS = 24 * 3600
PLAIN = re.compile(r"[\w+=@(),.-](?:[\w+=@(),. -]*[\w+=@(),-])?")


def plain_name(name: str, what: str) -> str:
    """Return a user's name that becomes that of a file or folder, or refuse it.

    Args:
        name: The name.
        what: What it names, for messages: "data.benchmarks: name".

    Raises:
        ValueError: If it is no plain file name, so that it could lead somewhere else, or begins
            with a dot, as files of our own do.
    """
    if not name or name[0] in ".-~" or not PLAIN.fullmatch(name) or len(name.encode()) > 150:
        raise ValueError(
            f"{what} {name!r:.200} is no plain file name: letters, digits and ' _.,+=@()-', "
            "150 bytes at the most, none of '.-~' or a space first, no dot or space last"
        )
    return name


def write(path: Path, text: str) -> None:
    """Write a text file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".draft")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def link(source: Path, target: Path) -> None:
    """Let a file stand in a second place, without a copy where the disk allows it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(target.name + ".draft")
    draft.unlink(missing_ok=True)
    try:
        os.link(source, draft)
    except OSError:
        draft.write_bytes(source.read_bytes())
    os.replace(draft, target)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill, which becomes `path` unless an error ends the block.

    Folders that killed processes left half-filled are removed after a day; younger ones may
    belong to a process that is still writing.

    Raises:
        FileExistsError: If `path` exists and is no empty folder.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists already; choose another name or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}-draft-"
    for left in path.parent.glob(f"{prefix}*"):
        if time.time() - left.stat().st_mtime > LEFTOVER_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
    try:
        draft.chmod(0o755)
        yield draft
        os.replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
