"""The loader alone: pictures and videos a second, against what a step needs.

    python tests/benchmarks/loader.py [--workers 0 2] [--need 50000] [--json FILE]

JPEGs of 640 x 480 and MP4s of 640 x 480 (H.264, 8 seconds) are decoded, scaled, normalised and
collated to batches, as a stage's are, for an encoder of 336 pixels. On one core for `--workers 0`;
else by as many processes beside the main one, each with a core where there is one. First, batches
that workers made are compared with those of the main process.

`need` is what a step asks for that computes `--need` tokens a second (50,000 is a 1B model on a
good GPU), where a row has its visual tokens and 260 others; `cores` is how many cores keep it fed.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from common import options, prepared, report, say
from PIL import Image

from llava_lab.data.geometry import ViewSpec
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.loader import StageLoader, split_step
from llava_lab.data.modules.encoded import ViewLoader
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.tokens import VISUAL
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames

TEXT = 260  # tokens of a row beside its visual ones: the mean of LLaVA-1.5's mix
SPEC = ViewSpec(336, (24, 24), False, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
WAYS: dict[str, Views] = {
    "Square": Square(),
    "Pad": Pad(),
    "AnyRes": AnyRes("2x2, 1x2, 2x1, 1x3, 3x1", merge="spatial"),
    "Frames, 16": Frames(16),
}


def picture(seed: int) -> Image.Image:
    """Something like a photograph: patches of colour, and grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    levels = np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray((levels + rng.normal(0, 6, levels.shape)).clip(0, 255).astype(np.uint8))


def write_files(folder: Path, pictures: int, videos: int) -> tuple[list[Path], list[Path]]:
    """Pictures and videos on disk."""
    images = [folder / f"{number}.jpg" for number in range(pictures)]
    for number, path in enumerate(images):
        picture(number).save(path, quality=90)
    clips = [VideoPath(folder / f"{number}.mp4") for number in range(videos)]
    for number, path in enumerate(clips):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
            still = np.asarray(picture(number))
            for shift in range(200):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(still, shift, 1)))
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return images, clips


class Rows:
    """Rows of one picture or video and its visual tokens."""

    def __init__(self, views: Views, paths: list[Path]):
        self.load, self.paths = ViewLoader(views, SPEC), paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> EncodedSample:
        shown, layouts = self.load([self.paths[index]])
        ids = [VISUAL] * layouts[0].tokens + [9] * TEXT
        return EncodedSample([Segment(ids, ids)], shown, layouts, str(index))


def collate(rows: list[Any], part: Any) -> Batch:
    """As a stage's DataModule does."""
    return Batch.pack(rows)


def loader(rows: Rows, batch: int, workers: int, device: torch.device) -> StageLoader:
    """All rows, in batches."""
    every = range(len(rows))
    order = [list(every[start : start + batch]) for start in range(0, len(rows), batch)]
    steps = [split_step(s, [1] * len(rows), accumulate=1, rank=0, world=1) for s in order]
    return StageLoader(rows, steps, collate, workers, device)


def speed(rows: Rows, batch: int, workers: int, device: torch.device) -> float:
    """Rows a second, workers' start not counted."""
    micro = iter(loader(rows, batch, workers, device))
    if workers:
        next(micro)  # they have begun
    clock = time.process_time if workers == 0 else time.perf_counter
    start = clock()
    seen = sum(len(each.batch) for each in micro)
    return seen / (clock() - start)


def main(given: argparse.Namespace) -> None:
    """Each way with each number of workers."""
    few = given.size in ("tiny", "small")
    with tempfile.TemporaryDirectory() as folder:
        images, clips = write_files(Path(folder), 96 if few else 768, 6 if few else 48)
        table = {}
        for name, views in WAYS.items():
            rows = Rows(views, clips if views.videos else images)
            batch = 2 if views.videos else 8
            pair = [next(iter(loader(rows, batch, n, torch.device("cpu")))).batch for n in (0, 2)]
            assert all(
                torch.equal(getattr(pair[0], k), getattr(pair[1], k)) for k in ("ids", "views")
            )
            tokens = len(rows[0].segments[0].ids)
            need = given.need / tokens
            found = {}
            for workers in given.workers:
                speeds = [speed(rows, batch, workers, given.device) for _ in range(given.rounds)]
                found[workers] = sorted(speeds)[len(speeds) // 2]
                say(f"{name}, {workers} workers: {found[workers]:.1f} a second")
            cores = need / found[0] if 0 in found else need * max(found) / found[max(found)]
            columns = {f"{n} workers": value for n, value in found.items()}
            table[name] = {"tokens a row": tokens, **columns, "need": need, "cores": cores}
    title = f"Rows a second of the loader alone; a step computes {given.need:,} tokens a second"
    report(title, table, given.json, device=str(given.device))


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes")
    parser.add_argument("--need", type=int, default=50_000, help="tokens a second of a step")
    main(prepared(parser))
