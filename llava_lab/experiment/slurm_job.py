"""What a job of Slurm runs: one fit of a sweep, which saves and is requeued when its time is over.

Every task of a job (one a device) runs the same `fit`, whose trainer finds the others through
Slurm's variables; the first one writes the record.
"""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from llava_lab.core import ranks, signals
from llava_lab.core.lock import lock
from llava_lab.core.records import write_record
from llava_lab.experiment.sweep import Layers, Point, Sweep
from llava_lab.experiment.sweeping import fit_command, fit_point, last_words

FORWARDED = (signal.SIGUSR1, signal.SIGTERM)


@dataclass(frozen=True, eq=False)
class Fit:
    """One fit of a sweep: of a point, or of a stage that several points share.

    Attributes:
        sweep: The sweep.
        runs: Folder of all runs.
        more: Files and overrides for all points.
        point: The point; of a shared stage any of those that share it.
        record: File that says what came of it; the log lies beside it.
        stage: The shared stage, after which the fit stops; or None.
    """

    sweep: Sweep
    runs: Path
    more: Layers
    point: Point
    record: Path
    stage: str | None = None

    def __str__(self) -> str:
        return f"stage {self.stage} of {self.point}" if self.stage else str(self.point)

    @property
    def log(self) -> Path:
        """What the fit prints."""
        return self.record.with_suffix(".log")

    def __call__(self) -> None:
        """Run it in every task; fails where the fit does, so that Slurm knows."""
        if not ranks.first():
            code = _Process(self.command, None).code
            # Without an error after a signal: Slurm might kill the first task for it.
            raise SystemExit(0 if code == signals.AGAIN else code)
        try:
            with lock(self.record.with_suffix(".lock"), str(self)):
                done = self._stage() if self.stage else self._point()
        except Exception as error:  # read_layers', or submitit's refusal to requeue once more
            self._failed([f"error: {error}"], 1)
            raise
        if not done:
            raise SystemExit(1)

    def checkpoint(self) -> Any:
        """What submitit runs after a requeue: the same command goes on."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)

    @property
    def command(self) -> list[str]:
        """The command of every task."""
        layers = self.sweep.layers(self.point, self.more)
        last = [f"--stage={self.stage}"] if self.stage else []
        return [*fit_command(layers, self.runs), *last]

    def _point(self) -> bool:
        if self.record != self.sweep.record(self.runs, self.point, self.more):
            raise ValueError(
                "files of the experiment have changed since the point was submitted; repeat the "
                "sweep to fit it as it is now"
            )
        known = {"job": job_id()}
        done, line = fit_point(self.sweep, self.runs, self.point, self.more, self._start, **known)
        print(line, flush=True)
        return done

    def _stage(self) -> bool:
        code = self._start(self.command)
        if code:
            self._failed(last_words(self.log), code)
        else:
            write_record(self.record, {"command": self.command, "exit": 0, "job": job_id()})
        return not code

    def _failed(self, errors: list[str], code: int) -> None:
        known = {"labels": self.point.labels, "seed": self.point.seed, "command": self.command}
        write_record(self.record, {**known, "exit": code, "error": errors, "job": job_id()})

    def _start(self, command: list[str]) -> int:
        """Run the fit to its end; does not return where the job is to go on later."""
        process = _Process(command, self.log)
        if process.code == signals.AGAIN and process.came:
            if _still_running():
                signal.raise_signal(signal.SIGUSR1)  # submitit's: requeue, if not too often
            raise SystemExit(signals.AGAIN)  # Slurm itself cancels or requeues the job
        return process.code


class _Process:
    """A fit as a process, which is sent the signals of this one, run to its end.

    Attributes:
        came: The last signal that was sent on.
        code: The exit status.
    """

    def __init__(self, command: list[str], log: Path | None):
        self.came: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        before = {number: signal.signal(number, self._send) for number in FORWARDED}
        mode = "ab" if os.environ.get("SLURM_RESTART_COUNT") else "wb"
        out = log.open(mode) if log else None
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT if out else None,
            )
            if self.came is not None:
                self.process.send_signal(self.came)
            self.code = self.process.wait()
        finally:
            if out:
                out.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _send(self, number: int, frame: FrameType | None) -> None:
        self.came = number
        if self.process is not None:
            self.process.send_signal(number)


def job_id() -> str:
    """The job as squeue lists it, `12_3` in an array."""
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def _still_running() -> bool:
    """Whether Slurm neither cancels nor requeues this job itself."""
    command = ["squeue", "-h", "-j", os.environ["SLURM_JOB_ID"], "-o", "%T"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() == "RUNNING"
