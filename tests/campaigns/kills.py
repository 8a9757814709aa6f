"""Campaign `kills`: signals at random moments of every part of a run, which then ends as one alone.

    python tests/campaigns/kills.py [--rounds N] [--seed S] [--chains CHAIN ...] [--put]

In each round, every part of a run gets one signal (SIGKILL, SIGTERM and SIGINT in turn) at a random
moment; the same command is repeated until it ends. Its weights, predictions, scores, caches and
world are then compared with those of a run that was left alone.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import report
import warm
from warm import Child

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
WHOLE = ("videos", "parts")
CHAINS: dict[str, tuple[Callable[[Path], list[str]], tuple[str, ...]]] = {
    "videos": (
        warm.options,
        (
            *("world", "start", "features", "stage align", "checkpoint", "stage instruct"),
            *("stage video", "references", "stage dpo", "evaluation"),
        ),
    ),
    "images": (
        warm.images_options,
        ("world", "features", "stage align", "checkpoint", "stage instruct", "evaluation"),
    ),
    "parts": (
        warm.parts_options,
        ("stage contrast", "checkpoint", "stage lists", "stage facts", "stage language"),
    ),
}
SOON_SECONDS = 20.0  # a signal ends a verb in less


@dataclass
class Tally:
    """Counts of one part.

    Attributes:
        killed: Signals that hit.
        saved: Times that a stage was saved at SIGTERM or SIGINT before it ended.
        wrong: Runs that ended with other results.
        tracebacks: Processes that showed one.
        hung: Processes that a signal did not end soon.
        lost: Processes that ended with another status than the signal's.
    """

    part: str
    killed: int = 0
    saved: int = 0
    wrong: int = 0
    tracebacks: int = 0
    hung: int = 0
    lost: int = 0


class Campaign:
    """Kills and compares.

    Args:
        folder: Empty folder to work in.
        seed: Seed of the moments.
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.chance = folder, random.Random(seed)
        self.rows: dict[str, Tally] = {}
        self.problems: list[str] = []
        self.turn = 0

    def row(self, part: str) -> Tally:
        """Counts of a part."""
        return self.rows.setdefault(part, Tally(part))

    def alone(self, chain: str) -> dict[str, object]:
        """Results of a run that nobody stops; the run's folder is the same for all."""
        child = self._start(chain)
        if child.wait() != 0:
            raise SystemExit(f"the run that was left alone failed:\n{child.said()}")
        found = warm.outcome(self.folder / "run")
        shutil.rmtree(self.folder / "run")
        return found

    def _start(self, chain: str) -> Child:
        run = self.folder / "run"
        run.mkdir(exist_ok=True)
        return Child(["fit", *CHAINS[chain][0](run)], self.folder / "log")

    def round(self, chain: str, parts: tuple[str, ...], wanted: dict[str, object]) -> None:
        """Kill one run in each of its parts, let it end, and compare."""
        hit = []
        for part in parts:
            if self._kill(chain, part):
                hit.append(part)
        last = self._start(chain)
        code = last.wait()
        found = warm.outcome(self.folder / "run")
        left = warm.leftovers(self.folder / "run")
        if code != 0 or found != wanted or left:
            odd = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
            self.problems.append(
                f"{chain} after {hit}: exit {code}, differing {sorted(odd)[:9]}, left {left}\n"
                + last.said()[-2000:]
            )
            for part in hit:
                self.row(part).wrong += 1
        shutil.rmtree(self.folder / "run")

    def _kill(self, chain: str, part: str) -> bool:
        """One signal at a random moment of a part; whether it hit."""
        number = SIGNALS[self.turn % len(SIGNALS)]
        self.turn += 1
        child, row = self._start(chain), self.row(part)
        deadline = time.monotonic() + warm.HANG_SECONDS
        while child.place() != part and not child.ended() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(self.chance.choice((0.0, 0.02, 0.1, 0.4)) * self.chance.random())
        if child.ended():
            return False
        os.kill(child.pid, number)
        sent = time.monotonic()
        code = child.wait()
        row.killed += 1
        said = child.said()
        row.saved += "interrupted and saved at step" in said
        wrongs = {
            "hung": code is None or time.monotonic() - sent > SOON_SECONDS,
            "tracebacks": "Traceback" in said or code == 70,
            # It may have ended by itself just before.
            "lost": code not in (75, -number, 0) or (number == signal.SIGKILL and code == 75),
        }
        for name, wrong in wrongs.items():
            if wrong:
                setattr(row, name, getattr(row, name) + 1)
                self.problems.append(f"{part}, {number.name}: {name}, exit {code}\n{said[-2000:]}")
        return True

    def sweep(self, rounds: int) -> None:
        """Kill a sweep of two points, whose fits are processes of their own."""
        row = self.row("sweep")
        axes = "{stages.language.data.max_steps: [4]}"
        text = f"{{experiment: {warm.PARTS}, seeds: [0, 1], axes: {axes}}}"
        wanted: dict[str, object] | None = None
        for turn in range(rounds + 1):
            run = self.folder / "run"
            run.mkdir()
            (run / "some.yaml").write_text(text)
            options = [each for each in warm.parts_options(run) if not each.startswith("--runs")]
            command = ["sweep", str(run / "some.yaml"), f"--runs={run / 'runs'}", *options[2:]]
            if turn:
                number = SIGNALS[turn % len(SIGNALS)]
                child = Child(command, self.folder / "log")
                time.sleep(self.chance.uniform(1.0, 25.0))
                if not child.ended():
                    os.kill(child.pid, number)
                    code, said = child.wait(), child.said()
                    row.killed += 1
                    row.hung += code is None
                    row.tracebacks += "Traceback" in said
                    row.lost += code not in (75, -number, 0)
            child = Child(command, self.folder / "log")
            code = child.wait()
            found = warm.outcome(run)
            if wanted is None:
                wanted = found
            elif code != 0 or found != wanted or warm.leftovers(run):
                row.wrong += 1
                self.problems.append(f"sweep: exit {code}\n{child.said()[-2000:]}")
            shutil.rmtree(run)


def main(arguments: list[str]) -> int:
    """Run the campaign; how many problems it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweeps", type=int, default=6)
    parser.add_argument("--chains", nargs="*", default=WHOLE, choices=[*CHAINS])
    parser.add_argument("--places", nargs="*", help="parts to kill in; all by default")
    parser.add_argument("--put", action="store_true", help="put the table into the docs")
    options = parser.parse_args(arguments)
    warm.load()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as temporary:
        campaign = Campaign(Path(temporary), options.seed)
        for chain in options.chains:
            parts = CHAINS[chain][1]
            chosen = tuple(each for each in parts if each in (options.places or parts))
            wanted = campaign.alone(chain)
            for number in range(options.rounds):
                campaign.round(chain, chosen, wanted)
                seconds = time.monotonic() - began
                print(f"{chain}: round {number + 1}, {seconds:.0f} s", flush=True)
        if options.sweeps:
            campaign.sweep(options.sweeps)
    rows = [asdict(row) for row in campaign.rows.values()]
    print(report.table(rows))
    for problem in campaign.problems:
        print(f"PROBLEM: {problem}")
    if options.put:
        note = f"{time.monotonic() - began:.0f} s. Signals: SIGKILL, SIGTERM and SIGINT in turn."
        report.put("kills", "python tests/campaigns/kills.py --put", rows, note)
    return len(campaign.problems)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
