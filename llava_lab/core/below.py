"""Below: a folder -> all files in it and in the folders below, those behind links too."""

import os
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and below it, sorted.

    Path.rglob leaves out folders that are links, in silence, and those that it may not read. A link
    to a folder that it lies in is not followed.

    Raises:
        OSError: If a folder cannot be read.
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
    return sorted(found)


def _leads_up(link: str, folder: Path) -> bool:
    """Whether a link leads to a folder, or to one that it lies in."""
    inside = os.path.join(os.path.realpath(folder), "")
    return inside.startswith(os.path.join(os.path.realpath(link), ""))
