"""3. Decode: a video file and its track -> images of chosen frames."""

from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import av
from av.video.frame import PictureType
from PIL import Image

from llava_lab.data.media.track import Track, opened

MAX_CLIP_PIXELS = 1_000_000_000  # of all chosen frames; 3 GB


def read_frames(path: Path, track: Track, wanted: Sequence[int]) -> dict[int, Image.Image]:
    """Decode chosen frames of a file, rotated as the file says.

    Args:
        path: The file.
        track: Its track, from `read_track`.
        wanted: Indices of the frames, rising.

    Returns:
        Images by index.

    Raises:
        ValueError: If a frame that must be decoded for them is damaged, or if they have more
            pixels than `MAX_CLIP_PIXELS`.
    """
    with opened(path) as (container, stream):
        check_pixels(path, len(wanted), stream.width, stream.height)
        found = _seek_frames(path, container, stream, track, wanted) if track.keys else None
    return _frames_from_start(path, track, wanted) if found is None else found


def check_pixels(path: Path, frames: int, width: int, height: int) -> None:
    """Refuse to read more than `MAX_CLIP_PIXELS` pixels of one video."""
    if frames * width * height > MAX_CLIP_PIXELS:
        raise ValueError(
            f"{path}: {frames} frames of {width}x{height} are {frames * width * height:,} pixels, "
            f"at most {MAX_CLIP_PIXELS:,} are read of a video; take fewer frames or scale it down"
        )


def _seek_frames(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    track: Track,
    wanted: Sequence[int],
) -> dict[int, Image.Image] | None:
    """Decode chosen frames, each from the key frame before it.

    Returns None if decoding cannot start at a key frame: H.264 also flags the first frame of a
    gradual intra refresh as one, which is not whole by itself.
    """
    found: dict[int, Image.Image] = {}
    keys = track.keys or []
    frames, at, key = container.decode(stream), None, track.stamps[0]
    for number in wanted:
        stamp = track.stamps[number]
        place = bisect_right(keys, stamp)
        if place and (at is None or keys[place - 1] > at):
            key, at = keys[place - 1], None
            container.seek(key, stream=stream)
            frames = container.decode(stream)
        for frame in frames:
            # Frames shown before the key frame may refer to frames that were skipped.
            if frame.pts is None or frame.pts < key:
                continue
            _refuse_corrupt(path, track, frame, frame.pts)
            if at is None and place and (frame.pts != key or frame.pict_type != PictureType.I):
                return None
            at = frame.pts
            if at >= stamp:
                break
        if at != stamp:
            return None
        found[number] = _upright(frame)
    return found


def _frames_from_start(path: Path, track: Track, wanted: Sequence[int]) -> dict[int, Image.Image]:
    """Decode chosen frames, and all frames before them."""
    found: dict[int, Image.Image] = {}
    number = 0
    with opened(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            stamp = track.stamps[min(number, len(track.stamps) - 1)]
            _refuse_corrupt(path, track, frame, stamp)
            if track.keys is not None and frame.pts != stamp:
                break  # a listed frame cannot be decoded
            if number in wanted:
                found[number] = _upright(frame)
            if number == wanted[-1]:
                return found
    raise ValueError(f"{path}: damaged or cut short at frame {number} of {len(track.stamps)}")


def _refuse_corrupt(path: Path, track: Track, frame: av.VideoFrame, stamp: int) -> None:
    if frame.is_corrupt:
        seconds = float((stamp - track.stamps[0]) * track.unit)
        raise ValueError(f"{path}: damaged, the frame at {seconds:.2f} seconds is corrupt")


def _upright(frame: av.VideoFrame) -> Image.Image:
    # The rotation flag is counterclockwise.
    picture = frame.to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
