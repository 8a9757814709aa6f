"""3h. Clip: a video file or a folder of frames -> the frames that are wanted, with their times."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.error import FFmpegError
from PIL import Image

from llava_lab.data.picture import load_image
from llava_lab.data.rows import VideoPath, frame_files

__all__ = ["Clip", "Index", "VideoPath", "frame_files", "index_clip", "load_clip"]

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
class Index:
    """When the frames of a video are shown, found without decoding any.

    Attributes:
        times: Of each frame, in seconds from the first one, rising.
        fps: Frames a second, on average.
        duration: In seconds, the last frame's showing included.
    """

    times: list[float]
    fps: float
    duration: float


def load_clip(path: Path, choose: Choice) -> Clip:
    """Read the frames that are wanted of a video file, or of a folder of frames by name.

    Only what lies between a wanted frame and the key frame before it is decoded. Times are those
    of the frames themselves, so that a varying frame rate is no matter; what the file says about
    turning the picture is heeded.

    Args:
        path: The file or the folder.
        choose: Which frames are wanted, of how many at which rate; an index may come twice.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no video, damaged, cut short, or a folder without frames.
    """
    if path.is_dir():
        files = frame_files(path)
        index = _folder_index(files)
        wanted = choose(len(files), index.fps)
        read = {number: load_image(files[number]) for number in set(wanted)}
    else:
        with _opened(path) as (container, stream):
            index, stamps, keys = _file_index(path, container, stream)
            wanted = choose(len(stamps), index.fps)
            read = _decode(path, container, stream, stamps, keys, sorted(set(wanted)))
    frames = [read[number] for number in wanted]
    if len({frame.size for frame in frames}) > 1:
        sizes = sorted({f"{frame.width}x{frame.height}" for frame in frames})
        raise ValueError(f"{path}: frames of several sizes ({', '.join(sizes)}) in one video")
    return Clip(frames, [index.times[number] for number in wanted], index.duration)


def index_clip(path: Path) -> Index:
    """When the frames of a video are shown; raises what `load_clip` does."""
    if path.is_dir():
        return _folder_index(frame_files(path))
    with _opened(path) as (container, stream):
        return _file_index(path, container, stream)[0]


def _folder_index(files: Sequence[Path]) -> Index:
    times = [number / FOLDER_FPS for number in range(len(files))]
    return Index(times, FOLDER_FPS, len(files) / FOLDER_FPS)


class _opened:
    """A file's container and its first video stream; a decoder's troubles become one message."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> tuple[av.container.InputContainer, av.VideoStream]:
        if not self.path.exists():
            raise FileNotFoundError(f"{self.path}: there is no such video")
        try:
            self.container = av.open(str(self.path))
        except FFmpegError as error:
            raise ValueError(
                f"{self.path}: not a video, damaged, or cut short ({error.strerror})"
            ) from error
        if not self.container.streams.video:
            self.container.close()
            raise ValueError(f"{self.path}: has no pictures, only sound")
        stream = self.container.streams.video[0]
        stream.thread_type = "NONE"  # threads decode ahead what nobody wants
        return self.container, stream

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.container.close()
        if isinstance(error, FFmpegError):
            raise ValueError(f"{self.path}: damaged video ({error.strerror})") from error


def _file_index(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[Index, list[int], list[int]]:
    """The index, and in the stream's own units when frames and key frames are shown."""
    packets = [packet for packet in container.demux(stream) if packet.pts is not None]
    if len(packets) < stream.frames:
        raise ValueError(f"{path}: cut short, {len(packets)} of {stream.frames} frames are there")
    packets = sorted(
        (packet for packet in packets if not packet.is_discard), key=lambda packet: packet.pts or 0
    )
    if not packets:
        raise ValueError(f"{path}: holds no frame; damaged or cut short")
    stamps = [packet.pts or 0 for packet in packets]
    keys = [packet.pts or 0 for packet in packets if packet.is_keyframe]
    unit = stream.time_base or Fraction(1, 1)
    times = [float((stamp - stamps[0]) * unit) for stamp in stamps]
    duration = times[-1] + float((packets[-1].duration or 0) * unit)
    promised = _promised(stream)
    if duration + 1.5 * duration / len(times) < promised:
        raise ValueError(f"{path}: cut short, {duration:.2f} of {promised:.2f} seconds are there")
    rate = len(stamps) / duration if duration else float(stream.average_rate or 1)
    return Index(times, rate, duration), stamps, sorted(keys)


def _promised(stream: av.VideoStream) -> float:
    """Seconds that Matroska's header says the stream lasts; 0 where nothing is said."""
    for key, value in stream.metadata.items():
        if key.startswith("DURATION"):
            hours, minutes, seconds = value.split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    return 0.0


def _decode(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    stamps: list[int],
    keys: list[int],
    wanted: list[int],
) -> dict[int, Image.Image]:
    """Pictures of the wanted frames, by index."""
    found: dict[int, Image.Image] = {}
    frames, at = iter(()), None  # the decoder's output, and when its newest frame is shown
    frame = None
    for number in wanted:
        stamp = stamps[number]
        place = bisect_right(keys, stamp)
        key = keys[place - 1] if place else stamps[0]
        if at is None or key > at:
            container.seek(key, stream=stream)
            frames = container.decode(stream)
            at = None
        while at is None or at < stamp:
            frame = next(frames, None)
            if frame is None:
                raise ValueError(f"{path}: damaged or cut short at frame {number} of {len(stamps)}")
            at = frame.pts if frame.pts is not None else at
        assert frame is not None
        found[number] = _upright(frame)
    return found


def _upright(frame: av.VideoFrame) -> Image.Image:
    # The flag is how far to turn the picture against the clock.
    picture = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
