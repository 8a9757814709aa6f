"""Cache: a folder in which what was once found out about files is kept for later starts.

The environment variable LLAVA_LAB_CACHE names it; else it is `llava_lab` in the user's folder of
caches. Everything in it is made again where it is missing: it may be deleted at any time.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "LLAVA_LAB_CACHE"


def cache_folder(name: str) -> Path:
    """Folder of one kind of things in the cache; it need not exist."""
    if given := os.environ.get(VARIABLE):
        return Path(given).absolute() / name
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(caches) / "llava_lab" / name


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
