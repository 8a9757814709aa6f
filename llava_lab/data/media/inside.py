"""3. Inside: a path that leads into a .zip, .tar or .parquet file -> the bytes that it names there.

Such a path goes on behind the file's name: `images.zip/00453/1.jpg`, `shard-0000.tar/000017.jpg`,
or `train-00000.parquet/17.image` for the picture in column `image` of row 17.
"""

import os
import re
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from llava_lab.core.cache import stamp
from llava_lab.data.media.archive import ARCHIVES, open_archive
from llava_lab.data.media.columns import read_cell

TABLE = ".parquet"
CONTAINERS = (*ARCHIVES, TABLE)
_ENDS = re.compile(r"\.(?:zip|tar|parquet)(?=/|$)")


def inside(path: Path) -> tuple[Path, str] | None:
    """The file that a path leads into, and the rest of it; None for a path of the file system."""
    text = str(path)
    for end in _ENDS.finditer(text):
        if os.path.isfile(text[: end.end()]):
            return Path(text[: end.end()]), text[end.end() + 1 :]
    return None


def content(path: Path) -> bytes | None:
    """The bytes that a path into a file names; None for a path of the file system.

    Raises:
        FileNotFoundError: If there is nothing of that name.
        ValueError: If the file is damaged.
    """
    place = inside(path)
    if place is None or not place[1]:
        return None
    file, name = place
    return read_cell(file, name) if file.suffix == TABLE else open_archive(file).read(name)


def content_or_path(path: Path) -> Path | BytesIO:
    """What Pillow and the like open: a file in memory where a path leads into another one."""
    found = content(path)
    return path if found is None else BytesIO(found)


def names_in(folder: Path) -> list[str] | None:
    """Names of the files in a folder of an archive; None where a path leads into none.

    Raises:
        ValueError: If the archive is damaged.
    """
    place = inside(folder)
    if place is None or place[0].suffix == TABLE:
        return None
    file, name = place
    return _by_folder(file, stamp(file.stat())).get(name, [])


def folders_in(file: Path) -> list[str]:
    """Folders of an archive that hold files; the archive itself is the one without a name."""
    return [*_by_folder(file, stamp(file.stat()))]


@lru_cache(maxsize=4)
def _by_folder(file: Path, state: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for member in open_archive(file).members():
        folder, _, name = member.rpartition("/")
        found.setdefault(folder, []).append(name)
    return found
