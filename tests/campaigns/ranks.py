"""Ranks: stages and answers of one process against those of two (gloo), on one order.

Under DDP and FSDP2: whole, killed on the way, and with another number of processes or another
strategy in the middle of a stage. Every job
is forked from this process, which has imported everything and computes nothing itself.

    python tests/campaigns/ranks.py            counts, and puts its table into docs/reliability.md
    python tests/campaigns/ranks.py --short    one run that is killed and goes on
"""

import argparse
import json
import math
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from safetensors.torch import load_file

import llava_lab.cli.fit  # noqa: F401  (imported once, before processes are forked)
from llava_lab.__main__ import run
from llava_lab.tiny_world.generate import TinyWorld
from llava_lab.tiny_world.videos import TinyVideos

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = "python tests/campaigns/ranks.py"
PATIENCE_SECONDS = 600.0
SOON_SECONDS = 60.0  # in which the others end when one process is killed, on a busy machine
# A key's bias changes nothing after the softmax: its gradient is rounding, which AdamW scales up.
VIT = "{embed_dim: 192, depth: 2, num_heads: 4, mlp_ratio: 2, qkv_bias: false}"
SAME = ("name", "fingerprint", "steps", "samples", "tokens", "visual_tokens_mean", "flops")
CLOSE = ("loss_first", "loss_last")


@dataclass
class Counts:
    """What one kind of case came to."""

    case: str
    runs: int = 0
    numbers: int = 0
    wrong: list[str] = field(default_factory=list)
    tracebacks: int = 0
    hangs: int = 0
    lost: int = 0

    def row(self) -> dict[str, object]:
        return {
            "case": self.case,
            "runs": self.runs,
            "numbers compared": self.numbers,
            "silently wrong": len(self.wrong),
            "tracebacks": self.tracebacks,
            "hangs": self.hangs,
            "lost": self.lost,
        }


class Where(NamedTuple):
    """On how many processes a command runs, and how they share it."""

    devices: int
    strategy: str = "auto"


class Job:
    """One command on a number of processes, forked here."""

    def __init__(self, arguments: Sequence[str], where: Where, log: Path):
        self.log, self.began = log, time.monotonic()
        devices = where.devices
        extra = ["--trainer.accelerator=cpu", f"--trainer.devices={devices}"]
        extra += [f"--trainer.strategy={where.strategy}"] if devices > 1 else []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pids = [
            self._fork([*arguments, *extra], rank if devices > 1 else None, port)
            for rank in range(devices)
        ]
        self.statuses: dict[int, int] = {}

    def _fork(self, arguments: list[str], rank: int | None, port: int) -> int:
        sys.stdout.flush()
        if pid := os.fork():
            return pid
        try:
            with self.log.open("ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            if rank is not None:
                os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0"}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            sys.argv = ["llava_lab", *arguments]
            run()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)

    def poll(self) -> bool:
        """Whether all processes have ended."""
        for pid in self.pids:
            if pid not in self.statuses:
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    self.statuses[pid] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) == len(self.pids)

    def wait(self, seconds: float = PATIENCE_SECONDS, until: Callable[[], bool] = bool) -> bool:
        """Wait for the end or for something else; false, and all are ended, if it is too long."""
        limit = time.monotonic() + seconds
        while not self.poll():
            if until():
                return True
            if time.monotonic() > limit:
                for pid in self.pids:
                    if pid not in self.statuses:
                        os.kill(pid, signal.SIGKILL)
                        self.statuses[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                return False
            time.sleep(0.02)
        return True


def sft(root: Path, folder: Path, steps: int) -> list[str]:
    """Pictures alone, then pictures in tiles, videos and text mixed, then preferences."""
    files = [
        ("world/llava_v1_5_mix665k.json", "world/images", "first:14"),
        ("videos/video_conversations.json", "videos/videos", "first:8"),
    ]
    mixed = [
        {"path": f"{root}/{file}", "images": f"{root}/{images}", "sampling": sampling}
        for file, images, sampling in files
    ]
    mixed.append({"path": f"{root}/world/text.json", "sampling": "first:14"})
    options: dict[str, Any] = {
        "tiny_world": "null",
        "tiny_videos": "null",
        "stages.instruct.data.sources": json.dumps(mixed),
        "paths.root": root / "world",
        "paths.video_root": root / "videos",
        "runs": folder / "runs",
        "checkpoint_seconds": 0,
        "data.images_per_batch": 6,
        "data.max_new_tokens": 3,
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "false",
        "stages.dpo.data.reference_store": folder / "references",
        "stages.instruct.data.group_by_modality": "video",
    }
    for stage in ("align", "instruct", "dpo"):
        options |= {
            f"stages.{stage}.data.max_steps": steps,
            f"stages.{stage}.data.batch_size": 5,
            f"stages.{stage}.data.epochs": 9,
            f"stages.{stage}.data.hold_out": 0.15,
            f"stages.{stage}.data.feature_store": folder / "features",
            # Muon's bfloat16 shows in which order devices add up; AdamW does not.
            f"stages.{stage}.optimizer": "adamw",
        }
    experiment = REPOSITORY / "experiments" / "llava_next_video_dpo.yaml"
    return ["fit", "-c", str(experiment), *(f"--{k}={v}" for k, v in options.items())]


def contrast(root: Path, folder: Path, steps: int) -> list[str]:
    """Pictures against phrases, with an encoder without batch norm."""
    options: dict[str, Any] = {
        "tiny_world": "null",
        "paths.root": root / "parts",
        "runs": folder / "runs",
        "checkpoint_seconds": 0,
        "stage": "contrast",
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "false",
        "model.encoder.name": "vit_tiny_patch16_224",
        "model.encoder.options": VIT,
        "stages.contrast.optimizer": "adamw",
        "stages.contrast.data.batch_size": 7,
        "stages.contrast.data.max_steps": steps,
    }
    experiment = REPOSITORY / "experiments" / "tiny_parts.yaml"
    return ["fit", "-c", str(experiment), *(f"--{k}={v}" for k, v in options.items())]


def worlds(root: Path) -> None:
    """What the stages read, the same for all cases."""
    TinyWorld(root / "world", train_images=24, eval_images=6, text_rows=20).generate()
    TinyWorld(root / "parts", train_images=40, eval_images=4, text_rows=20, tiles=8).generate()
    TinyVideos(root / "videos", train_videos=6, eval_videos=4).generate()


def outcome(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Stages' records, their weights, and the results of the only run of a folder."""
    (run_folder,) = (folder / "runs").glob("*/*/")
    stages = {p.parent.name: json.loads(p.read_text()) for p in run_folder.rglob("stage.json")}
    weights = {p.parent.name: load_file(p) for p in run_folder.rglob("weights.safetensors")}
    results = run_folder / "results.json"
    return stages, weights, json.loads(results.read_text()) if results.exists() else {}


def compare(counts: Counts, one: Path, other: Path) -> None:
    """Count the numbers of two folders, and those that are apart."""

    def check(name: str, same: bool) -> None:
        counts.numbers += 1
        if not same:
            counts.wrong.append(f"{other.name}: {name}")

    (stages, weights, results), (theirs, their_weights, their_results) = map(outcome, (one, other))
    check("stages", stages.keys() == theirs.keys() and bool(stages))
    for stage in stages.keys() & theirs.keys():
        mine, its = stages[stage], theirs[stage]
        for key in SAME:
            check(f"{stage} {key} {mine[key]} {its[key]}", mine[key] == its[key])
        pairs = [(key, mine[key], its.get(key)) for key in CLOSE]
        pairs += [(f"held_out {k}", v, its["held_out"].get(k)) for k, v in mine["held_out"].items()]
        for key, value, found in pairs:
            # A reward is a difference of sums over an answer: its last digits are rounding.
            apart = 5e-5 if "reward" in key else 1e-5
            near = found is not None and math.isclose(value, found, rel_tol=1e-5, abs_tol=apart)
            check(f"{stage} {key} {value} {found}", near)
        check(f"{stage} names", weights[stage].keys() == their_weights[stage].keys())
        for name, tensor in weights[stage].items():
            apart = float((tensor - their_weights[stage][name]).abs().max())
            scale = max(1e-2, float(tensor.abs().max()))
            check(f"{stage} {name} {apart:.2g} of {scale:.2g}", apart <= 1e-3 * scale)
    for name, scores in results.get("benchmarks", {}).items():
        for key, score in scores.items():
            found = their_results.get("benchmarks", {}).get(name, {}).get(key)
            check(f"{name} {key} {score} {found}", score == found)
    for key in ("answered", "visual_tokens"):
        check(f"{key}", results.get(key) == their_results.get(key))


def finish(counts: Counts, arguments: list[str], where: Where, folder: Path) -> None:
    """Run a command to its end, and count what its log and status say."""
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    job = Job(arguments, where, log)
    counts.runs += 1
    if not job.wait():
        counts.hangs += 1
    counts.tracebacks += "Traceback" in log.read_text()
    if any(job.statuses.values()):
        counts.lost += 1
        print(f"{log}: {job.statuses}\n{log.read_text()[-2000:]}", flush=True)


def stop(
    counts: Counts,
    arguments: list[str],
    where: Where,
    folder: Path,
    victim: int,
    at: tuple[str, int],
) -> None:
    """Kill one process when a stage has come to a step; the others are to end soon."""
    log = folder / f"{len(list(folder.glob('*.log')))}.log"
    job = Job(arguments, where, log)
    counts.runs += 1

    def reached() -> bool:
        files = folder.glob(f"runs/*/*/stages/{at[0]}/step-*.ckpt")
        return any(int(file.stem.split("-")[1]) >= at[1] for file in files)

    job.wait(until=reached)
    if job.poll():
        raise RuntimeError(f"{log}: it ended before it could be killed: {log.read_text()[-2000:]}")
    os.kill(job.pids[victim], signal.SIGKILL)
    counts.hangs += not job.wait(SOON_SECONDS)
    text = log.read_text()
    counts.tracebacks += "Traceback" in text
    if where.devices > 1 and not (
        all(job.statuses.values()) and "the same command goes on" in text
    ):
        counts.wrong.append(f"{log}: {job.statuses}: {text[-500:]}")


ONE, DDP, FSDP2 = Where(1), Where(2, "ddp"), Where(2, "fsdp2")
CLASS = "class_path: llava_lab.train.sharded.Sharded, init_args"
# A copy on each process, so that they reduce gradients alone, as nodes under HSDP.
HSDP = Where(2, f"{{{CLASS}: {{copies: 2}}}}")
# As for a model of which no device holds the whole.
LARGE = Where(2, f"{{{CLASS}: {{whole: [], whole_answers: false, whole_gradients: false}}}}")
NAMES = {ONE: "1", DDP: "2 (DDP)", FSDP2: "2 (FSDP2)", HSDP: "2 (HSDP)", LARGE: "2 (never whole)"}


def short(root: Path) -> list[Counts]:
    """One whole run on one process; one that is killed under FSDP2 and goes on under DDP."""
    counts = Counts("killed under FSDP2, gone on under DDP")
    whole, killed = folders(root, "whole", "killed")
    finish(counts, [*sft(root, whole, 4), "--stage=dpo"], ONE, whole)
    arguments = [*sft(root, killed, 4), "--stage=dpo"]
    stop(counts, arguments, FSDP2, killed, victim=1, at=("dpo", 2))
    finish(counts, arguments, DDP, killed)
    compare(counts, whole, killed)
    return [counts]


def full(root: Path) -> list[Counts]:
    """All cases."""
    found = []
    lora = ["--stages.instruct.lora={rank: 4, alpha: 8}"]
    micro = ["--stages.align.data.micro_batch_size=1", "--stages.instruct.data.micro_batch_size=2"]
    accumulated = [*micro, "--stages.dpo.data.micro_batch_size=2"]
    # Text beside pictures in one step, and blocks of the encoder that train: on pixels.
    seen = ["--stages.instruct.data.group_by_modality=false", "--stages.instruct.frozen=[]"]
    seen.append("--stages.instruct.lr={connector: 2e-5, llm: 2e-5, encoder.blocks.mlp: 2e-6}")
    seen += [f"--stages.{name}.data.feature_store=null" for name in ("align", "instruct", "dpo")]
    kinds: list[tuple[str, Callable[[Path, Path, int], list[str]], list[str], list[Where]]] = [
        ("images, tiles, videos, text; DPO", sft, [], [DDP, FSDP2, HSDP, LARGE]),
        ("the same, accumulated", sft, accumulated, [DDP, FSDP2, LARGE]),
        ("the same, encoder trained", sft, [*accumulated, *seen], [DDP, FSDP2, LARGE]),
        ("the same, LoRA", sft, lora, [DDP, FSDP2]),
        ("contrast", contrast, [], [DDP, FSDP2]),
    ]
    for kind, (case, command, more, places) in enumerate(kinds):
        (one,) = folders(root, f"one{kind}")
        for number, where in enumerate(places):
            (two,) = folders(root, f"two{kind}{number}")
            counts = Counts(f"{case}: 1 against {NAMES[where]}")
            if number == 0:
                finish(counts, [*command(root, one, 20), *more], ONE, one)
            finish(counts, [*command(root, two, 20), *more], where, two)
            compare(counts, one, two)
            found.append(counts)
    plain = [(DDP, DDP, 1), (DDP, DDP, 0), (ONE, DDP, 0), (DDP, ONE, 1)]
    shared = [(FSDP2, FSDP2, 1), (FSDP2, ONE, 0), (ONE, FSDP2, 0), (DDP, FSDP2, 1), (FSDP2, DDP, 1)]
    ways = [*((0, [], *way) for way in plain + shared), *((1, accumulated, *w) for w in plain)]
    ways += [(1, accumulated, *way) for way in shared[:2]]
    for kind, more, before, after, victim in ways:
        number = len(found)
        (folder,) = folders(root, f"killed{number}")
        counts = Counts(f"process {victim} of {NAMES[before]} killed, gone on with {NAMES[after]}")
        counts.case += ", accumulated" if more else ""
        arguments = [*sft(root, folder, 20), *more]
        stop(counts, arguments, before, folder, victim, at=("instruct", 7))
        finish(counts, arguments, after, folder)
        compare(counts, root / f"one{kind}", folder)
        found.append(counts)
    return found


def folders(root: Path, *names: str) -> list[Path]:
    """New folders of these names."""
    for name in names:
        (root / name).mkdir()
    return [root / name for name in names]


def main() -> None:
    """Run the campaign; the status is 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="one case, and no table in the docs")
    parser.add_argument("--keep", type=Path, help="folder to keep everything in")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = options.keep or Path(folder)
        worlds(root)
        found = short(root) if options.short else full(root)
    rows = [counts.row() for counts in found]
    print(json.dumps(rows, indent=1))
    for counts in found:
        print(*counts.wrong, sep="\n")
    if not options.short:
        from report import put

        put("ranks", COMMAND, rows, "Numbers: losses, held-out losses, weights, scores, counts.")
    bad = sum(len(c.wrong) + c.tracebacks + c.hangs + c.lost for c in found)
    sys.exit(min(1, bad))


if __name__ == "__main__":
    main()
