"""1. Image folder: names in rows -> paths of images and videos inside of one folder."""

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llava_lab.core import verdict_worlds
from llava_lab.data.rows import Refused, nearest

FRAME_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VIDEO_FILES = (".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".mpeg", ".ts")
_LAST_NUMBER = re.compile(r"(.*?)([0-9]+)([^0-9]*)")


class VideoPath(type(Path())):  # pyrefly: ignore[invalid-inheritance]
    """Path of a video: a file, or a folder of frames."""


def frame_files(folder: Path) -> list[Path]:
    """List the frames in a folder in the order of the numbers in their names: 2 before 10.

    Raises:
        ValueError: If there is none; or if names differ in one number only and that number repeats
            or does not rise in equal steps, so that a frame seems to be missing.
    """
    files = [file for file in folder.iterdir() if file.suffix.lower() in FRAME_FILES]
    if not files:
        raise ValueError(f"{folder}: no frames; files named {', '.join(FRAME_FILES)} are read")
    files.sort(key=_natural)
    _check_numbers(folder, files)
    return files


def _natural(file: Path) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort key of natural order: text as text, and numbers in it as numbers."""
    parts = re.findall(r"([0-9]+)|([^0-9]+)", file.stem)
    return [(not number, int(number or 0), text) for number, text in parts], file.name


def _check_numbers(folder: Path, files: Sequence[Path]) -> None:
    found = [_LAST_NUMBER.fullmatch(file.stem) for file in files]
    if len({(match[1], match[3]) if match else None for match in found}) > 1:
        return
    numbers = [int(match[2]) for match in found if match]
    steps = [after - before for before, after in itertools.pairwise(numbers)]
    # Indices spread evenly over a video and rounded are 14 or 15 apart, for example.
    most = min(steps, default=0) + (min(steps, default=0) > 1)
    for (before, after), step in zip(itertools.pairwise(files), steps, strict=False):
        if step == 0 or step > most:
            what = "have one number" if step == 0 else f"are {step} apart, others {min(steps)}"
            raise ValueError(
                f"{folder}: frames {before.name} and {after.name} {what}; frames are taken to be "
                "equally far apart: one is missing or too many, or number them so"
            )


class ImageFolder:
    """Folder that holds the images and videos of a file of rows.

    Each subfolder is listed once, when the first row names it: a check of every single file is slow
    on network disks with 600,000 images.

    Args:
        root: Folder that relative image paths start from and stay inside of.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise FileNotFoundError(f"{root}: no such folder of images{nearest(root)}")
        verdict_worlds.check_file(root)
        self.root = root.absolute()
        self._real = os.path.realpath(root)
        self._listed: dict[str, dict[str, bool]] = {}

    def find(self, name: str, kind: Literal["image", "video"] = "image") -> Path:
        """Return the absolute path of an existing image or video, or refuse its name.

        A video may be a folder of frames.
        """
        parts = name.split("/")
        if name.startswith("/") or ".." in parts:
            raise Refused(f"{kind} {name!r} is not a path inside of {self.root}")
        if "\0" in name or not parts[-1]:
            raise Refused(f"{kind} {name!r} is not the name of a file")
        folder = "/".join(parts[:-1])
        if folder not in self._listed:
            self._listed[folder] = self._list(folder)
        is_link = self._listed[folder].get(parts[-1])
        if kind == "video" and is_link is not False and os.path.isdir(self.root / name):
            self._keep_inside(name)
            for file, links in self._list(name).items():
                if links:
                    self._keep_inside(f"{name}/{file}")
            return self.root / name
        if is_link is None or (is_link and not os.path.isfile(self.root / name)):
            raise Refused(f"{kind} {name!r} is not in {self.root}")
        if is_link:
            self._keep_inside(name)
        return self.root / name

    def _list(self, folder: str) -> dict[str, bool]:
        """List the files of one folder and whether each is a symbolic link."""
        self._keep_inside(folder)
        try:
            with os.scandir(self.root / folder) as entries:
                return {e.name: e.is_symlink() for e in entries if e.is_symlink() or e.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as problem:
            raise Refused(f"folder {folder!r} can't be read ({problem.strerror})") from None

    def _keep_inside(self, name: str) -> None:
        real = os.path.realpath(self.root / name)
        if real != self._real and not real.startswith(os.path.join(self._real, "")):
            way_out = "keep the files themselves there, or give them a source of their own"
            raise Refused(f"path {name!r} is a link out of {self.root} to {real}; {way_out}")


def open_folder(images: Path | None) -> ImageFolder | None:
    """Open the folder of a file's images; None if its rows have none."""
    return None if images is None else ImageFolder(Path(images))
