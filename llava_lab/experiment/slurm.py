"""Slurm: the points of a sweep as jobs of a cluster; submitted once, watched, and found again.

A stage that several points share is a job of its own, which they wait for. Which job a point has
stands beside its record, so that the same command, here or on another node, watches the jobs that
there are and submits what is missing.
"""

import os
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from llava_lab.core import signals
from llava_lab.core.lock import lock
from llava_lab.core.records import read_object, read_record, write_record
from llava_lab.experiment.experiment import Experiment
from llava_lab.experiment.shared import shared_stages
from llava_lab.experiment.slurm_job import Fit
from llava_lab.experiment.slurm_options import REQUEUES, resources
from llava_lab.experiment.sweep import Layers, Sweep, recorded_results
from llava_lab.experiment.sweeping import check_failed, ending

FIRST_SECONDS, MOST_SECONDS = 1.0, 30.0  # between two looks at the jobs
GONE_SECONDS = 15.0  # until what a job has written on another node is seen here
AGAIN = "Delete it to fit the point again."
SQUEUE = ("squeue", "--me", "-h", "-r", "-o", "%i|%j|%T|%N|%r")


class State(NamedTuple):
    """What squeue says of a job that has not ended.

    Attributes:
        state: Such as RUNNING.
        nodes: Where it runs.
        reason: What it waits for.
    """

    state: str
    nodes: str
    reason: str

    def __str__(self) -> str:
        where = f" on {self.nodes}" if self.nodes else f" ({self.reason})"
        return f"{self.state.lower()}{where}"


class Before(NamedTuple):
    """The job that trains the last of the stages that a fit shares with others.

    Attributes:
        behind: The job, or nothing.
        stage: Its record, or nothing.
    """

    behind: str = ""
    stage: str = ""


class SlurmSweep:
    """Fits the points of a sweep in jobs of Slurm.

    Args:
        sweep: The sweep.
        runs: Folder of all runs, which all nodes see.
        options: Options of the jobs, checked.
        jobs: Points at once, or None for as many as Slurm starts; jobs of stages that points share
            do not count.
        more: Files and overrides for all points.
    """

    def __init__(
        self,
        sweep: Sweep,
        runs: Path,
        options: Mapping[str, Any],
        jobs: int | None = None,
        more: Layers = (),
    ):
        self.sweep, self.runs, self.more = sweep, runs, more
        self.options, self.jobs = options, jobs
        self.folder = sweep.folder(runs)
        self.name = f"llava_lab-{sweep.name}"

    def run(self) -> None:
        """Submit the points that have neither results nor a job, and watch until all have ended.

        Raises:
            ValueError: At the end, if points failed.
        """
        points = self.sweep.points()
        fits = [
            Fit(self.sweep, self.runs, self.more, p, self.sweep.record(self.runs, p, self.more))
            for p in points
        ]
        missing = [fit for fit in fits if not recorded_results(fit.record)]
        done = len(points) - len(missing)
        print(f"sweep {self.sweep.name}: {len(points)} points, {len(missing)} to run", flush=True)
        if done:
            print(f"{done} have results; --dry-run tells whether data has changed since")
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock(self.folder / "submission.lock", f"submission of sweep {self.sweep.name}"):
            waiting = self._attached(missing)
            failed = self._submit([fit for fit in missing if fit not in waiting], waiting)
        numbers = sorted({job.partition("_")[0] for job in waiting.values()}, key=int)
        try:
            failed += self._watch(waiting, done + failed, len(points))
        except signals.Interrupted:
            print(
                "the jobs go on without this command, and the same command watches them again; "
                f"this ends them: scancel {' '.join(numbers)}",
                flush=True,
            )
            raise
        check_failed(failed, len(points))

    def _attached(self, fits: Sequence[Fit]) -> dict[Fit, str]:
        """Fits whose jobs have not ended, with these."""
        found, queue = {}, self._queue()
        for fit in fits:
            if (job := _known(fit)["job"]) in queue:
                found[fit] = job
                print(f"{fit}: job {job}, {queue[job]}, log {fit.log}", flush=True)
        return found

    def _queue(self) -> dict[str, State]:
        """The jobs of this sweep that have not ended.

        Raises:
            ValueError: If Slurm does not answer.
        """
        done = subprocess.run(SQUEUE, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"squeue fails: {done.stderr.strip()}")
        rows = [line.split("|", 4) for line in done.stdout.splitlines()]
        return {row[0]: State(*row[2:]) for row in rows if row[1] == self.name}

    def _submit(self, fits: Sequence[Fit], submitted: dict[Fit, str]) -> int:
        """Submit fits, first the stages that several share, and put their jobs into `submitted`.

        Returns:
            How many cannot be submitted, as their options are wrong.
        """
        configs = {fit: config for fit in fits if (config := self._config(fit))}
        needs = [resources(config["trainer"], self.options) for config in configs.values()]
        queue, jobs = self._queue(), {}
        groups: dict[tuple[Any, ...], list[Fit]] = defaultdict(list)
        shared = shared_stages(list(configs.values()))
        for fit, stages, need in zip(configs, shared, needs, strict=True):
            before = Before()
            for stage in stages:
                if stage.key not in jobs:
                    record = self.folder / f"stage-{stage.key}.json"
                    trains = replace(fit, record=record, stage=stage.name)
                    jobs[stage.key] = self._stage_job(trains, queue, need, before)
                before = jobs[stage.key]
            groups[(before, *need.items())].append(fit)
        # Arrays share --jobs; further ones than it has points wait for those before.
        turns = min(len(groups), self.jobs or len(groups))
        ends: list[dict[str, str]] = [{} for _ in range(turns)]
        for number, ((before, *need), together) in enumerate(groups.items()):
            turn = number % turns
            share = (self.jobs + turns - 1 - turn) // turns if self.jobs else 256  # submitit's
            limits = {"array_parallelism": share, **ends[turn]}
            sent = self._send(together, {**dict(need), **limits}, before)
            ends[turn] = {"dependency": f"afterany:{sent[0].partition('_')[0]}"}
            submitted |= zip(together, sent, strict=True)
        return len(fits) - len(configs)

    def _config(self, fit: Fit) -> dict[str, Any] | None:
        """Options of a point; says so where they are wrong."""
        try:
            return Experiment.read_layers(self.sweep.layers(fit.point, self.more)).config
        except (OSError, ValueError) as error:
            print(f"{fit}: {error}", flush=True)
            return None

    def _stage_job(
        self, fit: Fit, queue: Mapping[str, State], need: dict[str, Any], before: Before
    ) -> Before:
        """The job of a shared stage, which may be there already, or have ended well."""
        job = _known(fit)["job"]
        if job not in queue:
            if _outcome(fit.record, job).get("exit") == 0:
                return before
            (job,) = self._send([fit], need, before)
        return Before(job, str(fit.record))

    def _send(self, fits: Sequence[Fit], need: Mapping[str, Any], before: Before) -> list[str]:
        """Submit fits as one array, behind another job; their jobs."""
        import submitit

        given = {**self.options, **need, "job_name": self.name}
        requeues = int(given.pop(REQUEUES))
        # Not submitit's own SIGUSR2, which ranks send each other.
        more = {"signal": f"USR1@{given['signal_delay_s']}"}
        if before.behind:
            waits = (f"afterok:{before.behind}", given.get("dependency"))
            given["dependency"] = ",".join(filter(None, waits))
            more["kill-on-invalid-dep"] = "yes"
        given["additional_parameters"] = {**self.options.get("additional_parameters", {}), **more}
        if cpus := given.get("cpus_per_task"):  # which srun takes from sbatch in some versions only
            given["srun_args"] = [*given.get("srun_args", []), f"--cpus-per-task={cpus}"]
        path = os.environ.get("PYTHONPATH", "")
        kept = ["SUBMITIT_PREEMPT_SIGNAL=USR1", *([f"PYTHONPATH={path}"] if path else [])]
        python = shlex.join(["env", *kept, sys.executable])
        try:
            executor = submitit.SlurmExecutor(
                self.folder / "slurm", max_num_timeout=requeues, python=python
            )
            executor.update_parameters(**given)
            with executor.batch():
                sent = [executor.submit(fit) for fit in fits]
        except (submitit.core.utils.UncompletedJobError, RuntimeError) as error:
            raise ValueError(f"sbatch refuses the job: {' '.join(str(error).split())}") from error
        for fit, job in zip(fits, sent, strict=True):
            write_record(fit.record.with_suffix(".job"), {"job": job.job_id, **before._asdict()})
            behind = f" behind job {before.behind}" if before.behind else ""
            print(f"{fit}: job {job.job_id}{behind}, log {fit.log}", flush=True)
        return [job.job_id for job in sent]

    def _watch(self, waiting: Mapping[Fit, str], number: int, total: int) -> int:
        """Say what becomes of jobs until all have ended; how many points failed."""
        left, failed, seconds = dict(waiting), 0, FIRST_SECONDS
        states: dict[str, str] = {}
        gone: dict[Fit, float] = {}
        while left:
            try:
                queue = self._queue()
            except ValueError as error:  # Slurm's controller may be restarted meanwhile
                print(f"{error}; trying again", flush=True)
                queue = dict.fromkeys(left.values(), State("UNKNOWN", "", "no answer"))
            for fit, job in list(left.items()):
                if job in queue:
                    now = f"{queue[job]}"
                    if states.setdefault(job, now) != now:
                        print(f"{fit}: job {job} is {now}", flush=True)
                        states[job], seconds = now, FIRST_SECONDS
                    continue
                since = gone.setdefault(fit, time.monotonic())
                found = _outcome(fit.record, job)
                if not found and time.monotonic() - since < GONE_SECONDS:
                    continue
                del left[fit]
                number, seconds = number + 1, FIRST_SECONDS
                failed += "results" not in found
                print(f"[{number}/{total}] {fit}: {self._end(fit, job, found)}", flush=True)
            time.sleep(seconds if left else 0)
            seconds = min(MOST_SECONDS, 1.5 * seconds)
        return failed

    def _end(self, fit: Fit, job: str, found: Mapping[str, Any]) -> str:
        """What came of a point, in words."""
        if "results" in found:
            return f"{found['results']}"
        if found:
            said = " ".join(found.get("error", []))
            return f"{ending(found['exit'])}, see {fit.log}: {said}"
        before = _known(fit)
        stage = Path(before["stage"])
        if before["stage"] and (said := _outcome(stage, before["behind"]).get("error")):
            return f"not begun, as its stage failed, see {stage.with_suffix('.log')}: {said[-1]}"
        asked = subprocess.run(
            ["scontrol", "show", "job", job], capture_output=True, text=True, check=False
        )
        known = dict(each.split("=", 1) for each in asked.stdout.split() if "=" in each)
        state = known.get("JobState", "and Slurm has forgotten it")
        return f"job {job} has ended without results ({state}), see {fit.log}"


def _known(fit: Fit) -> dict[str, Any]:
    """What is known of a fit's submission."""
    path = fit.record.with_suffix(".job")
    if not path.is_file():
        return {"job": "", "behind": "", "stage": ""}
    way_out = "Delete it, if squeue shows no job of the point."
    return read_record(path, dict.fromkeys(("job", "behind", "stage"), str), way_out)


def _outcome(record: Path, job: str) -> dict[str, Any]:
    """What a job has recorded, or nothing."""
    os.listdir(record.parent)  # asks a network file system anew
    if not record.is_file():
        return {}
    found = read_object(record, AGAIN)
    return found if found.get("job") == job else {}
