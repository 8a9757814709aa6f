"""What a start costs before the first step: seconds and memory for N rows over M pictures.

    python tests/benchmarks/rows.py [--rows 1000000] [--pictures 10000] [--workers 2] [--json FILE]

A file of LLaVA-1.5's kind is made (rows of a picture and 2 to 12 messages), and read as a stage
reads it before it is known whether it is finished: rows parsed and measured, pictures decoded,
content hashed, the order of an epoch drawn. Each start is a process of its own: the first, with an
empty cache; a second; and a third one that also loads a batch in each of its workers. `own` is the
memory that the process has for itself, over what it has once the model is built; `shared` is what
it has in common with others, such as mapped files; `a worker` is the mean of what each of the
workers has for itself. A commit from before the cache is measured by the same script, run there.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
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
    before, began = memory(), time.perf_counter()
    data.check(model)
    data.content()
    order, lengths = data.order(), data.lengths()[0]
    found: dict[str, float] = {"seconds": time.perf_counter() - began}
    found |= {key: (value - before[key]) / 2**30 for key, value in memory().items()}
    if workers:
        rows = data.encoded(data.samples, model)
        steps = [split_step(s, lengths, accumulate=1, rank=0, world=1) for s in order]
        loader = StageLoader(rows, steps, data.collate, workers)
        batches = iter(loader)
        for _ in range(20 * workers):
            next(batches)
        iterator: Any = loader._iterator
        each = [memory(worker.pid)["own"] for worker in iterator._workers]
        found["a worker"] = sum(each) / len(each) / 2**30
    return found


def main(given: argparse.Namespace) -> None:
    """Three starts, each in a process of its own."""
    if given.folder:
        print(json.dumps(start(given.folder, given.workers, given)))
        return
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder) / "data", given.rows, given.pictures)
        environment = {**os.environ, "LLAVA_LAB_CACHE": str(Path(folder) / "cache")}
        for name, workers in (("first", 0), ("second", 0), ("with workers", given.workers)):
            command = [sys.executable, __file__, "--folder", str(Path(folder) / "data")]
            command += ["--workers", str(workers), "--size", given.size, "--device", "cpu"]
            run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            found = json.loads(run.stdout.splitlines()[-1])
            table[name] = {"a worker": 0.0, **found}
            say(f"{name}: {found['seconds']:.1f} s, {found['own']:.2f} GiB of its own")
    title = f"A start with {given.rows:,} rows over {given.pictures:,} pictures: seconds, and GiB"
    report(title, table, given.json)


if __name__ == "__main__":
    parser = options(__doc__, "tiny")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2, help="processes that load rows")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    main(prepared(parser))
