"""A run on disk: its folder, its record, and finished stages found again by their fingerprint."""

import hashlib
import importlib.metadata
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava_lab.core import ranks
from llava_lab.core.atomic import plain_name, write
from llava_lab.core.checkout import git_commit
from llava_lab.core.lock import lock
from llava_lab.core.progress import say
from llava_lab.core.records import NUMBER, file_sha256, read_record, write_record
from llava_lab.core.version import __version__
from llava_lab.evaluate.points import NAME as POINTS
from llava_lab.train.stage_weights import stage_file

PACKAGES = ("lightning", "pillow", "timm", "tokenizers", "torch", "torchmetrics", "transformers")
# What the records of a stage and of a run must hold.
STAGE: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("name", "fingerprint"), str),
    **dict.fromkeys(("steps", "samples", "tokens"), int),
    **dict.fromkeys(("seconds", "loss_first", "loss_last", "visual_tokens_mean", "flops"), NUMBER),
    **dict.fromkeys(("parent", "git"), (str, type(None))),
    "reused": bool,
    "held_out": dict,
}
RESULTS: dict[str, type | tuple[type, ...]] = {
    "stages": list,
    **dict.fromkeys(("benchmarks", "benchmark_fingerprints", "cost", "versions"), dict),
    **dict.fromkeys(("visual_tokens", "predictions_sha256"), dict),
}
# What results.json keeps of a stage's record.
STAGE_KEYS = (
    *("name", "fingerprint", "reused", "steps", "of_steps", "samples", "tokens", "seconds"),
    *("flops", "loss_first", "loss_last", "held_out", "rows_skipped", "trajectory"),
)


@dataclass(frozen=True)
class Preview:
    """What a fit would do.

    Attributes:
        stages: Of each stage the folder of a finished one that would be reused, or None.
        results: The results, where the run is finished, or None.
        fingerprints: Of each stage its fingerprint.
        endings: Of each stage what ends it, where that may surprise; else nothing.
    """

    stages: dict[str, Path | None]
    results: Path | None
    fingerprints: dict[str, str]
    endings: dict[str, str]


class Run:
    """`runs/<experiment>/<run id>`: the same configuration and seed are the same run.

    Args:
        root: Folder of all runs.
        experiment: Name of the experiment.
        scale: Name of the scale.
        seed: The seed.
        config: The resolved configuration, as text.
    """

    def __init__(self, root: Path, experiment: str, scale: str, seed: int, config: str):
        plain_name(experiment, "experiment")
        plain_name(scale or "own", "scale")
        self.root, self.experiment, self.scale, self.seed = root, experiment, scale, seed
        self.config, self.config_sha256 = config, hashlib.sha256(config.encode()).hexdigest()
        identity = f"{scale or 'own'}-seed{seed}-{self.config_sha256[:8]}"
        self.folder = root / experiment / identity
        self.results_file = self.folder / "results.json"
        self._warned: set[str] = set()

    def stage(self, name: str) -> Path:
        """Folder of a stage."""
        return self.folder / "stages" / name

    def begin(self) -> None:
        """Make the folder and write config.yaml, from the first process of a job."""
        path = self.folder / "config.yaml"
        if not ranks.first():
            return
        if not path.is_file() or path.read_bytes() != self.config.encode():
            write(path, self.config)

    def find(
        self, fingerprint: str, suits: Callable[[dict[str, Any], Path], bool] | None = None
    ) -> Path | None:
        """Find the folder of a finished stage by its fingerprint, in this run or any other.

        A damaged record is named in a warning and skipped: its stage is trained again.

        Args:
            fingerprint: The stage's.
            suits: Whether one has all that is asked for, by its record and folder; None takes any.
        """
        for path in sorted(self.root.glob("*/*/stages/*/stage.json")):
            try:
                record = read_stage(path.parent)
            except ValueError as error:
                self._warn(f"{error}")
                continue
            if record["fingerprint"] != fingerprint:
                continue
            if suits is None or suits(record, path.parent):
                return path.parent
            self._warn(
                f"{path.parent}: finished without the scores or weights that evaluate_every or "
                "keep_every asks for; such a stage is trained again"
            )
        return None

    def _warn(self, message: str) -> None:
        """Print a warning once."""
        if message not in self._warned:
            self._warned.add(message)
            say(message)

    @contextmanager
    def stage_lock(self, fingerprint: str, name: str) -> Iterator[None]:
        """Lock a stage so that concurrent fits train it once; the others wait, and reuse it.

        Ranks of one job train a stage together: the first one takes the lock for all. It refuses a
        stage that another job is training, since the other ranks would not wait with it.

        Args:
            fingerprint: The stage's fingerprint.
            name: The stage's name, for messages.
        """
        if not ranks.first():
            yield
            return
        several = "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS") or 1) > 1
        with lock(self.root / ".training" / fingerprint, f"stage {name}", wait=not several):
            yield

    def finished(self, stages: dict[str, str], benchmarks: dict[str, str]) -> Path | None:
        """Path of results.json, if it belongs to these stages, benchmarks and package versions.

        Damaged results are named in a warning and count as missing.

        Args:
            stages: Fingerprint of each stage.
            benchmarks: Fingerprint of each benchmark.
        """
        if not self.results_file.is_file():
            return None
        try:
            found = self.results
        except ValueError as error:
            self._warn(f"{error}")
            return None
        same = (
            {stage.get("name"): stage.get("fingerprint") for stage in found["stages"]} == stages
            and found["benchmark_fingerprints"] == benchmarks
            and found["versions"] == versions()
        )
        if same:
            try:
                self.check_stages(found["stages"])
            except (ValueError, FileNotFoundError) as error:
                self._warn(f"{error}")
                return None
        changed = same and self._changed_predictions(found["predictions_sha256"])
        if same and not changed and found.get("points_sha256") != self._points():
            changed = self.folder / POINTS
        if changed:
            self._warn(
                f"{changed}: missing or not what was scored. The benchmarks are asked again."
            )
            return None
        return self.results_file if same else None

    def check_stages(self, stages: Iterable[dict[str, Any]]) -> None:
        """Refuse stages that were trained anew on other data since results said this of them."""
        for stage in stages:
            place = self.stage(stage["name"])
            if read_stage(place)["fingerprint"] != stage["fingerprint"]:
                since = f"since {self.results_file} was written"
                raise ValueError(f"{place}: trained anew on other data {since}; repeat `fit`")

    @property
    def results(self) -> dict[str, Any]:
        """Contents of results.json.

        Raises:
            ValueError: If it is damaged.
        """
        found = read_record(self.results_file, RESULTS, "`fit` asks the benchmarks again.")
        if not all(isinstance(stage, dict) for stage in found["stages"]):
            raise ValueError(f"{self.results_file}: damaged, a stage is no object.")
        return found

    def _predictions(self) -> dict[str, str]:
        """SHA-256 of each file of predictions."""
        files = sorted((self.folder / "predictions").glob("*.jsonl"))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def _points(self) -> str | None:
        """SHA-256 of the file of points, if there is one."""
        path = self.folder / POINTS
        return file_sha256(path) if path.is_file() else None

    def _changed_predictions(self, wanted: dict[str, str]) -> Path | None:
        """Find the first file of predictions that has changed since it was scored."""
        there = self._predictions()
        changed = [name for name, digest in wanted.items() if there.get(name) != digest]
        return self.folder / "predictions" / changed[0] if changed else None

    def predicted(self) -> None:
        """Record the checksums of new predictions in results.json, if there is one."""
        if self.results_file.is_file():
            found = self.results | {"predictions_sha256": self._predictions()}
            write_record(self.results_file, found)

    def finish(self, results: dict[str, Any]) -> Path:
        """Write results.json, from the first process of a job."""
        if not ranks.first():
            return self.results_file
        head = {
            "experiment": self.experiment,
            "scale": self.scale,
            "seed": self.seed,
            "git": git_commit(),
            "versions": versions(),
            "config_sha256": self.config_sha256,
        }
        files = {"predictions_sha256": self._predictions(), "points_sha256": self._points()}
        write_record(self.results_file, {**head, **results, **files})
        return self.results_file


def read_stage(folder: Path) -> dict[str, Any]:
    """The record of a finished stage.

    Raises:
        ValueError: If it is damaged, or the weights beside it are missing.
    """
    found = read_record(folder / "stage.json", STAGE, f"Delete {folder} to train it again.")
    if not (weights := stage_file(folder)).is_file():
        raise ValueError(
            f"{weights}: missing beside stage.json, so that the stage is not finished; `fit` "
            "trains it again"
        )
    return found


def finished_stages(folder: Path, names: Iterable[str]) -> Iterator[tuple[Path, str]]:
    """Weights and fingerprint of each stage of a finished run.

    Args:
        folder: The run's.
        names: Its stages, in the order in which they ran.

    Raises:
        ValueError: If a stage is not finished, or began with another one than stands before it.
    """
    before = None
    for name in names:
        place = folder / "stages" / name
        if not (place / "stage.json").is_file():
            raise ValueError(
                f"{folder}: stage {name} is not finished. Run fit with the same options first."
            )
        record = read_stage(place)
        if record["parent"] != before:
            raise ValueError(
                f"{folder}: stage {name} began with another stage than the one that stands before "
                "it now, which was trained anew. Run fit with the same options first."
            )
        yield stage_file(place), (before := record["fingerprint"])


def versions() -> dict[str, str]:
    """Versions of Python, this package and what the numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": sys.version.split()[0], "llava_lab": __version__, **found}


def peak_memory() -> int:
    """Peak memory in bytes: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
