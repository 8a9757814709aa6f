"""Two devices against one: DDP and FSDP2, the same rows, the same steps.

    python tests/benchmarks/distributed.py            two processes on this machine's CPU cores
    python tests/benchmarks/distributed.py --device cuda --size 1b --devices 2

Rows like LLaVA-1.5's mix through a stage under Lightning's trainer, as `fit` runs it, of which each
process computes its share; losses must be equal first. `step` is the median over steps of all
rounds but the first steps of each. `memory` is the most that one process held: of a CPU all of it,
with libraries and the model as it was read; of a GPU what was allocated on it.

    one      one process, all rows
    ddp      each process holds the whole model
    fsdp2    processes share weights, gradients and optimizer states out
    hsdp     FSDP2 with a copy on each process, as HSDP between nodes
"""

import json
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import SIZES, freed, make_model, most_memory, options, prepared, report, say
from lightning.pytorch import Callback, Trainer
from sft import Rows, draw

from llava_lab.train.loss import NextToken
from llava_lab.train.sharded import Sharded
from llava_lab.train.stage import Stage
from llava_lab.train.trainer import make_trainer

WAYS = ("one", "ddp", "fsdp2", "hsdp")
WARM = 2  # first steps of a round, which are not timed
RATE, CLIP, APART = 1e-4, 1.0, 1e-5


class Watch(Callback):
    """Keeps the loss and the seconds of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.since = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.since = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["means"]["loss"]))  # waits for the device
        self.seconds.append(time.perf_counter() - self.since)


def work(rank: int, way: str, given: Any, port: int, folder: Path) -> None:
    """One process of one way."""
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "LOCAL_RANK": rank}
    if way != "one":
        os.environ |= {name: str(value) for name, value in names.items()}
    torch.set_num_threads(given.threads)
    size, cuda = SIZES[given.size], given.device.type == "cuda"
    cpu = torch.device("cpu")
    model = make_model(size, cpu, torch.float32)
    rows = draw(given.batch * (WARM + given.steps), model, size.lm["vocab_size"], pixels=True)
    data = Rows(rows, given.batch)
    stage = Stage(data, NextToken(), {"connector": RATE, "llm": RATE}, gradient_checkpointing=cuda)
    kinds: dict[str, Any] = {"one": "auto", "hsdp": Sharded(copies=given.devices)}
    chosen = {
        "accelerator": "gpu" if cuda else "cpu",
        "devices": 1 if way == "one" else given.devices,
        "strategy": kinds.get(way, way),
        "precision": "bf16-mixed" if cuda else "32-true",
        "logger": False,
        "enable_progress_bar": False,
        "gradient_clip_val": CLIP,
    }
    watch = Watch()
    trainer = make_trainer(chosen, folder, way, [stage, watch], Callback())
    stage.begin(model)
    freed(torch.device("cuda", rank) if cuda else cpu)
    trainer.fit(model, datamodule=data)
    memory = most_memory(torch.device("cuda", rank) if cuda else cpu)
    found = {"losses": watch.losses, "seconds": watch.seconds[WARM:], "memory": memory}
    (folder / f"{way}{rank}.json").write_text(json.dumps(found))


def run(way: str, given: Any, folder: Path) -> list[dict[str, Any]]:
    """What each process of a way found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    count = 1 if way == "one" else given.devices
    kind = "spawn" if given.device.type == "cuda" else "fork"
    torch.multiprocessing.start_processes(
        work, args=(way, given, port, folder), nprocs=count, start_method=kind
    )
    return [json.loads((folder / f"{way}{rank}.json").read_text()) for rank in range(count)]


def main() -> None:
    """Run all ways in rounds, compare their losses, and print a table."""
    parser = options(__doc__)
    parser.add_argument("--devices", type=int, default=2, help="processes, each on its device")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of a round")
    parser.add_argument("--batch", type=int, default=8, help="rows of a step, over all processes")
    given = prepared(parser)
    if given.device.type == "cuda" and torch.cuda.device_count() < given.devices:
        raise SystemExit(f"{given.devices} processes need as many GPUs; give --device cpu")
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            for way in WAYS:
                say(f"round {number + 1} of {given.rounds}: {way}")
                found[way] += run(way, given, Path(folder))
    # bf16 adds up in another order on every number of devices.
    tolerance = APART if given.device.type == "cpu" else 1e-2
    table = {}
    for way, each in found.items():
        pairs = [
            abs(own - its)
            for one in each
            for own, its in zip(one["losses"], found["one"][0]["losses"], strict=True)
        ]
        if max(pairs) > tolerance:
            raise SystemExit(f"{way}: losses are {max(pairs):.2g} apart from those of one process")
        table[way] = {
            "step, s": statistics.median(second for one in each for second in one["seconds"]),
            "memory, GiB": max(one["memory"] for one in each) / 2**30,
            "losses apart": max(pairs),
        }
    for row in table.values():
        row["of one"] = row["step, s"] / table["one"]["step, s"]
    title = f"{given.size}, {given.devices} processes on {given.device}, {given.batch} rows a step"
    report(title, table, given.json)


if __name__ == "__main__":
    main()
