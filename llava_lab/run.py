"""A run on disk: its folder, its record, and finished stages found again by their fingerprint."""

import hashlib
import importlib.metadata
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llava_lab import __version__
from llava_lab.disk import plain_name, write
from llava_lab.lock import lock

PACKAGES = ("lightning", "pillow", "timm", "tokenizers", "torch", "torchmetrics", "transformers")
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID")


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

    def stage(self, name: str) -> Path:
        """Folder of a stage."""
        return self.folder / "stages" / name

    def begin(self) -> None:
        """Make the folder and write the configuration."""
        write(self.folder / "config.yaml", self.config)

    def find(self, fingerprint: str) -> Path | None:
        """Folder of a finished stage with this fingerprint, in this run or any other."""
        for record in sorted(self.root.glob("*/*/stages/*/stage.json")):
            if _read(record).get("fingerprint") == fingerprint:
                return record.parent
        return None

    @contextmanager
    def alone(self, fingerprint: str, name: str) -> Iterator[None]:
        """Keep a stage for this process: another fit that needs it waits and finds it finished.

        Ranks of one job train a stage together: the first one keeps it for all, and refuses a
        stage that another job trains, as the others would not wait with it.

        Args:
            fingerprint: The stage's fingerprint.
            name: The stage's name, for messages.
        """
        if any(int(os.environ.get(each) or 0) for each in RANKS):
            yield
            return
        several = "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS") or 1) > 1
        with lock(self.root / ".training" / fingerprint, f"stage {name}", wait=not several):
            yield

    def finished(self, marks: dict[str, str], asked: dict[str, str]) -> Path | None:
        """Its results.json, if they are those of these stages, benchmarks and package versions."""
        path = self.folder / "results.json"
        if not path.is_file():
            return None
        found = _read(path)
        same = (
            {stage["name"]: stage["fingerprint"] for stage in found["stages"]} == marks
            and found.get("asked") == asked
            and found["versions"] == versions()
        )
        return path if same else None

    def finish(self, results: dict[str, Any]) -> Path:
        """Write results.json."""
        head = {
            "experiment": self.experiment,
            "scale": self.scale,
            "seed": self.seed,
            "git": git_commit(),
            "versions": versions(),
            "config_sha256": self.config_sha256,
        }
        path = self.folder / "results.json"
        write(path, json.dumps({**head, **results}, indent=2) + "\n")
        return path


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error}). Delete the stage's folder.") from error


def git_commit() -> str | None:
    """Commit of the code, with a plus where files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, str]:
    """Versions of Python, this package and what the numbers depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": sys.version.split()[0], "llava_lab": __version__, **found}


def peak_memory() -> int:
    """Peak memory in bytes: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
