"""Caption inputs: a folder or a file of rows -> the images and videos to caption."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llava_lab.core import verdict_worlds
from llava_lab.core.below import endings, files_below
from llava_lab.core.progress import say
from llava_lab.data.fields import read_id, read_media
from llava_lab.data.image_folder import VIDEO_FILES, ImageFolder, VideoPath
from llava_lab.data.keys import CAPTION_KEYS
from llava_lab.data.rows import FileRow, Refused, read_rows


@dataclass(frozen=True)
class CaptionInput:
    """An image or video to caption.

    Attributes:
        id: Id of its row in the output.
        name: Its name in that row.
        path: Where it is; a VideoPath for a video.
    """

    id: str
    name: str
    path: Path

    @property
    def kind(self) -> str:
        """Its key in a row: "image" or "video"."""
        return "video" if isinstance(self.path, VideoPath) else "image"

    @property
    def key(self) -> str:
        """Its name in a journal: its id and where it is, since an id may be given to another."""
        return f"{self.id} {os.path.abspath(self.path)}"


def read_inputs(source: Path, images: Path | None) -> list[CaptionInput]:
    """List what to caption, in order.

    Args:
        source: Folder, whose images and videos are taken by name, or file of rows with one each.
        images: Folder that the rows' paths start from; None takes the file's own folder.

    Raises:
        ValueError: If there is none, two have one id, or a row has none or several.
    """
    if source.is_dir():
        verdict_worlds.check_file(source)
        known = (*Image.registered_extensions(), *VIDEO_FILES)
        every = files_below(source, whole=True)
        inputs = [_of_file(path, source) for path in every if path.suffix.lower() in known]
        if others := [path for path in every if path.suffix.lower() not in known]:
            what = f"{source}: {len(others):,} files are not called pictures or videos"
            say(f"{what}, and get no caption: {endings(others)}")
    else:
        folder = ImageFolder(images or source.parent)
        inputs = [_of_row(row, folder) for row in read_rows(source)]
    twice = [name for name, times in Counter(each.id for each in inputs).items() if times > 1]
    if twice:
        raise ValueError(
            f"{source}: {len(twice)} ids are repeated, the first {twice[0]!r}; "
            "results are kept by id, so give each row its own"
        )
    if not inputs:
        raise ValueError(f"{source}: there is no image and no video")
    return inputs


def _of_file(path: Path, folder: Path) -> CaptionInput:
    name = str(path.relative_to(folder))
    try:
        name.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(name)
        raise ValueError(f"{folder}: file name {shown!r} is not UTF-8; rename it") from None
    return CaptionInput(name, name, VideoPath(path) if path.suffix.lower() in VIDEO_FILES else path)


def _of_row(row: FileRow, folder: ImageFolder) -> CaptionInput:
    values = row.value if isinstance(row.value, dict) else {}
    try:
        CAPTION_KEYS.check(values)
        images, video = read_media(values)
        names = images if video is None else [video]
        if len(names) != 1:
            raise Refused(f"`image` is {values.get('image')!r}, not one path")
        path = folder.find(names[0], "image" if video is None else "video")
        name = names[0] if values.get("id") is None else read_id(values, "id")
    except Refused as problem:
        raise ValueError(f"{row.place}: {problem}") from None
    return CaptionInput(name, names[0], path if video is None else VideoPath(path))
