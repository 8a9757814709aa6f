"""Sweeping: the points of a sweep, each fitted by a process of its own, some at once."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from llava_lab.core import signals
from llava_lab.core.lock import Held, lock
from llava_lab.core.records import write_record
from llava_lab.experiment.experiment import Experiment
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
    recorded = [point for point, _ in sweep.recorded(runs, more)]
    if recorded:
        print(f"sweep {sweep.name}: {len(recorded)} points have results; checking them", flush=True)
    return {str(point) for point in recorded if _still(sweep, runs, point, more)}


def _still(sweep: Sweep, runs: Path, point: Point, more: Layers) -> bool:
    try:
        return preview(sweep, runs, point, more).results is not None
    except (OSError, ValueError):  # its fit will say so
        return False


def run(sweep: Sweep, runs: Path, jobs: int = 1, more: Layers = ()) -> None:
    """Fit the points without results of theirs; a failed one does not stop the others.

    Points that another sweep is at are left for the end, and waited for.

    Raises:
        ValueError: At the end, if points failed.
    """
    points, done = sweep.points(), finished(sweep, runs, more)
    missing = [point for point in points if str(point) not in done]
    print(f"sweep {sweep.name}: {len(points)} points, {len(missing)} to run", flush=True)
    failed, number, left = 0, len(done), []
    for wait in (False, True):
        with _Fits(sweep, runs, jobs, more) as fits:
            for point, outcome in fits.each(left if wait else missing, wait):
                if outcome is None:
                    left.append(point)
                    continue
                number, failed = number + 1, failed + (not outcome[0])
                print(f"[{number}/{len(points)}] {outcome[1]}", flush=True)
    if failed:
        raise ValueError(f"{failed} of {len(points)} points failed; repeat to try them again")


class _Fits:
    """Runs the fits of points, some at once; none outlives the sweep.

    Each has the sweep's pipe as its standard input, and is interrupted when that closes: at a
    signal, which it saves at, or because the sweep was killed.
    """

    def __init__(self, sweep: Sweep, runs: Path, jobs: int, more: Layers):
        self.sweep, self.runs, self.more = sweep, runs, more
        self.pool = ThreadPoolExecutor(jobs)
        self.reader, self.writer = os.pipe()
        self.began = time.time()

    def __enter__(self) -> "_Fits":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is signals.Interrupted:
            print("interrupted; the points save where they are", flush=True)
            signals.defer()  # for as long as that takes
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
        record = self.sweep.record(self.runs, point, self.more)
        try:
            with lock(record.with_suffix(".lock"), f"{point}", wait):
                # Older records were looked at before: their results are not the point's any more.
                newer = record.is_file() and record.stat().st_mtime >= self.began
                if newer and (results := recorded_results(record)):
                    return True, f"{point}: by another sweep, {results}"
                return self._fit(record, point)
        except Held:
            return None

    def _fit(self, record: Path, point: Point) -> tuple[bool, str]:
        """Fit one point in a process of its own, and keep what came of it."""
        began, log = time.monotonic(), record.with_suffix(".log")
        layers = self.sweep.layers(point, self.more)
        command = fit_command(layers, self.runs)
        with log.open("w", encoding="utf-8") as out:
            code = subprocess.run(
                command,
                stdin=self.reader,
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
                env={**os.environ, signals.PARENT: "stdin"},
            ).returncode
        known = {"labels": point.labels, "seed": point.seed, "command": command, "exit": code}
        results = Experiment.read_layers(layers).run(self.runs).results_file if not code else None
        if results and results.is_file():
            write_record(record, {**known, "results": str(results)})
            return True, f"{point}: {time.monotonic() - began:.0f} s, {results}"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error:")] or lines[-1:]
        write_record(record, {**known, "error": errors})
        return False, f"{point}: failed with exit status {code}, see {log}: {' '.join(errors)}"


def fit_command(layers: Layers, runs: Path) -> list[str]:
    """The `fit` of files and overrides."""
    given = [
        part
        for layer in layers
        for part in (["-c", str(layer)] if isinstance(layer, Path) else [f"--{layer}"])
    ]
    return [sys.executable, "-m", "llava_lab", "fit", *given, f"--runs={runs}"]
