"""3. Track: a video file -> the times of its frames; an incomplete file is refused."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import av
from av.error import FFmpegError

from llava_lab.core.atomic import check_regular
from llava_lab.data.media.inside import content, inside

# Limits of one video; more is refused before it is decoded.
MAX_FRAME_PIXELS = 8192 * 8192
MAX_FRAMES = 500_000  # 4.6 hours at 30 frames a second
MAX_SECONDS = 24 * 3600
# FFmpeg's demuxers that read the given file only. Others open files and addresses that it names:
# playlists (hls, dash, concat), sdp, numbered images.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,flv,asf,ogg"
# Formats with a time for every frame and an index of key frames, in which seeking is exact.
_SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# PyAV refused a file for a tag that is not UTF-8, unless told not to; 19 takes it and no option.
_TAGS: dict[str, Any] = {"metadata_errors": "replace"}
if int(av.__version__.partition(".")[0]) >= 19:
    _TAGS = {}
_CLOCK = re.compile(r"(\d+):(\d+):(\d+\.?\d*)", re.ASCII)
Opened = tuple[av.container.InputContainer, av.VideoStream]


class Track(NamedTuple):
    """Times of a video's frames, in the order in which they are shown.

    Attributes:
        stamps: Time of each frame, in units.
        end: Time at which the last frame ends, in units.
        unit: Length of a unit, in seconds.
        keys: Times of the key frames; None if the times were found by decoding the file, in which
            seeking is not possible.
    """

    stamps: list[int]
    end: int
    unit: Fraction
    keys: list[int] | None


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    is_shown: bool
    is_corrupt: bool


def read_track(path: Path) -> Track:
    """Find the frames of a video file, the same as decoding it from its start gives.

    MP4, MOV, Matroska and WebM list them; the file is read, not decoded. Files of other formats are
    decoded. Results of the last files are cached.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no video, damaged, cut short, or beyond a limit.
    """
    place = inside(path)
    if place is None:
        check_regular(path, "video")
    state = path.stat() if place is None else place[0].stat()
    return _read_track(path, state.st_mtime_ns, state.st_size)


@contextmanager
def opened(path: Path, **options: str) -> Iterator[Opened]:
    """Open a file and its first video stream; whatever the decoder raises becomes one message."""
    rules = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    packed = content(path)
    file = str(path.absolute()) if packed is None else BytesIO(packed)
    try:
        container = av.open(file, "r", options={**rules, **options}, **_TAGS)
    except FFmpegError as error:
        raise ValueError(
            f"{path}: not a video, damaged, cut short, or of a format that is not read "
            f"({error.strerror}); read are {_FORMATS}"
        ) from error
    try:
        if not container.streams.video:
            raise ValueError(f"{path}: has no pictures, only sound")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise ValueError(f"{path}: of a codec that FFmpeg cannot decode, or damaged")
        if stream.width * stream.height > MAX_FRAME_PIXELS:
            raise ValueError(
                f"{path}: frames of {stream.width}x{stream.height}, at most {MAX_FRAME_PIXELS:,} "
                "pixels are read; scale the video down"
            )
        stream.thread_type = "NONE"  # threads would decode further frames
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
        yield container, stream
    except FFmpegError as error:
        raise ValueError(f"{path}: damaged video ({error.strerror})") from error
    except (IndexError, AttributeError, ArithmeticError) as error:
        # PyAV raises these for damaged headers.
        raise ValueError(f"{path}: damaged video ({error})") from error
    finally:
        container.close()


@lru_cache(maxsize=64)
def _read_track(path: Path, changed: int, size: int) -> Track:
    with opened(path) as (container, stream):
        packets = _packets(path, container, stream)
        unit = stream.time_base or Fraction(1, 1)
        _check_whole(path, container, stream, packets)
        is_seekable = container.format.name in _SEEKABLE
    track = _listed_track(path, packets, unit) if is_seekable else None
    if track is None:
        track = _decoded_track(path, packets, is_seekable)
    seconds = float((track.end - track.stamps[0]) * track.unit)
    if seconds > MAX_SECONDS:
        raise ValueError(
            f"{path}: lasts {seconds:,.0f} seconds, at most {MAX_SECONDS:,} are read; cut it"
        )
    return track


def _packets(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream
) -> list[_Packet]:
    packets = []
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if len(packets) == MAX_FRAMES:
            raise ValueError(f"{path}: at most {MAX_FRAMES:,} frames are read of a video; cut it")
        packets.append(
            _Packet(
                packet.pts,
                packet.dts,
                packet.duration or 0,
                packet.is_keyframe,
                not packet.is_discard,
                packet.is_corrupt,
            )
        )
    if not packets:
        raise ValueError(f"{path}: holds no frame; damaged or cut short")
    if corrupt := sum(packet.is_corrupt for packet in packets):
        raise ValueError(f"{path}: damaged, {corrupt} of {len(packets)} packets")
    return packets


def _check_whole(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    packets: Sequence[_Packet],
) -> None:
    """Refuse a file that holds less than its header says."""
    count = len(packets)
    if container.format.name == "avi":  # a missing frame repeats the one before it
        count = max(packet.dts or 0 for packet in packets) + 1
    if count < stream.frames and container.format.name in _SEEKABLE:
        # Frames after the end of an edit list exist, but are not shown.
        with opened(path, ignore_editlist="1") as (again, whole):
            count = sum(bool(packet.size) for packet in again.demux(whole))
    if count < stream.frames:
        raise ValueError(f"{path}: cut short, {count} of {stream.frames} frames are there")
    ends = [packet.pts + packet.duration for packet in packets if packet.pts is not None]
    end = float(max(ends, default=0) * (stream.time_base or 1))
    promised = _promised_end(stream)
    if end * (1 + 1.5 / len(packets)) < promised:
        raise ValueError(f"{path}: cut short, {end:.2f} of {promised:.2f} seconds are there")


def _promised_end(stream: av.VideoStream) -> float:
    """End of the stream by Matroska's header, in seconds; 0 if the header has none."""
    for key, value in stream.metadata.items():
        if key.startswith("DURATION") and (found := _CLOCK.fullmatch(value)):
            return 3600 * int(found[1]) + 60 * int(found[2]) + float(found[3])
    return 0.0


def _listed_track(path: Path, packets: Sequence[_Packet], unit: Fraction) -> Track | None:
    """Make the track from the packets; None if they do not determine it."""
    shown = [packet for packet in packets if packet.is_shown]
    stamps = sorted(packet.pts for packet in shown if packet.pts is not None)
    if not stamps or len(set(stamps)) < len(shown):
        return None
    # First frames that refer to frames cut off before them are not decoded.
    with opened(path) as (container, stream):
        first = next(container.decode(stream), None)
    if first is None or first.pts != stamps[0]:
        return None
    last = next(packet for packet in shown if packet.pts == stamps[-1])
    keys = sorted(packet.pts for packet in shown if packet.is_key and packet.pts is not None)
    return Track(stamps, stamps[-1] + last.duration, unit, keys)


def _decoded_track(path: Path, packets: Sequence[_Packet], are_exact: bool) -> Track:
    """Make the track by decoding the whole file.

    Args:
        path: The file.
        packets: Its packets.
        are_exact: Whether packets have the times of their frames, so that lost frames are noticed.
    """
    stamps: list[int | None] = []
    corrupt = duration = 0
    with opened(path) as (container, stream):
        for frame in container.decode(stream):
            stamps.append(frame.pts)
            corrupt += frame.is_corrupt
            duration = frame.duration or duration
        unit, rate = stream.time_base or Fraction(1, 1), stream.average_rate or Fraction(1, 1)
    if not stamps:
        raise ValueError(f"{path}: holds no frame; damaged or cut short")
    # H.264 in AVI and MPEG has frames in order, with wrong or missing times.
    known = sorted(stamp for stamp in stamps if stamp is not None)
    due = {packet.pts for packet in packets if packet.is_shown and are_exact}
    # Frames before the first may refer to frames that were cut off.
    lost = {pts for pts in due - set(stamps) if pts is not None and pts >= min(known, default=pts)}
    if bad := corrupt + len(lost):
        raise ValueError(f"{path}: damaged, {bad} of {len(packets)} frames cannot be decoded")
    if len(set(known)) == len(stamps):
        return Track(known, known[-1] + (duration or round(1 / (rate * unit))), unit, None)
    return Track(list(range(len(stamps))), len(stamps), 1 / rate, None)
