"""1. Video names: what published files call a video -> the name of its file in a folder."""

import os
from collections import defaultdict
from functools import cached_property
from pathlib import Path

from llava_lab.data.image_folder import VIDEO_FILES
from llava_lab.data.rows import Refused

ENDINGS = (*VIDEO_FILES, ".gif")


class VideoNames:
    """Finds videos of a folder by name: with any known ending, and with `v_` before it or not.

    Args:
        folder: The folder; one of frames inside of it is a video, too.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    @cached_property
    def _found(self) -> dict[str, dict[str, str]]:
        """Map stem and ending to files and folders of frames."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for entry in sorted(os.listdir(self.folder)):
            stem, ending = os.path.splitext(entry)
            if ending.lower() in ENDINGS:
                found[stem][ending.lower()] = entry
            elif (self.folder / entry).is_dir():
                found[entry][""] = entry
        return found

    def find(self, name: str) -> str:
        """The name of a video's file or folder.

        Raises:
            Refused: If there is none of that name.
        """
        stem, ending = os.path.splitext(name)
        stem = stem if ending.lower() in ENDINGS else name
        for each in (stem, f"v_{stem}"):
            for ending in (*ENDINGS, ""):
                if ending in self._found.get(each, {}):
                    return self._found[each][ending]
        raise Refused(
            f"video {name!r} is not in {self.folder}, nor v_{name}, as {', '.join(ENDINGS)} or a "
            "folder of frames"
        )
