"""3. Verified: images and videos -> their sizes, after decoding each whole file once."""

import functools
from collections.abc import Iterable
from pathlib import Path

import av
import PIL

from llava_lab.core.fingerprint import fingerprint
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.known_files import KnownFiles
from llava_lab.data.views.base import Views, verify_media
from llava_lab.data.views.video import Frames

Size = tuple[int, ...]


def verified(
    paths: Iterable[Path], views: Views, what: str
) -> tuple[dict[Path, Size], dict[Path, str]]:
    """Decode every file that was not decoded before, and return its size or what is wrong.

    Args:
        paths: Images and videos.
        views: How they are shown.
        what: What the files are, for the progress bar.

    Returns:
        Width, height and, of a video, the frames that are shown, of each file that can be read; and
        of each other one, why it cannot.
    """
    kinds: dict[str, list[Path]] = {}
    rules = {video: _rule(views, video) for video in (False, True)}
    for path in paths:
        kinds.setdefault(rules[isinstance(path, VideoPath)], []).append(path)
    sizes: dict[Path, Size] = {}
    faults: dict[Path, str] = {}
    for rule, files in kinds.items():
        found, broken = decoded_by(rule).find(
            files, lambda path: verify_media(path, views), f"{what}: files decoded"
        )
        sizes |= {path: tuple(size) for path, size in found.items()}
        faults |= broken
    return sizes, faults


@functools.cache
def decoded_by(rule: str) -> KnownFiles:
    """What this process knows of files that one rule loads."""
    return KnownFiles(rule)


def _rule(views: Views, video: bool) -> str:
    """Key of everything that decides how a file is loaded; most views load images alike."""
    decoders = (PIL.__version__, av.__version__)
    shown = views.image if type(views) is Frames and not video else views
    alike = type(shown).load is Views.load
    values = (decoders, views.upright) if alike else (decoders, shown)
    return fingerprint(*values, leave_out=("idle", "layout_only"))[:24]
