"""Distinct: rows whose pictures are none of a benchmark's, by their pixels and by how they look."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from llava_lab.core.below import files_below
from llava_lab.core.messages import listed
from llava_lab.data.fields import read_media
from llava_lab.data.image_folder import ImageFolder
from llava_lab.data.keys import CAPTION_KEYS
from llava_lab.data.known_files import KnownFiles
from llava_lab.data.media.picture import load_image
from llava_lab.data.pair_rows import with_image_key
from llava_lab.data.rows import FileRow, Refused

BITS = 64  # of imagehash's phash
INSTALL = "pip install 'llava-lab[make]'"
_KEYS = replace(CAPTION_KEYS, read=CAPTION_KEYS.read | {"images"})  # of answers, as TRL has them


@dataclass(frozen=True)
class Match:
    """A row's picture that is one of a benchmark's.

    Attributes:
        place: File and number of the row.
        image: Name of its picture.
        other: The benchmark's picture.
        bits: How many bits of their hashes differ; None where their pixels are the same.
    """

    place: str
    image: str
    other: str
    bits: int | None


class Pictures:
    """Pictures to compare with.

    Args:
        folders: Folders of them, looked through with all folders inside. Every file is opened,
            whatever its name; archives and tables are not looked into.
        bits: Most differing bits of two hashes that are taken for one picture; below 0 compares
            pixels alone.

    Attributes:
        compared: How many pictures there are.
        not_compared: Files that are no pictures, such as labels and archives.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If imagehash is not installed, a folder has no pictures, or some are damaged.
    """

    def __init__(self, folders: Iterable[Path], bits: int = 4):
        if not -1 <= bits < BITS:
            raise ValueError(f"--bits {bits}: a hash has {BITS}; -1 compares pixels alone")
        self.bits = bits
        self.compared, self.not_compared = 0, list[Path]()
        self.known = KnownFiles("pixels-phash-1")
        self.by_pixels: dict[str, str] = {}
        self.hashes: dict[int, str] = {}
        self.near: dict[tuple[int, int], list[int]] = {}
        for folder in folders:
            self._add(folder)

    def _add(self, folder: Path) -> None:
        if not folder.is_dir():
            is_file = "; it is a file: unpack it, and name the folder" if folder.is_file() else ""
            raise FileNotFoundError(f"{folder}: no such folder of pictures{is_file}")
        every = {path: _is_picture(path) for path in files_below(folder, whole=True)}
        paths = [path for path, shows in every.items() if shows]
        if not paths:
            raise ValueError(f"{folder}: there is no picture among its {len(every)} files")
        self.compared += len(paths)
        self.not_compared += [path for path, shows in every.items() if not shows]
        for path, (pixels, looks) in self.look(paths).items():
            self.by_pixels.setdefault(pixels, str(path))
            value = int(looks, 16)
            if value not in self.hashes:
                self.hashes[value] = str(path)
                for key in self._bands(value):
                    self.near.setdefault(key, []).append(value)

    def look(self, paths: Iterable[Path]) -> dict[Path, tuple[str, str]]:
        """Hash of the pixels of each picture, and perceptual hash; kept from start to start.

        Raises:
            ValueError: If some cannot be read.
        """
        try:
            import imagehash
        except ImportError:
            raise ValueError(f"hashes of pictures need imagehash: {INSTALL}") from None

        def of(path: Path) -> list[str]:
            picture = load_image(path)
            total = hashlib.sha256(f"{picture.width}x{picture.height}".encode())
            total.update(picture.tobytes())
            return [total.hexdigest(), str(imagehash.phash(picture))]

        found, faults = self.known.find(paths, of, "hashes of pictures")
        if faults:
            lines = listed(list(faults.values()), 10)
            raise ValueError(f"{len(faults)} pictures cannot be read:\n  {lines}")
        return found

    def match(self, pixels: str, looks: str) -> tuple[str, int | None] | None:
        """The picture that one is the same as, and how many bits differ; None if there is none."""
        if pixels in self.by_pixels:
            return self.by_pixels[pixels], None
        if self.bits < 0:
            return None
        value = int(looks, 16)
        candidates = {other for key in self._bands(value) for other in self.near.get(key, ())}
        found = [((value ^ other).bit_count(), other) for other in candidates]
        distance, other = min(found, default=(BITS, 0))
        return (self.hashes[other], distance) if distance <= self.bits else None

    def _bands(self, value: int) -> Iterator[tuple[int, int]]:
        """Parts of a hash: two hashes that differ in `bits` of it have one of `bits` + 1 alike."""
        number = max(self.bits, 0) + 1
        edges = [BITS * at // number for at in range(number + 1)]
        for at in range(number):
            yield at, (value >> edges[at]) & ((1 << (edges[at + 1] - edges[at])) - 1)


def _is_picture(path: Path) -> bool:
    """Whether a file is called a picture, or Pillow takes it for one; it may be damaged."""
    if Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN:
        return True
    try:
        with Image.open(path):
            return True
    except UnidentifiedImageError:
        return False
    except Exception:  # Pillow knows what it is, and cannot read it: reading it whole says why
        return True


def split(
    rows: Iterable[FileRow], images: Path, pictures: Pictures
) -> tuple[list[Mapping[str, Any]], list[Match], int]:
    """Part rows from those with a picture of a benchmark.

    Args:
        rows: LLaVA-format rows.
        images: Folder that their pictures' names start from.
        pictures: The benchmark's.

    Returns:
        Rows that stay; what the others show; and how many have a video, and stay unseen.

    Raises:
        ValueError: If a row's pictures are not there, or may be under a key that is not read.
    """
    every, folder = list(rows), ImageFolder(images)
    shown: list[list[Path]] = []
    names: list[list[str]] = []
    videos = 0
    for row in every:
        try:
            if not isinstance(row.value, dict):
                raise Refused(f"must be an object, not {type(row.value).__name__}")
            _KEYS.check(row.value)
            found, video = read_media(with_image_key(row.value))
            names.append(found)
            shown.append([folder.find(name) for name in found])
        except Refused as problem:
            raise ValueError(f"{row.place}: {problem}") from None
        videos += video is not None
    hashes = pictures.look(path for paths in shown for path in paths)
    kept, matches = [], []
    for row, paths, called in zip(every, shown, names, strict=True):
        same = [(name, pictures.match(*hashes[p])) for name, p in zip(called, paths, strict=True)]
        hits = [Match(row.place, name, *hit) for name, hit in same if hit]
        matches += hits
        if not hits:
            kept.append(row.value)
    return kept, matches, videos
