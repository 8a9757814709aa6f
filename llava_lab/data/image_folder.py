"""1. Image folder: names in rows -> paths of images and videos inside of one folder."""

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from llava_lab.core import verdict_worlds
from llava_lab.data.media.inside import TABLE, folders_in, inside, names_in
from llava_lab.data.rows import Refused, nearest

FRAME_FILES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VIDEO_FILES = (".mp4", ".m4v", ".mkv", ".webm", ".avi", ".mov", ".mpg", ".mpeg", ".ts")
_LAST_NUMBER = re.compile(r"(.*?)([0-9]+)([^0-9]*)")


class VideoPath(type(Path())):  # pyrefly: ignore[invalid-inheritance]
    """Path of a video: a file, or a folder of frames.

    It is not equal to the path of the same file as a picture: one row may show a GIF's first frame,
    and another one its film.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VideoPath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(("video", str(self)))

    @property
    def also_a_picture(self) -> bool:
        """Whether its bytes alone do not say that it is a video."""
        return self.suffix.lower() in (*FRAME_FILES, ".gif")


def frame_files(folder: Path) -> list[Path]:
    """List the frames in a folder in the order of the numbers in their names: 2 before 10.

    Raises:
        ValueError: If there is none; or if names differ in one number only and that number repeats
            or does not rise in equal steps, so that a frame seems to be missing.
    """
    files = [file for file in folder.iterdir() if file.suffix.lower() in FRAME_FILES]
    if not files:
        raise ValueError(f"{folder}: no frames; files named {', '.join(FRAME_FILES)} are read")
    files.sort(key=natural)
    _check_numbers(folder, files)
    return files


def natural(file: Path) -> tuple[list[tuple[bool, int, str]], str]:
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
    """Folder that holds the images and videos of a file of rows; or an archive, or a folder in one.

    Each subfolder is listed once, when the first row names it: a check of every single file is slow
    on network disks with 600,000 images.

    Args:
        root: Folder, .zip or .tar that relative image paths start from and stay inside of.
    """

    def __init__(self, root: Path):
        if not root.is_dir() and not names_in(root) and not _holds_folders(root):
            raise FileNotFoundError(f"{root}: no such folder of images{_near_folder(root)}")
        verdict_worlds.check_file(root)
        self.root = root.absolute()
        self._real = os.path.realpath(root)
        self._listed: dict[str, dict[str, bool]] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str, kind: Literal["image", "video"] = "image") -> Path:
        """Return the absolute path of an existing image or video, or refuse its name.

        A video may be a folder of frames, and its name may lack the ending, as in VideoInstruct; a
        .jpg is found as .gif where only that is there, as OCR-VQA's own script writes them.
        """
        parts = name.split("/")
        if name.startswith("/") or ".." in parts:
            raise Refused(f"{kind} {name!r} is not a path inside of {self.root}")
        folder = "/".join(parts[:-1])
        if "\0" in name or not parts[-1]:
            raise Refused(f"{kind} {name!r} is not the name of a file")
        if folder.endswith(TABLE) and inside(self.root / folder) is not None:
            return self.root / name
        if folder not in self._listed:
            self._listed[folder] = self._list(folder)
        is_link = self._listed[folder].get(parts[-1])
        if kind == "video" and is_link is not False and os.path.isdir(self.root / name):
            return self._frames(name)
        if is_link is None and (other := self._otherwise(folder, parts[-1], kind)) is not None:
            return self.find(f"{folder}/{other}" if folder else other, kind)
        if is_link is None or (is_link and not os.path.isfile(self.root / name)):
            raise Refused(f"{kind} {name!r} is not in {self.root}{self._hint(folder)}")
        if is_link:
            self._keep_inside(name)
        return self.root / name

    def find_again(self, name: str, kind: Literal["image", "video"]) -> None:
        """Refuse a file that is gone, or that a row may have named otherwise and would not now.

        Args:
            name: Name of a file that was found before, maybe by a name without its ending.
            kind: What it is.
        """
        found, (stem, ending) = self.find(name, kind), os.path.splitext(name)
        if kind == "image" and ending == ".gif":
            found = self.find(f"{stem}.jpg")
        elif kind == "video" and ending.lower() in VIDEO_FILES:
            found = self.find(stem, kind)
        if found != self.root / name:
            raise Refused(f"{kind} {name!r} may be {found.name}")

    def _frames(self, name: str) -> Path:
        """Return the path of a folder of frames."""
        self._keep_inside(name)
        for file, links in self._list(name).items():
            if links:
                self._keep_inside(f"{name}/{file}")
        return self.root / name

    def _otherwise(self, folder: str, name: str, kind: str) -> str | None:
        """Name of the file that is meant by a name without its ending, or with another one."""
        stem, ending = os.path.splitext(name)
        if kind == "image":
            meant = f"{stem}.gif"
            return meant if ending == ".jpg" and meant in self._listed[folder] else None
        if ending.lower() in VIDEO_FILES:
            return None
        if folder not in self._stems:
            stems = self._stems[folder] = {}
            for file in self._listed[folder]:
                own, ending = os.path.splitext(file)
                if ending.lower() in VIDEO_FILES:
                    stems.setdefault(own, []).append(file)
        found = sorted(self._stems[folder].get(name, []))
        if len(found) > 1:
            raise Refused(f"video {name!r} may be {' or '.join(found)}; keep one of these files")
        return found[0] if found else None

    def _hint(self, folder: str) -> str:
        """Where the pictures of an archive are, if there is one folder of them and no other."""
        place = inside(self.root)
        if place is None or self._listed.get(folder):
            return ""
        folders = {each.split("/")[0] for each in folders_in(place[0])}
        return f"; its files are under {self.root}/{min(folders)}" if len(folders) == 1 else ""

    def _list(self, folder: str) -> dict[str, bool]:
        """List the files of one folder and whether each is a symbolic link."""
        packed = names_in(self.root / folder)
        if packed is not None:
            return dict.fromkeys(packed, False)
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


def _holds_folders(root: Path) -> bool:
    """Whether a path is a folder of an archive in which there are others."""
    place = inside(root)
    if place is None or place[0].suffix == TABLE:
        return False
    within = f"{place[1]}/" if place[1] else ""
    return any(each.startswith(within) for each in folders_in(place[0]))


def _near_folder(root: Path) -> str:
    place = inside(root)
    if place is None:
        return nearest(root)
    folders = sorted({each.split("/")[0] for each in folders_in(place[0])} - {""})
    return f" in that archive{'; it has ' + ', '.join(folders[:3]) if folders else ''}"


def open_folder(images: Path | None) -> ImageFolder | None:
    """Open the folder of a file's images; None if its rows have none."""
    return None if images is None else ImageFolder(Path(images))
