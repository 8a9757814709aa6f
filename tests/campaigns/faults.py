"""Campaign `faults`: full disks, read-only folders, every kind of file that a run leaves, damaged.

    python tests/campaigns/faults.py [--each N] [--seed S] [--kinds KIND ...] [--put]

After each fault the same command is run. It must give the right results, bit for bit, or end in one
message that names the file (or, on a full or read-only disk, a file there) with exit status 2.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import report
import warm
from warm import Child

FAULTS: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "flipped": lambda data, chance: _flipped(data, chance),
    "cut": lambda data, chance: data[: chance.randrange(len(data))] if data else None,
    "emptied": lambda data, chance: b"",
    "removed": lambda data, chance: None,
}
WEIGHTS = "weights.safetensors"
SIZES_KIB = (16, 64, 256, 1024, 2048, 4096, 8192, 12288, 16384, 24576)


@dataclass
class Tally:
    """Counts of one kind of file.

    Attributes:
        right: Runs that gave the right results, the damage repaired or never read.
        message: Runs that ended in one message naming the file.
        wrong: Runs that ended with other results.
        unnamed: Runs that ended in a message without the file.
        tracebacks: Runs that ended in one.
        hung: Runs that did not end.
    """

    file: str
    right: int = 0
    message: int = 0
    wrong: int = 0
    unnamed: int = 0
    tracebacks: int = 0
    hung: int = 0


def _flipped(data: bytes, chance: random.Random) -> bytes | None:
    if not data:
        return None
    place = chance.randrange(len(data))
    return data[:place] + bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 :]


def kind(path: Path) -> str:
    """What a file is, whatever its number, hash or run."""
    text = re.sub(r"events\.out\.tfevents.*", "events.out.tfevents", path.as_posix())
    text = re.sub(r"runs/[^/.]+/[^/]+/", "runs/RUN/", text)
    text = re.sub(r"(stages|predictions)/[^/.]+", r"\1/NAME", text)
    text = re.sub(r"^(world|videos)/(?!manifest).*\.jsonl?$", r"\1/NAME.json", text)
    text = re.sub(r"\b[0-9a-f]{24,}\b", "KEY", text)
    text = re.sub(r"step-\d+-\w+-\w+", "step-N", text)
    return re.sub(r"\b\d{4,}\b", "N", text)


def results(folder: Path) -> dict[str, object]:
    """What a run gave, without caches, which need not be the same to be right."""
    found = warm.outcome(folder)
    return {name: found[name] for name in found if "runs/" in name or name.count("/") == 0}


class Campaign:
    """Damages and compares.

    Args:
        folder: Empty folder to work in.
        seed: Seed of places and kinds of damage.
        each: Files of each kind that are damaged in each way.
        small: Whether to use the smallest run.
    """

    def __init__(self, folder: Path, seed: int, each: int, small: bool):
        self.options, self.last = warm.options, "dpo"
        if small:
            self.options, self.last = warm.images_options, "instruct"
        self.run, self.log, self.kept = folder / "run", folder / "log", folder / "kept"
        self.chance, self.each = random.Random(seed), each
        self.rows: dict[str, Tally] = {}
        self.problems: list[str] = []
        self.wanted: dict[str, object] = {}

    def start(self) -> Child:
        """The command."""
        self.run.mkdir(exist_ok=True)
        return Child(["fit", *self.options(self.run)], self.log)

    def count(self, file: str, child: Child, named: tuple[Path, ...], what: str) -> str:
        """Wait for the end and count what came of a fault."""
        code, said = child.wait(), child.said()
        row = self.rows.setdefault(file, Tally(file))
        last = said.strip().splitlines()[-1:] or [""]
        if code is None:
            came = "hung"
        elif "Traceback" in said or code not in (0, 2):
            came = "tracebacks"
        elif code == 0:
            came = "right" if results(self.run) == self.wanted else "wrong"
        else:
            came = "message" if any(str(each) in said for each in named) else "unnamed"
        setattr(row, came, getattr(row, came) + 1)
        if came not in ("right", "message"):
            self.problems.append(f"{file}, {what}: {came}, exit {code}\n{said[-1500:]}")
        print(f"{file}, {what}: {came} {last[0][:150] if code else ''}", flush=True)
        return came

    def states(self) -> Iterator[tuple[str, Callable[[Path], bool]]]:
        """Prepare runs in several states; with each, which files are damaged there."""
        child = self.start()
        if child.wait() != 0:
            raise SystemExit(f"the run that was left alone failed:\n{child.said()}")
        self.wanted = results(self.run)
        self._keep()
        # Weights of a finished run are read by other verbs, and by `fit` where a stage is missing.
        yield (
            "finished",
            lambda path: (
                path.parts[0] in ("runs", "world", "videos") and path.suffix != ".safetensors"
            ),
        )
        # Without its last stage and its results, a run reads what is stored for it.
        for path in [*self.run.glob("runs/*/*/results.json"), *self.run.glob("runs/*/*/stages/*")]:
            if path.name == self.last:
                shutil.rmtree(path)
            elif path.name == "results.json":
                path.unlink()
        self._keep()
        stored = ("features", "references")
        yield (
            "begun",
            lambda path: path.parts[0] in stored or path.name in ("stage.json", WEIGHTS),
        )
        child = self.start()
        while len(found := list(self.run.glob(f"runs/*/*/stages/{self.last}/step-*.ckpt"))) < 2:
            if child.ended():
                raise SystemExit(f"no two checkpoints:\n{child.said()}")
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        if not found:
            raise SystemExit("no checkpoint was left")
        self._keep()
        yield "interrupted", lambda path: path.suffix == ".ckpt"

    def _keep(self) -> None:
        shutil.rmtree(self.kept, ignore_errors=True)
        shutil.copytree(self.run, self.kept, symlinks=True)

    def damage(self, chosen: list[str] | None, ways: list[str]) -> None:
        """Damage every kind of file, or those whose names hold a chosen word."""
        for state, wanted in self.states():
            kinds: dict[str, list[Path]] = {}
            for path in sorted(self.kept.rglob("*")):
                name = path.relative_to(self.kept)
                if path.is_file() and wanted(name):
                    kinds.setdefault(kind(name), []).append(name)
            for what, names in kinds.items():
                if chosen and not any(each in what for each in chosen):
                    continue
                for fault in ways:
                    for name in self.chance.sample(names, min(self.each, len(names))):
                        self._one(state, what, name, fault, FAULTS[fault])
            shutil.rmtree(self.run)
            shutil.copytree(self.kept, self.run)

    def _one(
        self,
        state: str,
        what: str,
        name: Path,
        fault: str,
        change: Callable[[bytes, random.Random], bytes | None],
    ) -> None:
        shutil.rmtree(self.run)
        shutil.copytree(self.kept, self.run)  # with the times of files
        path = self.run / name
        changed = change(path.read_bytes(), self.chance)
        if changed is None:
            path.unlink()
        else:
            path.write_bytes(changed)
        self.count(f"{what} ({state})", self.start(), (path, path.parent), fault)

    def disks(self) -> None:
        """Fill a small disk at every size; then a larger one ends the run. Read-only ones too."""
        shutil.rmtree(self.run, ignore_errors=True)
        with tmpfs(self.run, SIZES_KIB[0]) as resize:
            for size in SIZES_KIB:
                resize(f"size={size}k")
                came = self.count("full disk", self.start(), (self.run,), f"{size} KiB")
                if came == "right":
                    break
            resize("size=512m")
            self.count("full disk, then larger", self.start(), (self.run,), "all again")
            shutil.rmtree(next(self.run.glob(f"runs/*/*/stages/{self.last}")))
            resize("ro")
            self.count("read-only, begun", self.start(), (self.run,), "a stage is missing")
        with tmpfs(self.run, 65536) as resize:
            resize("ro")
            self.count("read-only, empty", self.start(), (self.run,), "nothing is there")


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A small disk in memory; gives a function that changes it.

    Raises:
        PermissionError: If this process may not mount.
    """
    folder.mkdir(exist_ok=True)

    def mount(*options: str) -> None:
        done = subprocess.run(["mount", *options], capture_output=True, text=True)
        if done.returncode:
            raise PermissionError(f"mount is not permitted here: {done.stderr.strip()}")

    mount("-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder))
    try:
        yield lambda option: mount("-o", f"remount,{option}", str(folder))
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def main(arguments: list[str]) -> int:
    """Run the campaign; how many problems it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", help="parts of names; all by default")
    parser.add_argument("--ways", nargs="*", default=[*FAULTS], choices=[*FAULTS])
    parser.add_argument("--small", action="store_true", help="use the smallest run")
    parser.add_argument("--no-disks", action="store_true", help="mount nothing")
    parser.add_argument("--put", action="store_true", help="put the table into the docs")
    options = parser.parse_args(arguments)
    warm.load()
    began, note = time.monotonic(), ""
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        campaign = Campaign(Path(temporary), options.seed, options.each, options.small)
        campaign.damage(options.kinds, options.ways)
        if not options.no_disks:
            try:
                campaign.disks()
            except PermissionError as error:
                note = f" Disks were left out: {error}."
    rows = [asdict(row) for row in campaign.rows.values()]
    print(report.table(rows))
    for problem in campaign.problems:
        print(f"PROBLEM: {problem}")
    if options.put:
        note = f"{time.monotonic() - began:.0f} s.{note}"
        report.put("faults", "python tests/campaigns/faults.py --put", rows, note)
    return len(campaign.problems)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
