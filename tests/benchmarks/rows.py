"""What a start costs before the first step: seconds and memory for N rows over M pictures.

    python tests/benchmarks/rows.py [--rows 1000000] [--pictures 10000] [--workers 2] [--json FILE]
    git worktree add ../before c28a46b~1          # the last commit without a cache of rows
    python tests/benchmarks/rows.py --before ../before --json tests/benchmarks/measured/rows.json

A file of LLaVA-1.5's kind is made (rows of a picture and 2 to 12 messages), and read as a stage
reads it before it is known whether it is finished: rows parsed and measured, pictures decoded,
content hashed, the order of an epoch drawn. Each start is a process of its own: the first, with an
empty cache, and a second; both then load batches in workers. `seconds` are what the process had of
cores until its batches begin, `GiB, own` is the memory that it has for itself over what it has once
the model is built, `GiB, shared` what it has in common with others, such as mapped files, and
`GiB, a worker` the mean of what each of the workers has for itself.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import SIZES, make_model, options, prepared, report, say
from PIL import Image

TEXT = "the a red blue dog street of two people sitting near window which is what how many"
WORDS = TEXT.split()


def write_data(folder: Path, rows: int, pictures: int) -> None:
    """A file of rows, and its pictures."""
    (folder / "images").mkdir(parents=True)
    chance = random.Random(0)
    for number in range(pictures):
        color = (number % 256, number // 256 % 256, 77)
        Image.new("RGB", (64, 48), color).save(folder / "images" / f"{number:06d}.png")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(rows):
            talk = []
            for turn in range(chance.randint(1, 6)):
                asked, told = (" ".join(chance.choices(WORDS, k=k)) for k in (8, 20))
                talk += [("human", ("<image>\n" if turn == 0 else "") + asked), ("gpt", told)]
            said = [{"from": who, "value": text} for who, text in talk]
            image = f"{number % pictures:06d}.png"
            file.write(json.dumps({"id": number, "image": image, "conversations": said}) + "\n")


def memory(process: int | str = "self") -> dict[str, int]:
    """Bytes that a process has for itself, and in common with others."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    own = found["Private_Clean"] + found["Private_Dirty"]
    return {"own": own, "shared": found["Rss"] - own}


def start(folder: Path, workers: int, given: argparse.Namespace) -> dict[str, float]:
    """What one process does before its first step."""
    from llava_lab.data.loader import StageLoader, split_step
    from llava_lab.data.modules.image import ImageDataModule
    from llava_lab.data.source import Source
    from llava_lab.data.views.square import Square

    model = make_model(SIZES[given.size], given.device, given.dtype)
    source = Source(folder / "rows.jsonl", folder / "images")
    data = ImageDataModule([source], Square(), 64, group_by_modality=True)
    before, began = memory(), time.process_time()
    data.check(model)
    data.content()
    order, lengths = data.order(), data.lengths()[0]
    found: dict[str, float] = {"seconds": time.process_time() - began}
    found |= {f"GiB, {key}": (n - before[key]) / 2**30 for key, n in memory().items()}
    rows = data.encoded(data.samples, model)
    steps = [split_step(s, lengths, accumulate=1, rank=0, world=1) for s in order]
    loader = StageLoader(rows, steps, data.collate, workers)
    batches = iter(loader)
    for _ in range(20 * workers):
        next(batches)
    iterator: Any = loader._iterator
    each = [memory(worker.pid)["own"] for worker in iterator._workers]
    return {**found, "GiB, a worker": sum(each) / len(each) / 2**30}


def starts(folder: Path, given: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """What each start takes, by its name."""
    code = Path(__file__).resolve().parents[2]
    each = [("first", code), ("second", code)]
    if given.before is not None:
        each.insert(0, ("before", given.before.resolve()))
    for name, root in each:
        environment = {**os.environ, "LLAVA_LAB_CACHE": str(folder / "cache")}
        environment["PYTHONPATH"] = str(root)
        command = [sys.executable, __file__, "--folder", str(folder / "data"), "--device", "cpu"]
        command += ["--workers", str(given.workers), "--size", given.size]
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        found = json.loads(run.stdout.splitlines()[-1])
        say(f"{name}: {found['seconds']:.1f} s, {found['GiB, own']:.2f} GiB of its own")
        yield name, found


def main(given: argparse.Namespace) -> None:
    """The starts, and their table."""
    if given.folder:
        print(json.dumps(start(given.folder, given.workers, given)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_data(Path(name) / "data", given.rows, given.pictures)
        table = dict(starts(Path(name), given))
    title = f"A start with {given.rows:,} rows over {given.pictures:,} pictures"
    report(title, table, given.json, device="cpu", workers=given.workers)


if __name__ == "__main__":
    parser = options(__doc__, "tiny")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2, help="processes that load rows")
    parser.add_argument("--before", type=Path, help="a checkout that is measured, too")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    main(prepared(parser))
