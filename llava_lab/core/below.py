"""Below: a folder -> all files in it and in the folders below, those behind links too."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path


def files_below(folder: Path, whole: bool = False) -> list[Path]:
    """All files in a folder and below it, sorted.

    Path.rglob leaves out folders that are links, in silence, and those that it may not read. A link
    to a folder that it lies in is not followed.

    Args:
        folder: The folder.
        whole: Whether to refuse a link whose file is gone, as of data that were fetched in part.

    Raises:
        OSError: If a folder cannot be read, or, of a whole one, what a link leads to is gone.
    """
    found, pending = [], [folder]
    while pending:
        here = pending.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.is_dir() and not (entry.is_symlink() and _leads_up(entry.path, here)):
                    pending.append(Path(entry.path))
                elif entry.is_file():
                    found.append(Path(entry.path))
                elif whole and entry.is_symlink() and not os.path.exists(entry.path):
                    raise FileNotFoundError(
                        f"{entry.path}: a link to {os.readlink(entry.path)}, which is not there; "
                        "fetch the file anew, or remove the link"
                    )
    return sorted(found)


def _leads_up(link: str, folder: Path) -> bool:
    """Whether a link leads to a folder, or to one that it lies in."""
    inside = os.path.join(os.path.realpath(folder), "")
    return inside.startswith(os.path.join(os.path.realpath(link), ""))


def endings(paths: Iterable[Path]) -> str:
    """Endings of files with how many have each, as a list: 12 .txt, 1 without an ending."""
    found = Counter(path.suffix or "without an ending" for path in paths)
    return ", ".join(f"{number:,} {ending}" for ending, number in found.most_common())
