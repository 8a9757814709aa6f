"""3. Clip: a video file or a folder of frames -> chosen frames, with their times."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llava_lab.core.messages import listed
from llava_lab.core.records import file_sha256
from llava_lab.data.image_folder import VideoPath, frame_files
from llava_lab.data.known_files import KnownFiles
from llava_lab.data.media.decode import check_pixels, read_frames
from llava_lab.data.media.inside import content
from llava_lab.data.media.picture import load_image
from llava_lab.data.media.track import Track, read_track

# Frames of a folder are half a second apart, as ShareGPTVideo's are.
FOLDER_FPS = 2

# Number of frames and frames a second of a video -> indices of the chosen frames, rising.
Choice = Callable[[int, float], Sequence[int]]


@dataclass(frozen=True)
class Clip:
    """Chosen frames of a video.

    Attributes:
        frames: RGB images, upright.
        times: Time of each frame, in seconds after the video's first frame.
        duration: Duration of the whole video, in seconds.
    """

    frames: list[Image.Image]
    times: list[float]
    duration: float

    @property
    def size(self) -> tuple[int, int, int]:
        """Width, height and number of frames."""
        return self.frames[0].width, self.frames[0].height, len(self.frames)


@dataclass(frozen=True)
class FrameTimes:
    """Times of all frames of a video.

    Attributes:
        times: Time of each frame, in seconds after the first one, rising.
        fps: Frames a second, on average.
        duration: Duration in seconds, until the last frame ends.
    """

    times: list[float]
    fps: float
    duration: float


def load_clip(path: Path, choose: Choice, upright: bool = False) -> Clip:
    """Read chosen frames of a video file, or of a folder of frames.

    The frames equal those at the same indices when the whole file is decoded. In MP4, MOV, Matroska
    and WebM only the frames between a chosen one and the key frame before it are decoded; other
    formats are decoded from their start, twice. Times are the frames' own, so a variable frame rate
    is fine; rotation flags of the file are applied.

    Args:
        path: The file or the folder.
        choose: Number of frames and frame rate -> indices of the chosen frames; they may repeat.
        upright: Whether the frames of a folder are turned as their EXIF orientation says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no video, damaged, cut short, beyond a limit (`MAX_FRAMES` and the
            like), or a folder without frames.
    """
    if path.is_dir():
        files = frame_files(path)
        index = _folder_index(files)
        wanted = choose(len(files), index.fps)
        read = _folder_frames(path, files, sorted(set(wanted)), upright)
    else:
        track = read_track(path)
        index = _index(track)
        wanted = choose(len(index.times), index.fps)
        read = read_frames(path, track, sorted(set(wanted)))
    frames = [read[number] for number in wanted]
    if len({frame.size for frame in frames}) > 1:
        sizes = sorted({f"{frame.width}x{frame.height}" for frame in frames})
        raise ValueError(f"{path}: frames of several sizes ({', '.join(sizes)}) in one video")
    return Clip(frames, [index.times[number] for number in wanted], index.duration)


def index_clip(path: Path) -> FrameTimes:
    """Find the times of a video's frames; raises what `load_clip` does."""
    if path.is_dir():
        return _folder_index(frame_files(path))
    return _index(read_track(path))


def _index(track: Track) -> FrameTimes:
    times = [float((stamp - track.stamps[0]) * track.unit) for stamp in track.stamps]
    duration = float((track.end - track.stamps[0]) * track.unit)
    return FrameTimes(times, len(times) / duration if duration else 1.0, duration)


def _folder_index(files: Sequence[Path]) -> FrameTimes:
    times = [number / FOLDER_FPS for number in range(len(files))]
    return FrameTimes(times, FOLDER_FPS, len(files) / FOLDER_FPS)


def _folder_frames(
    path: Path, files: Sequence[Path], wanted: Sequence[int], upright: bool
) -> dict[int, Image.Image]:
    found: dict[int, Image.Image] = {}
    for number in wanted:
        found[number] = load_image(files[number], upright)
        # As if all were as large as this one; frames of several sizes are refused later.
        check_pixels(path, len(wanted), *found[number].size)
    return found


def image_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the bytes of all frames of a folder."""
    return image_digests([path])[path]


def image_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """SHA-256 of the bytes of each image or video; files that have not changed are not read again.

    Raises:
        ValueError: If some cannot be read; the message has the first ten.
    """
    digests, faults = readable_digests(paths)
    if faults:
        examples = listed(list(faults.values()), 10)
        raise ValueError(f"{len(faults)} pictures or videos cannot be read:\n  {examples}")
    return digests


def shown_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """What each image or video shows: its digest, and where it may be both, which of them it is.

    Raises:
        ValueError: If some cannot be read.
    """
    return {
        path: digest + "-video" * (isinstance(path, VideoPath) and path.also_a_picture)
        for path, digest in image_digests(paths).items()
    }


def readable_digests(paths: Iterable[Path]) -> tuple[dict[Path, str], dict[Path, str]]:
    """Digests of the images and videos that can be read; of each other one, why it cannot."""
    return _digests.find(paths, _digest, "digests of pictures")


def _digest(path: Path) -> str:
    if path.is_dir():
        return hashlib.sha256("".join(map(file_sha256, frame_files(path))).encode()).hexdigest()
    packed = content(path)
    return file_sha256(path) if packed is None else hashlib.sha256(packed).hexdigest()


_digests = KnownFiles("sha256")
