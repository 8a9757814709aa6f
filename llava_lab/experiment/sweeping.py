"""Sweeping: the points of a sweep, each fitted by a process of its own, some at once."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from llava_lab.core import signals
from llava_lab.core.lock import Held, lock
from llava_lab.core.messages import explained
from llava_lab.core.records import read_record, write_record
from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.gpus import VISIBLE, Pool, visible
from llava_lab.experiment.hparams import hparams_folder, write_hparams
from llava_lab.experiment.pace import Pace
from llava_lab.experiment.run import Preview
from llava_lab.experiment.sweep import Layers, Point, Sweep, recorded_results


def preview(sweep: Sweep, runs: Path, point: Point, more: Layers = ()) -> Preview:
    """What a fit of a point would do.

    Raises:
        ValueError: If the point cannot be fitted.
    """
    experiment = Experiment.read_layers(sweep.layers(point, more))
    return experiment.fitting(runs).preview()


def finished(sweep: Sweep, runs: Path, more: Layers = ()) -> set[str]:
    """Points whose results are still theirs: a record does not tell whether data has changed."""
    recorded = list(sweep.recorded(runs, more))
    if recorded:
        print(f"sweep {sweep.name}: {len(recorded)} points have results; checking them", flush=True)
    found = [(point, results) for point, results in recorded if _still(sweep, runs, point, more)]
    for point, results in found:
        record = sweep.record(runs, point, more)
        if not hparams_folder(record).is_dir():
            write_hparams(sweep, point, record, results)
    return {str(point) for point, _ in found}


def _still(sweep: Sweep, runs: Path, point: Point, more: Layers) -> bool:
    try:
        return preview(sweep, runs, point, more).results is not None
    except (OSError, ValueError):  # its fit will say so
        return False


def run(sweep: Sweep, runs: Path, jobs: int | None = None, more: Layers = ()) -> None:
    """Fit the points without results of theirs; a failed one does not stop the others.

    Points that another sweep is at are left for the end, and waited for. On a machine with GPUs
    each has GPUs of its own.

    Args:
        sweep: The sweep.
        runs: Folder of all runs.
        jobs: Points at once; None for one a GPU, or one without GPUs.
        more: Files and overrides for all points.

    Raises:
        ValueError: At the end, if points failed.
    """
    points, done = sweep.points(), finished(sweep, runs, more)
    missing = [point for point in points if str(point) not in done]
    pool = _pool(sweep, missing, jobs, more)
    where = f", {pool.jobs} at once {pool}" if pool else ""
    print(f"sweep {sweep.name}: {len(points)} points, {len(missing)} to run{where}", flush=True)
    failed, number, left, at_once = 0, len(done), [], pool.jobs if pool else jobs or 1
    pace = Pace(missing, at_once)
    for wait in (False, True):
        with _Fits(sweep, runs, at_once, more, pool) as fits:
            for point, outcome in fits.each(left if wait else missing, wait):
                if outcome is None:
                    left.append(point)
                    continue
                number, failed = number + 1, failed + (not outcome[0])
                pace.ended(point, _cost(sweep.record(runs, point, more)) if outcome[0] else {})
                print(f"[{number}/{len(points)}] {outcome[1]}{pace.left}", flush=True)
    check_failed(failed, len(points))


def _cost(record: Path) -> dict[str, Any]:
    """What the results of a point that has ended say of its cost."""
    results = recorded_results(record)
    found = read_record(results, {}, "`fit` it again.") if results else {}
    return found.get("cost", {})


def check_failed(failed: int, points: int) -> None:
    """Say at the end of a sweep how many points failed.

    Raises:
        ValueError: If any did.
    """
    if failed:
        raise ValueError(f"{failed} of {points} points failed; repeat to try them again")


def _pool(sweep: Sweep, points: Sequence[Point], jobs: int | None, more: Layers) -> Pool | None:
    """The GPUs, where there are some and the points are fitted on them."""
    if not points or not (names := visible()):
        return None
    pool = Pool(names, jobs or len(names))
    return pool if pool.wanted(trainer_options(sweep.layers(points[0], more))) else None


def trainer_options(layers: Layers) -> dict[str, Any]:
    """Options of the trainer in files and overrides."""
    return Experiment.read_layers(layers).config["trainer"]


class _Fits:
    """Runs the fits of points, some at once; none outlives the sweep.

    Each has the sweep's pipe as its standard input, and is interrupted when that closes: at a
    signal, which it saves at, or because the sweep was killed.
    """

    def __init__(self, sweep: Sweep, runs: Path, jobs: int, more: Layers, gpus: Pool | None):
        self.sweep, self.runs, self.more, self.gpus = sweep, runs, more, gpus
        self.pool = ThreadPoolExecutor(jobs)
        self.reader, self.writer = os.pipe()
        self.began, self.ended = time.time(), False

    def __enter__(self) -> "_Fits":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is signals.Interrupted:
            print("interrupted; the points save where they are", flush=True)
            signals.defer()  # for as long as that takes
        self.ended = True
        os.close(self.writer)
        self.pool.shutdown(cancel_futures=True)
        os.close(self.reader)

    def each(
        self, points: Sequence[Point], wait: bool
    ) -> Iterator[tuple[Point, tuple[bool, str] | None]]:
        """Points as they end, with whether they have results and a line about them.

        Args:
            points: The points.
            wait: Whether to wait for those that another sweep is at; else they end with None.
        """
        futures = {self.pool.submit(self._alone, point, wait): point for point in points}
        for done in as_completed(futures):
            yield futures[done], done.result()

    def _alone(self, point: Point, wait: bool) -> tuple[bool, str] | None:
        try:
            record = self.sweep.record(self.runs, point, self.more)
            with lock(record.with_suffix(".lock"), f"{point}", wait):
                # Older records were looked at before: their results are not the point's any more.
                newer = record.is_file() and record.stat().st_mtime >= self.began
                if newer and (results := recorded_results(record)):
                    return True, f"{point}: by another sweep, {results}"
                return self._fit(record, point)
        except Held:
            return None
        except (OSError, ValueError) as error:  # such as a file that was changed meanwhile
            return False, f"{point}: {explained(error)}"

    def _fit(self, record: Path, point: Point) -> tuple[bool, str]:
        """Fit one point, on GPUs of its own where there are some."""
        layers = self.sweep.layers(point, self.more)
        try:
            count = self.gpus.wanted(trainer_options(layers)) if self.gpus else 0
        except ValueError as error:
            return False, f"{point}: {error}"
        with self.gpus.taken(count) if self.gpus and count else nullcontext() as names:
            if self.ended:  # while it waited for a GPU
                return False, f"{point}: not begun"
            # Whatever Slurm has started this process as, the fit is no task of Slurm's.
            kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
            environment = {**kept, signals.PARENT: "stdin"}
            environment |= {VISIBLE: ",".join(names)} if names else {}
            where = f" on GPU {environment[VISIBLE]}" if names else ""
            print(f"{point}: begins{where}, log {record.with_suffix('.log')}", flush=True)

            def start(command: list[str]) -> int:
                with record.with_suffix(".log").open("w", encoding="utf-8") as out:
                    return subprocess.run(
                        command,
                        stdin=self.reader,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        check=False,
                        env=environment,
                    ).returncode

            return fit_point(self.sweep, self.runs, point, self.more, start)


def fit_point(
    sweep: Sweep,
    runs: Path,
    point: Point,
    more: Layers,
    start: Callable[[list[str]], int],
    **known: Any,
) -> tuple[bool, str]:
    """Fit one point in a process of its own, and record what came of it.

    Args:
        sweep: Its sweep.
        runs: Folder of all runs.
        point: The point.
        more: Files and overrides for all points.
        start: Runs a command with its output in the point's log; returns its exit status.
        known: What else to record.

    Returns:
        Whether it has results, and a line about it.
    """
    began, record = time.monotonic(), sweep.record(runs, point, more)
    layers, log = sweep.layers(point, more), record.with_suffix(".log")
    command = fit_command(layers, runs)
    # Before the fit, as it reads the files when it begins.
    expected = None
    with suppress(OSError, ValueError):  # which its log says
        expected = Experiment.read_layers(layers).run(runs).results_file
    code = start(command)
    known |= {"labels": point.labels, "seed": point.seed, "command": command, "exit": code}
    results = expected if not code else None
    if results and results.is_file():
        write_record(record, {**known, "results": str(results)})
        write_hparams(sweep, point, record, results)
        return True, f"{point}: {time.monotonic() - began:.0f} s, {results}"
    write_record(record, {**known, "error": (errors := last_words(log))})
    return False, f"{point}: {ending(code)}, see {log}: {' '.join(errors)}"


def ending(code: int) -> str:
    """How a fit failed, of its exit status, in words."""
    if code >= 0:
        return f"failed with exit status {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", as where memory is short" if name == "SIGKILL" else "")


def last_words(log: Path) -> list[str]:
    """What the log of a failed fit says of why."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.startswith("error:")] or lines[-1:]


def fit_command(layers: Layers, runs: Path) -> list[str]:
    """The `fit` of files and overrides."""
    given = [
        part
        for layer in layers
        for part in (["-c", str(layer)] if isinstance(layer, Path) else [f"--{layer}"])
    ]
    return [sys.executable, "-m", "llava_lab", "fit", *given, f"--runs={runs}"]
