"""Frames of a video by key frames against decoding the whole file: clips a second, side by side.

    python tests/benchmarks/decode.py [VIDEO ...]

Without a video it makes its own: half a minute of a drifting pattern at 640x480 and 30 frames a
second, H.264, with a key frame every 250 frames (x264's default) and every 30.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from llava_lab.data.media import track
from llava_lab.data.media.clip import load_clip
from llava_lab.data.views.video import Frames

ROUNDS = 5


def make(path: Path, keys: int) -> Path:
    """A video of a drifting pattern."""
    rng = np.random.default_rng(0)
    pattern = rng.integers(0, 255, (60, 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 640, 480, "yuv420p", keys
        for number in range(900):
            frame = av.VideoFrame.from_ndarray(np.roll(pattern, 3 * number, 1), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def whole(path: Path, frames: int) -> list:
    """Every frame decoded, the wanted ones kept: the plain way."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        every = list(container.decode(video=0))
    wanted = Frames(frames).choose(len(every), 30.0)
    return [every[number].to_image() for number in wanted]


def main(videos: list[Path]) -> None:
    """Both ways in turn, for 16 and 56 frames; medians and their ratio."""
    print(f"{'video':24} {'frames':>6} {'ours, clips/s':>14} {'whole, clips/s':>15} {'ratio':>6}")
    for path in videos:
        for frames in (16, 56):
            ways = {
                "ours": lambda path=path, n=frames: load_clip(path, Frames(n).choose).frames,
                "whole": lambda path=path, n=frames: whole(path, n),
            }
            results = {name: way() for name, way in ways.items()}  # warm, and equal
            assert all(
                np.array_equal(np.asarray(ours), np.asarray(theirs))
                for ours, theirs in zip(results["ours"], results["whole"], strict=True)
            )
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, way in ways.items():
                    track._read_track.cache_clear()  # as of a file that was never read
                    began = time.perf_counter()
                    way()
                    seconds[name].append(time.perf_counter() - began)
            ours, theirs = (statistics.median(seconds[name]) for name in ("ours", "whole"))
            speed = f"{1 / ours:14.2f} {1 / theirs:15.2f} {theirs / ours:6.2f}"
            print(f"{path.name:24} {frames:6} {speed}")


if __name__ == "__main__":
    if given := [Path(name) for name in sys.argv[1:]]:
        main(given)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main([make(Path(folder) / f"keys{keys}.mp4", keys) for keys in (250, 30)])
