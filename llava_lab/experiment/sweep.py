"""Sweep: an experiment, axes and seeds -> one ordinary `fit` a point, and what came of each.

sweep: connector                       # its name; by default the file's
experiment: ../experiments/llava15.yaml
overlays: []                           # more -c files; without a scale the tiny one is taken
seeds: [0, 1, 2]
axes:
  model.connector.init_args.depth: [1, 2, 3]       # an option with its values, or
  rate:                                            # bundles of options, each with a name
    half: {stages.instruct.recipe.init_args.rate_scale: 25}
    full: {}
"""

import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_lab.cli.verb import one_message, verb_parser
from llava_lab.core import signals
from llava_lab.core.atomic import plain_name
from llava_lab.core.lock import Held, lock
from llava_lab.core.records import read_record, write_record
from llava_lab.core.yaml_file import read_mapping

KEYS = {"sweep", "experiment", "overlays", "seeds", "axes", "published"}
RESULTS = "llava_lab: results: "


@dataclass(frozen=True)
class Point:
    """One combination of values with one seed.

    Attributes:
        labels: Name of the value on each axis.
        options: Options and their values.
        seed: The seed.
    """

    labels: dict[str, str]
    options: dict[str, Any]
    seed: int

    def __str__(self) -> str:
        values = " ".join(f"{axis}={label}" for axis, label in self.labels.items())
        return f"{values} seed={self.seed}".strip()


@dataclass(frozen=True)
class Sweep:
    """A sweep file, read and checked.

    Attributes:
        name: Its name.
        files: The experiment and the overlays.
        axes: Name of each axis, its values' names, and the options that each sets.
        seeds: Seeds.
        published: Tables of the papers about the same question: `experiment` and `title` each.
    """

    name: str
    files: tuple[Path, ...]
    axes: dict[str, dict[str, dict[str, Any]]]
    seeds: tuple[int, ...]
    published: tuple[dict[str, str], ...] = ()

    @classmethod
    def read(cls, path: Path) -> "Sweep":
        """Read a sweep file.

        Raises:
            ValueError: If a key is unknown or missing, or an axis has no values; names it.
        """
        found = read_mapping(path)
        if not {"experiment", "axes"} <= found.keys():
            raise ValueError(f"{path}: a sweep needs the keys experiment and axes")
        if unknown := sorted(found.keys() - KEYS):
            raise ValueError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(KEYS)}")
        named = [found["experiment"], *_listed(path, found, "overlays", [])]
        if odd := [name for name in named if not isinstance(name, str)]:
            raise ValueError(f"{path}: {odd[0]!r} is no file; experiment and overlays name files")
        files = [path.parent / name for name in named]
        if missing := [name for name in files if not name.is_file()]:
            raise ValueError(f"{path}: there is no file {missing[0]}")
        axes = found["axes"]
        if not isinstance(axes, dict) or not all(isinstance(axis, str) for axis in axes):
            raise ValueError(f"{path}: axes is {axes!r:.200}, not names with values under each")
        axes = {axis: _values(f"{path}: {axis}", axis, values) for axis, values in axes.items()}
        seeds = _listed(path, found, "seeds", [0])
        if not seeds or not all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds):
            raise ValueError(f"{path}: seeds is {seeds!r:.200}, not a list of whole numbers from 0")
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{path}: seeds is {seeds!r:.200}; one stands there twice")
        published = _listed(path, found, "published", [])
        if not all(isinstance(t, dict) and t.keys() == {"experiment", "title"} for t in published):
            raise ValueError(f"{path}: published is a list of {{experiment: ..., title: ...}}")
        name = plain_name(str(found.get("sweep", path.stem)), f"{path}: sweep")
        return cls(name, tuple(files), axes, tuple(seeds), tuple(published))

    def points(self) -> list[Point]:
        """Every combination of values, with every seed."""
        axes = [list(values.items()) for values in self.axes.values()]
        points = []
        for chosen in itertools.product(*axes):
            labels = dict(zip(self.axes, (label for label, _ in chosen), strict=True))
            options = {key: value for _, bundle in chosen for key, value in bundle.items()}
            points += [Point(labels, options, seed) for seed in self.seeds]
        return points

    def folder(self, runs: Path) -> Path:
        """Where the records of its points lie."""
        return runs / "sweeps" / self.name

    def record(self, runs: Path, point: Point, more: Sequence[str] = ()) -> Path:
        """Record of a point, named by what decides it: options, and the text of all YAML files."""
        root = self.files[0].resolve().parents[1]
        texts = [path.read_text(encoding="utf-8") for path in self.files]
        texts += [
            path.read_text(encoding="utf-8") for path in sorted(root.glob("configs/**/*.yaml"))
        ]
        key = json.dumps([point.labels, point.options, point.seed, [*more], texts], sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()[:12]
        return self.folder(runs) / f"{digest}.json"

    def command(self, runs: Path, point: Point, more: Sequence[str] = ()) -> list[str]:
        """The `fit` of a point: what is the point's own comes last and wins."""
        files = [part for file in self.files for part in ("-c", str(file))]
        options = [f"--{key}={_written(value)}" for key, value in point.options.items()]
        seed = f"--seed_everything={point.seed}"
        head = [sys.executable, "-m", "llava_lab", "fit", *files, *more, f"--runs={runs}"]
        return [*head, *options, seed]

    def finished(self, runs: Path, more: Sequence[str] = ()) -> Iterator[tuple[Point, Path]]:
        """Points that have results, with the results."""
        for point in self.points():
            if results := _results(self.record(runs, point, more)):
                yield point, results


def _results(record: Path) -> Path | None:
    """The results that a point's record names, if they are there."""
    if not record.is_file():
        return None
    known = read_record(record, {"command": list, "exit": int}, "Delete it to fit the point again.")
    results = known.get("results")
    return Path(results) if isinstance(results, str) and Path(results).is_file() else None


def _listed(path: Path, found: dict[str, Any], key: str, default: list[Any]) -> list[Any]:
    values = found.get(key, default)
    if not isinstance(values, list):
        raise ValueError(f"{path}: {key} is {values!r:.200}, not a list")
    return values


def _values(where: str, axis: str, values: Any) -> dict[str, dict[str, Any]]:
    """Names of an axis's values, and the options that each sets."""
    found: dict[str, Any] = {}
    if isinstance(values, list):
        found = {_written(value): {axis: value} for value in values}
    elif isinstance(values, dict):
        found = {str(name): bundle or {} for name, bundle in values.items()}
    bundles = found.values()
    if found and all(isinstance(b, dict) and all(isinstance(k, str) for k in b) for b in bundles):
        if len(found) < len(values):
            raise ValueError(f"{where}: a value stands there twice")
        return found
    raise ValueError(f"{where}: an axis is a list of values, or names with options under each")


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def main(arguments: Sequence[str]) -> None:
    """`sweep`: run what is missing of a sweep."""
    parser = verb_parser(
        "sweep",
        "Fit every point of a sweep that has no results yet. Other options, such as "
        "--trainer.accelerator=gpu, are handed to every fit.",
    )
    parser.add_argument("sweep", type=Path, help="sweep file, such as sweeps/connector.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--jobs", type=int, default=1, help="points at once")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the points and what each would reuse"
    )
    options, more = parser.parse_known_args(arguments)
    with one_message():
        sweep = Sweep.read(options.sweep)
        if options.dry_run:
            dry_run(sweep, options.runs, more)
        else:
            run(sweep, options.runs, options.jobs, more)


def dry_run(sweep: Sweep, runs: Path, more: Sequence[str] = ()) -> None:
    """List the points; `fit` itself says what it would reuse."""
    for point in sweep.points():
        said = _would(sweep, runs, point, more)
        results = [line.removeprefix("results: ") for line in said if line.startswith("results: ")]
        print(f"{point}: {results[0] if results else 'to run'}", flush=True)
        for line in [] if results else said:
            print(f"    {line}", flush=True)


def _would(sweep: Sweep, runs: Path, point: Point, more: Sequence[str]) -> list[str]:
    """What `fit` says of a point before it does anything: its results, or its stages, or an error.

    A record alone does not tell whether its results are still those of the point: data may have
    changed since, and what decides is known to `fit`.
    """
    from llava_lab.cli import fit  # only here: it imports torch

    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            fit.main([*sweep.command(runs, point, more)[3:], "--dry_run"])
    except SystemExit as stop:  # a message, or a status and the message already said
        said.write("" if isinstance(stop.code, int) else f"{stop.code}")
    lines = [line.removeprefix("llava_lab: ") for line in said.getvalue().splitlines()]
    wrong = [index for index, line in enumerate(lines) if line.startswith("error:")]
    if wrong:
        return lines[wrong[0] :]
    results = [line for line in lines if line.startswith("results: ")]
    return results or [line for line in lines if line.startswith("stage")] or lines[-1:]


def _finished(sweep: Sweep, runs: Path, more: Sequence[str]) -> set[str]:
    """Points whose results are still theirs."""
    recorded = [point for point, _ in sweep.finished(runs, more)]
    if recorded:
        print(f"sweep {sweep.name}: {len(recorded)} points have results; checking them", flush=True)
    return {
        str(point)
        for point in recorded
        if _would(sweep, runs, point, more)[0].startswith("results: ")
    }


def run(sweep: Sweep, runs: Path, jobs: int = 1, more: Sequence[str] = ()) -> None:
    """Fit the points without results of theirs; a failed one does not stop the others.

    Points that another sweep is at are left for the end, and waited for.

    Raises:
        ValueError: At the end, if points failed.
    """
    points, finished = sweep.points(), _finished(sweep, runs, more)
    missing = [point for point in points if str(point) not in finished]
    print(f"sweep {sweep.name}: {len(points)} points, {len(missing)} to run", flush=True)
    failed, number, left = 0, len(finished), []
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

    def __init__(self, sweep: Sweep, runs: Path, jobs: int, more: Sequence[str]):
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
                if newer and (results := _results(record)):
                    return True, f"{point}: by another sweep, {results}"
                return self._fit(record, point)
        except Held:
            return None

    def _fit(self, record: Path, point: Point) -> tuple[bool, str]:
        """Fit one point and keep what came of it."""
        began, log = time.monotonic(), record.with_suffix(".log")
        command = self.sweep.command(self.runs, point, self.more)
        with log.open("w", encoding="utf-8") as out:
            code = subprocess.run(
                command,
                stdin=self.reader,
                stdout=out,
                stderr=subprocess.STDOUT,
                check=False,
                env={**os.environ, signals.PARENT: "stdin"},
            ).returncode
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        known = {"labels": point.labels, "seed": point.seed, "command": command, "exit": code}
        results = [line.removeprefix(RESULTS) for line in lines if line.startswith(RESULTS)]
        if code == 0 and results:
            write_record(record, {**known, "results": results[-1]})
            return True, f"{point}: {time.monotonic() - began:.0f} s, {results[-1]}"
        errors = [line for line in lines if line.startswith("error:")] or lines[-1:]
        write_record(record, {**known, "error": errors})
        return False, f"{point}: failed with exit status {code}, see {log}: {' '.join(errors)}"
