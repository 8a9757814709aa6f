"""Cache: a folder in which what was once found out about files is kept for later starts.

The environment variable LLAVA_LAB_CACHE names it; else it is `llava_lab` in the user's folder of
caches. Everything in it is made again where it is missing: it may be deleted at any time.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llava_lab.core.lock import lock
from llava_lab.core.records import read_record, write_record

VARIABLE = "LLAVA_LAB_CACHE"


def cache_folder(name: str) -> Path:
    """Folder of one kind of things in the cache; it need not exist."""
    if given := os.environ.get(VARIABLE):
        return Path(given).absolute() / name
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "llava_lab" / name


def stamp(found: os.stat_result) -> str:
    """Size and times of change of a file, by which it is known again."""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


@contextmanager
def kept_if_possible(folder: Path) -> Iterator[None]:
    """Warn, and go on, where what is done inside of the block cannot be written to the cache."""
    try:
        yield
    except OSError as problem:
        warnings.warn(
            f"{folder}: nothing is kept there for later starts ({problem.strerror or problem}); "
            f"set {VARIABLE} to a folder that can be written",
            stacklevel=3,
        )


@contextmanager
def alone(path: Path, what: str) -> Iterator[None]:
    """Keep other processes from the same work; without a lock where there can be none.

    Args:
        path: The lock's file.
        what: What is done, for those who wait.
    """
    with ExitStack() as held:
        with kept_if_possible(path.parent):
            held.enter_context(lock(path, what))
        yield


def remembered(key: str, make: Callable[[], Any], what: str) -> Any:
    """A JSON value that was made once, by one process, and is kept.

    Args:
        key: Hash of all that decides the value.
        make: Makes it; what it raises is not kept.
        what: What is made, for those who wait.
    """
    path = cache_folder("made") / f"{key}.json"

    def find() -> list[Any]:
        try:
            return [read_record(path, {"value": object}, "It is made again.")["value"]]
        except (OSError, ValueError):
            return []

    if found := find():
        return found[0]
    with alone(path.with_suffix(".lock"), what):
        if found := find():
            return found[0]
        value = make()
        with kept_if_possible(path.parent):
            write_record(path, {"value": value}, None)
    return value
