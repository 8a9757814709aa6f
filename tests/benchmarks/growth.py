"""How time and memory of a training step grow with tiles, frames, length and batch.

    python tests/benchmarks/growth.py [--size 1b] [--device cuda] [--json FILE]

One step forward and backward of an LM that trains, behind a frozen encoder that is computed:
pictures of more and more tiles (AnyRes), videos of more and more frames (pooled by 2), text of more
and more tokens in one row, and more and more rows of one picture and 260 tokens. Medians over
`--rounds` after a step that is not counted. Memory is the peak over that of the weights and their
gradients, of a CPU the process's. `a token` is seconds over those of the first line of its kind, a
token each: at 1 time is linear; attention makes it grow with a row's length.
"""

import argparse
from typing import Any

import torch
from common import SIZES, clock, freed, make_model, most_memory, options, prepared, report, say

from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.tokens import VISUAL
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.train.loss import NextToken
from llava_lab.train.stage import Stage

TEXT = 260


def row(model: Any, views: Views | None, size: tuple[int, ...], text: int) -> EncodedSample:
    """A row of one picture, video, or nothing, and text of which half is trained on."""
    layouts = [] if views is None else [views.layout(size, model.view_spec)]
    seen = [VISUAL] * sum(layout.tokens for layout in layouts)
    count = sum(block.views for layout in layouts for block in layout.blocks)
    side = model.view_spec.image_size
    shown = torch.randn(count, 3, side, side) if count else None
    ids, half = [7] * text, text // 2
    labels = [-100] * (len(seen) + half) + ids[half:]
    return EncodedSample([Segment(seen + ids, labels)], shown, layouts, "row")


def points(model: Any, most: int) -> dict[str, Batch]:
    """Batches that grow, by name."""
    side = model.view_spec.image_size
    found = {}
    for across, down in ((1, 1), (2, 1), (2, 2), (3, 2), (3, 3)):
        views = AnyRes([f"{across}x{down}"], merge="spatial")
        size = (side * across, side * down)
        found[f"tiles {across * down}"] = [row(model, views, size, TEXT)]
    for frames in (2, 4, 8, 16, 32):
        found[f"frames {frames}"] = [row(model, Frames(frames), (side, side, frames), TEXT)]
    for length in (256, 512, 1024, 2048, 4096, 8192):
        found[f"length {length}"] = [row(model, None, (), length)]
    for rows in (1, 2, 4, 8, 16):
        found[f"batch {rows}"] = [row(model, Square(), (side, side), TEXT)] * rows
    batches = {name: Batch.pack(rows) for name, rows in found.items()}
    return {name: batch for name, batch in batches.items() if batch.tokens <= most}


def main(given: argparse.Namespace) -> None:
    """Every point."""
    model = make_model(SIZES[given.size], given.device, given.dtype)
    Stage(None, NextToken(), {"llm": 1.0, "connector": 1.0}).prepare(model)  # pyrefly: ignore
    loss, table, first = NextToken(), {}, {}

    def step(batch: Batch) -> float:
        start = clock(given.device)
        loss(model, batch)[0].backward()
        return clock(given.device) - start

    step(Batch.pack([row(model, Square(), (8, 8), 8)]).to(given.device))  # gradients are there now
    for name, batch in points(model, given.most).items():
        moved = batch.to(given.device)
        step(moved)
        freed(given.device)
        before = most_memory(given.device)
        seconds = sorted(step(moved) for _ in range(given.rounds))[given.rounds // 2]
        memory = (most_memory(given.device) - before) / 2**20
        kind, each = name.split()[0], seconds / batch.tokens
        numbers = {"tokens": batch.tokens, "seconds": seconds, "MiB": memory}
        table[name] = {**numbers, "a token": each / first.setdefault(kind, each)}
        say(f"{name}: {seconds:.3g} s")
    report(f"A step of {given.size} on {given.device}", table, given.json)


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--most", type=int, default=9000, help="tokens of the largest batch")
    main(prepared(parser))
