"""Verdict worlds: generated data that `report --run` alone makes, trains on and asks.

What is tuned is tuned on worlds that anyone may look at. A verdict must be made on others, so that
nothing was chosen by what it is made on: worlds whose seed is 1000 or more. They are open to
`report --run`, to the processes that it starts, and to `report`, whose pages show their pictures.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FIRST = 1000  # seed of the first such world
MANIFEST = "manifest.json"  # of every generated world
WHY = (
    f"worlds with seeds from {FIRST} on are kept for verdicts, which are made on data that nothing "
    f"was chosen by: `report` alone opens them. Take a world with a seed below {FIRST}"
)
_OPENED_BY = "LLAVA_LAB_VERDICT_WORLDS_OPENED_BY"  # its process, for those that it starts


@contextmanager
def opened() -> Iterator[None]:
    """Open the worlds of verdicts to this process and to those that it starts meanwhile."""
    before = os.environ.get(_OPENED_BY)
    os.environ[_OPENED_BY] = str(os.getpid())
    try:
        yield
    finally:
        if before is None:
            del os.environ[_OPENED_BY]
        else:
            os.environ[_OPENED_BY] = before


def check_seed(seed: int, what: str) -> None:
    """Refuse the world of a seed that is kept for verdicts.

    Args:
        seed: The world's seed.
        what: What has it, for the message: "TinyWorld".

    Raises:
        ValueError: If it is one and they are not open here.
    """
    if seed >= FIRST and not _open():
        raise ValueError(f"{what}: seed is {seed}; {WHY}.")


def check_file(path: Path) -> None:
    """Refuse a file or a folder of a world that is kept for verdicts.

    Args:
        path: The file or folder.

    Raises:
        ValueError: If it is of one and they are not open here.
    """
    for folder in (path.absolute(), *path.absolute().parents):
        check_seed(_seed(folder / MANIFEST), f"{path} is of the world {folder}")


def _seed(manifest: Path) -> int:
    """Seed of the world of a manifest; -1 where it is of something else."""
    try:
        settings = json.loads(manifest.read_bytes())["settings"]
        return int(settings["seed"]) if "generator_version" in settings else -1
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return -1


def _open() -> bool:
    """Whether this process or a living one that started it has opened them."""
    by = os.environ.get(_OPENED_BY, "")
    if not by.isdecimal() or int(by) == 0:
        return False
    try:
        os.kill(int(by), 0)
    except (OverflowError, ProcessLookupError):
        return False
    except PermissionError:  # another user's
        pass
    return True
