"""3. Clip: a video file or a folder of frames -> the frames that are wanted, with their times."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llava_lab.data.image_folder import frame_files
from llava_lab.data.media.decode import check_pixels, read_frames
from llava_lab.data.media.picture import load_image
from llava_lab.data.media.track import Track, read_track

# Frames of a folder are half a second apart, as ShareGPTVideo's are.
FOLDER_FPS = 2

# Number of frames and frames a second of a clip -> the indices that are wanted, rising.
Choice = Callable[[int, float], Sequence[int]]


@dataclass(frozen=True)
class Clip:
    """Frames of a video, as they are shown.

    Attributes:
        frames: RGB, upright.
        times: When each is shown, in seconds from the video's first frame.
        duration: Of the whole video, in seconds.
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
    """When the frames of a video are shown.

    Attributes:
        times: Of each frame, in seconds from the first one, rising.
        fps: Frames a second, on average.
        duration: In seconds, the last frame's showing included.
    """

    times: list[float]
    fps: float
    duration: float


def load_clip(path: Path, choose: Choice, upright: bool = False) -> Clip:
    """Read the frames that are wanted of a video file, or of a folder of frames.

    The frames are those that decoding the whole file gives at these indices. Of MP4, MOV, Matroska
    and WebM only what lies between a wanted frame and the key frame before it is decoded; other
    formats are decoded from their start, twice. Times are those of the frames themselves, so that
    a varying frame rate is no matter; what the file says about turning the picture is heeded.

    Args:
        path: The file or the folder.
        choose: Which frames are wanted, of how many at which rate; an index may come twice.
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
    """When the frames of a video are shown; raises what `load_clip` does."""
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
        # Were all as large as this one; frames of several sizes are refused afterwards.
        check_pixels(path, len(wanted), *found[number].size)
    return found


def image_digest(path: Path) -> str:
    """SHA-256 of the file's bytes; of a folder of frames, of all of theirs."""
    if path.is_dir():
        return hashlib.sha256("".join(map(image_digest, frame_files(path))).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
