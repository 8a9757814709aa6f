"""1. Shards: .parquet and .tar files with pictures inside -> rows, whose pictures have paths there.

Nothing is unpacked: a row names its picture by a path into the shard (see media/inside.py), which
is read when the row is. HF's own reader would copy a .parquet into its cache first, or stream it,
and webdataset streams; rows that can be asked for by number keep order, hold-out and resuming
exact.
"""

import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from llava_lab.core import verdict_worlds
from llava_lab.core.below import files_below
from llava_lab.core.progress import progress
from llava_lab.core.strict_json import parse
from llava_lab.data.image_folder import FRAME_FILES, VIDEO_FILES, natural
from llava_lab.data.media.archive import open_archive
from llava_lab.data.media.clip import readable_digests
from llava_lab.data.media.columns import pictures, without_content
from llava_lab.data.media.inside import TABLE, content, inside
from llava_lab.data.rows import FileRow, Unreadable, nearest, place_of
from llava_lab.data.shard_names import check_one_split, check_whole

KINDS = (TABLE, ".tar")
_PICTURES = (*FRAME_FILES, ".gif", ".tif", ".tiff", ".jfif", ".avif")
_PICTURE_KEYS = ("image", "images")


def is_shards(path: Path) -> bool:
    """Whether a source is a shard, or a folder of shards."""
    return path.suffix in KINDS or path.is_dir()


def shards_of(path: Path) -> list[Path]:
    """The shards of a source: itself, or all in a folder and its subfolders, by their names.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a folder holds both kinds, or several splits, or lacks a file.
    """
    verdict_worlds.check_file(path)
    if not path.is_dir():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file{nearest(path)}")
        return [path]
    found = [each for each in files_below(path, whole=True) if each.suffix in KINDS]
    kinds = {each.suffix for each in found}
    if not found:
        raise FileNotFoundError(f"{path}: a folder without {' or '.join(KINDS)} files")
    if len(kinds) > 1:
        raise ValueError(f"{path}: holds {' and '.join(sorted(kinds))} files; name one of them")
    check_whole(found)
    check_one_split(path, found)
    return found


def read_shards(path: Path, by_name: bool) -> list[FileRow]:
    """Read the rows of a shard, or of all shards of a folder, one shard after another.

    Args:
        path: The shard or the folder.
        by_name: Whether pictures are in a folder of their own, under the names that rows of a
            .parquet have of them.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If one is damaged, or none has rows.
    """
    shards = shards_of(path)
    root = path if path.is_dir() else path.parent
    rows: list[FileRow] = []
    with progress(f"{path.name}: shards read", len(shards)) as bar:
        for shard in shards:
            name = shard.relative_to(root).as_posix()
            if shard.suffix == TABLE:
                rows += _of_table(shard, name, by_name)
            elif by_name:
                raise ValueError(f"{shard}: a .tar has its pictures inside; leave images out")
            else:
                rows += _of_tar(shard, name)
            bar.update()
    if not rows:
        raise ValueError(f"{path}: holds no rows")
    return rows


def _of_table(shard: Path, name: str, by_name: bool) -> Iterator[FileRow]:
    number, named = 0, None
    try:
        with ParquetFile(shard) as file:
            held = pictures(file.schema_arrow)
            columns = without_content(file)
            for batch in file.iter_batches(256, columns=columns, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    for column in held:
                        cell = row.get(column)
                        several = isinstance(cell, list) and len(cell) > 0
                        first = cell[0] if several else cell
                        if named is None and isinstance(first, dict) and not by_name:
                            named = first.get("path")
                            _check_inside(shard, f"{number}.{column}{'.1' * several}", named)
                        row[column] = _named(cell, f"{name}/{number}.{column}", by_name)
                    yield FileRow(place_of(shard, number), number, _with_id(row, shard, number))
    except (pa.ArrowException, OSError) as problem:
        raise ValueError(f"{shard}: cannot be read as parquet ({problem})") from None


def _check_inside(shard: Path, picture: str, named: str | None) -> None:
    """Refuse a file that has names of pictures in place of their bytes."""
    if named and not _is_there(shard / picture):
        raise ValueError(
            f"{shard}: names its pictures, the first {named!r}, but does not hold them; set images "
            "to their folder"
        )


def _named(cell: Any, within: str, by_name: bool) -> Any:
    """The name of a picture, or of each picture of a list, in place of its bytes."""
    if isinstance(cell, list):
        every = [(f"{within}.{at}", each) for at, each in enumerate(cell, 1)]
        if by_name:
            return [_named(each, place, by_name) or "" for place, each in every]  # "" is refused
        return [place for place, _ in every]  # one that is null has no bytes
    if by_name and isinstance(cell, dict):
        return cell.get("path")
    return None if cell is None else within


def _with_id(row: dict[str, Any], shard: Path, number: int) -> dict[str, Any]:
    return row if row.get("id") is not None else {**row, "id": f"{shard.stem}-{number}"}


def _of_tar(shard: Path, name: str) -> Iterator[FileRow]:
    """Rows of a shard of webdataset's: members of one name, up to its first dot, are a row."""
    archive = open_archive(shard)
    samples: dict[str, dict[str, str]] = {}
    for member in archive.members():
        folder, slash, file = member.rpartition("/")
        key, _, ending = file.partition(".")
        samples.setdefault(f"{folder}{slash}{key}", {})[ending] = member
    for number, (key, members) in enumerate(samples.items(), 1):
        try:
            texts = {
                ending: archive.read(members[ending]).decode("utf-8-sig")
                for ending in ("json", "txt")
                if ending in members
            }
            paths = {ending: f"{name}/{each}" for ending, each in members.items()}
            value: Any = _of_members(key, texts, paths)
        except (OSError, ValueError) as problem:
            value = Unreadable(str(problem))
        yield FileRow(place_of(shard, number), number, value)


def _of_members(key: str, texts: Mapping[str, str], paths: Mapping[str, str]) -> dict[str, Any]:
    """A row of the members of a sample: its own row in .json, or its caption in .txt.

    Args:
        key: The sample's name.
        texts: Those of its .json and .txt.
        paths: Paths of its members by their endings.

    Raises:
        ValueError: If they make no row.
    """
    row: Any = parse(texts["json"], "member .json") if "json" in texts else {}
    if not isinstance(row, dict):
        raise ValueError(f"member .json holds a {type(row).__name__}, not an object")
    images, videos = (
        sorted(
            (path for ending, path in paths.items() if f".{ending}".lower().endswith(kinds)),
            key=lambda path: natural(Path(path)),
        )
        for kinds in (_PICTURES, VIDEO_FILES)
    )
    if isinstance(given := row.get("image"), list) and given and images:
        images = _as_listed(given, {end: path for end, path in paths.items() if path in images})
    caption = texts["txt"].strip() if "txt" in texts else row.get("caption")
    if "conversations" not in row and isinstance(caption, str):
        if not images and not videos:
            members = ", ".join(sorted(paths))
            raise ValueError(f"has a caption and no picture or video; its members are {members}")
        marks = "<image>" * len(images) + "<video>" * len(videos)
        asked = [{"from": "human", "value": marks}, {"from": "gpt", "value": caption}]
        row = {"conversations": asked}
    elif not row:
        raise ValueError(f"has neither .json nor .txt; its members are {', '.join(sorted(paths))}")
    if (named := row.get("image") or row.get("video")) and not images and not videos:
        raise ValueError(f"names {reprlib.repr(named)}, but the shard holds no picture for it")
    if len(videos) > 1:
        raise ValueError(f"{len(videos)} videos in one sample; a row has one")
    return {"id": key, **row, "image": images or None, "video": videos[0] if videos else None}


def _as_listed(given: Sequence[Any], images: Mapping[str, str]) -> list[str]:
    """Pictures of a sample in the order in which its .json names them.

    Args:
        given: What .json has: names of members, or what they have behind the sample's own name.
        images: Paths of the pictures by that.

    Raises:
        ValueError: If there are several, and some have no member, or some member is not named.
    """
    known = {Path(path).name: path for path in images.values()} | dict(images)
    found = [known.get(str(name).rpartition("/")[2], "") for name in given]
    if {*found} == {*images.values()}:
        return found
    if len(given) == len(images) == 1:
        return [*images.values()]
    members = ", ".join(sorted(Path(path).name for path in images.values()))
    raise ValueError(
        f"'image' of .json lists {reprlib.repr(given)}, and the pictures of the sample are "
        f"{members}: so their order is not known; list these names"
    )


def with_one_path_each(rows: Sequence[FileRow], root: Path) -> list[FileRow]:
    """Give pictures of the same bytes one path, that of the first, and drop one without bytes.

    A row of which a list has a picture without bytes is not readable.

    So a picture that several rows have is one picture, as it is where rows name files: it is on one
    side of a hold-out, and is decoded, measured and encoded once.

    Args:
        rows: Rows of shards.
        root: Folder that their paths start from.
    """
    names = list(dict.fromkeys(name for row in rows for name in _pictures_of(row.value)))
    paths = {name: root / name for name in names if inside(root / name) is not None}
    digests, _ = readable_digests(paths.values())
    first: dict[str, str] = {}
    new: dict[str, str | None] = {}
    for name, path in paths.items():
        if path in digests:
            new[name] = first.setdefault(digests[path], name)
        elif not _is_there(path):
            new[name] = None
    return [row._replace(value=_with_pictures(row.value, new)) for row in rows]


def _is_there(path: Path) -> bool:
    try:
        return content(path) is not None
    except FileNotFoundError:
        return False
    except ValueError:
        return True


def _pictures_of(value: Any) -> Iterable[str]:
    for key in _PICTURE_KEYS if isinstance(value, dict) else ():
        given = value.get(key)
        yield from (
            x for x in (given if isinstance(given, list) else [given]) if isinstance(x, str)
        )


def _with_pictures(value: Any, new: Mapping[str, str | None]) -> Any:
    if not isinstance(value, dict):
        return value

    def named(given: Any) -> Any:
        if isinstance(given, list):
            return list(map(named, given))
        return new.get(given, given) if isinstance(given, str) else given

    row = {key: named(each) if key in _PICTURE_KEYS else each for key, each in value.items()}
    for key in _PICTURE_KEYS:
        if isinstance(row.get(key), list) and None in row[key]:
            number = row[key].index(None) + 1
            return Unreadable(f"picture {number} of {key!r} has no bytes in the shard")
    return row
