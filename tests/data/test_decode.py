"""Frames of video files, against those that a plain decoding of the whole file gives."""

import os
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from llava_lab.data.media import decode, track
from llava_lab.data.media.clip import index_clip, load_clip

SIZE = (64, 48)
NOISE = np.random.default_rng(0).integers(0, 256, (SIZE[1] // 4, 64, 3), np.uint8)
NOISE = NOISE.repeat(4, 0).repeat(4, 1)
OPEN_GOP = {"x264-params": "keyint=12:min-keyint=12:bframes=3:open-gop=1:scenecut=0"}
REFRESH = {"x264-params": "keyint=12:intra-refresh=1:bframes=0:scenecut=0"}
UNEVEN = [number + number // 7 * 5 for number in range(40)]


def video(
    path: Path,
    codec: str,
    options: dict[str, str] | None = None,
    stamps: list[int] | None = None,
    start: int = 0,
    frames: int = 40,
    size: tuple[int, int] = SIZE,
) -> Path:
    """A texture that moves, 25 frames a second, with B-frames and a key frame in 12."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = size
        stream.pix_fmt, stream.gop_size = "yuv420p", 12
        stream.time_base = stream.codec_context.time_base = Fraction(1, 25)
        stream.codec_context.max_b_frames = 2
        for number in range(frames):
            level = np.resize(NOISE[:, number * 2 :], (size[1], size[0], 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(level), "rgb24")
            frame.pts = start + (number if stamps is None else stamps[number])
            frame.time_base = Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def whole(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def check(path: Path) -> None:
    """Each frame alone, and some at once, are those of the whole file."""
    expected = whole(path)
    assert len(expected) > 10 and len(index_clip(path).times) == len(expected)
    for wanted in [*([number] for number in range(len(expected))), [0, 1, 9, 20, 20, -1]]:
        wanted = [number % len(expected) for number in wanted]
        clip = load_clip(path, lambda count, fps, wanted=wanted: wanted)
        for number, frame in zip(wanted, clip.frames, strict=True):
            assert np.array_equal(np.asarray(frame), expected[number]), f"frame {number}"
    times = index_clip(path).times
    assert times[0] == 0 and times == sorted(set(times))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.ts", "mpeg2video", None),
        ("a.mpg", "mpeg2video", None),
        ("a.mpg", "mpeg1video", None),
        ("a.mkv", "mpeg2video", None),
        ("a.avi", "mpeg4", None),
        ("a.mp4", "mpeg4", None),
        *((f"a.{kind}", "libx264", None) for kind in ("avi", "ts", "mpg", "mp4", "mkv", "flv")),
        *((f"open.{kind}", "libx264", OPEN_GOP) for kind in ("avi", "ts", "mp4", "mkv")),
        *((f"refresh.{kind}", "libx264", REFRESH) for kind in ("ts", "mp4", "mkv")),
    ],
)
def test_frames_are_those_of_the_whole_file(
    name: str, codec: str, options: dict[str, str] | None, tmp_path: Path
) -> None:
    check(video(tmp_path / name, codec, options))


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts", "avi"])
def test_uneven_times_and_a_late_start_change_no_frame(kind: str, tmp_path: Path) -> None:
    path = video(tmp_path / f"a.{kind}", "libx264", stamps=UNEVEN)
    check(path)
    if kind != "avi":  # whose times of H.264 are those of another order
        assert index_clip(path).times == pytest.approx([stamp / 25 for stamp in UNEVEN])
    late = video(tmp_path / f"late.{kind}", "libx264", start=250)
    check(late)
    assert index_clip(late).duration == pytest.approx(40 / 25, abs=0.05)


def edited(path: Path, duration: int, start: int) -> Path:
    """The same MP4 with another edit list: what is shown, in milliseconds and units of time."""
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 12
    data[place : place + 8] = duration.to_bytes(4, "big") + start.to_bytes(4, "big")
    path.with_name("edited.mp4").write_bytes(data)
    return path.with_name("edited.mp4")


@pytest.mark.parametrize("options", [None, OPEN_GOP, REFRESH])
@pytest.mark.parametrize(("duration", "first"), [(800, 2), (1600, 7), (1000, 15)])
def test_an_edit_list_is_heeded(
    options: dict[str, str] | None, duration: int, first: int, tmp_path: Path
) -> None:
    check(edited(video(tmp_path / "a.mp4", "libx264", options), duration, 512 * first))


@pytest.mark.parametrize("kind", ["ts", "mp4", "mkv"])
def test_a_file_that_was_cut_at_a_key_frame_loses_what_cannot_be_decoded(
    kind: str, tmp_path: Path
) -> None:
    source = video(tmp_path / f"a.{kind}", "libx264", OPEN_GOP)
    with (
        av.open(str(source)) as given,
        av.open(str(tmp_path / f"cut.{kind}"), "w") as out,
    ):
        stream = out.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.dts is not None]
        start = next(n for n, packet in enumerate(packets) if n > 9 and packet.is_keyframe)
        offset = packets[start].dts
        for packet in packets[start:]:
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            packet.stream = stream
            out.mux(packet)
    check(tmp_path / f"cut.{kind}")


@pytest.mark.parametrize(
    ("kind", "codec"),
    [("mp4", "libx264"), ("mkv", "libx264"), ("ts", "mpeg2video"), ("avi", "mpeg4")],
)
def test_damaged_frames_are_never_used(kind: str, codec: str, tmp_path: Path) -> None:
    """Whatever FFmpeg marks as corrupt while it decodes the whole file."""
    data = video(tmp_path / f"a.{kind}", codec).read_bytes()
    rng = random.Random(0)
    marked = 0
    for number in range(24):
        start = rng.randrange(len(data) // 6, len(data) * 5 // 6)
        path = tmp_path / f"{number}.{kind}"
        path.write_bytes(data[:start] + rng.randbytes(20) + data[start + 20 :])
        try:
            with av.open(str(path)) as container:
                corrupt = any(frame.is_corrupt for frame in container.decode(video=0))
        except av.error.FFmpegError:
            continue
        if corrupt:
            marked += 1
            with pytest.raises(ValueError, match=rf"{number}\.{kind}: (damaged|cut short)"):
                load_clip(path, lambda count, fps: range(count))
    assert marked >= 3


def test_playlists_and_pipes_are_not_followed(tmp_path: Path) -> None:
    secret = video(tmp_path / "secret.ts", "mpeg2video")
    segment = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.6,\n{secret}\n#EXT-X-ENDLIST\n"
    for name, text in {
        "a.m3u8": segment,
        "a.mp4": segment,
        "a.ts": segment,
        "b.mp4": f"ffconcat version 1.0\nfile {secret.name}\n",
        "c.mp4": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\n{secret}",
        "d.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"/>',
        "%d.png": "",
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match="not a video"):
            index_clip(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match="a pipe, a device or a socket"):
        index_clip(tmp_path / "pipe.mp4")


def test_a_name_is_never_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    video(tmp_path / "a.ts", "mpeg2video")
    os.rename("a.ts", "concat:a.ts|b.ts")
    assert len(index_clip(Path("concat:a.ts|b.ts")).times) == 40


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("MAX_FRAME_PIXELS", 3000, "frames of 64x48, at most 3,000 pixels"),
        ("MAX_CLIP_PIXELS", 30_000, "10 frames of 64x48 are 30,720 pixels, at most 30,000"),
        ("MAX_FRAMES", 39, "at most 39 frames"),
        ("MAX_SECONDS", 1, "lasts 2 seconds, at most 1"),
    ],
)
@pytest.mark.parametrize("kind", ["mp4", "ts"])
def test_a_video_beyond_a_limit_is_refused(
    kind: str, limit: str, value: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = video(tmp_path / f"a.{kind}", "libx264")
    load_clip(path, lambda count, fps: range(10))
    os.utime(path, (1, 1))  # so that it is looked at again
    monkeypatch.setattr(track if hasattr(track, limit) else decode, limit, value)
    with pytest.raises(ValueError, match=rf"a\.{kind}: {words}"):
        load_clip(path, lambda count, fps: range(10))


def test_the_frames_of_a_folder_have_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        Image.new("RGB", (20, 10)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(decode, "MAX_CLIP_PIXELS", 500)
    with pytest.raises(ValueError, match="3 frames of 20x10 are 600 pixels"):
        load_clip(tmp_path, lambda count, fps: range(count))
