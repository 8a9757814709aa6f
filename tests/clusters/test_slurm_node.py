"""A real Slurm of one node: sweeps whose jobs are requeued, fail, and are left alone."""

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pages
import pause
import pytest
import slurm
from conftest import REPOSITORY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing() or "there is one"),
]
EXPERIMENT = REPOSITORY / "experiments" / "llava15.yaml"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a running Slurm."""
    with slurm.running(tmp_path_factory.mktemp("slurm") / "node") as configuration:
        yield configuration


def environment(configuration: Path, **more: str) -> dict[str, str]:
    return pages.environment(SLURM_CONF=str(configuration), **more)


def test_a_sweep_goes_on_after_requeues_trains_a_shared_stage_once_and_shows_what_failed(
    cluster: Path, small_world: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "some.yaml"
    rate = "stages.instruct.lr.llm"
    points = f"requeued: {{{rate}: 1.0e-5}}, warned: {{{rate}: 2.0e-5}}"
    text = "{experiment: EXPERIMENT, axes: {point: {POINTS}}}".replace(
        "EXPERIMENT", str(EXPERIMENT)
    )
    sweep.write_text(text.replace("POINTS", points))
    more = [*pages.options(small_world), "--trainer.accelerator=cpu"]
    command = [sys.executable, "-m", "llava_lab", "sweep", str(sweep), *more]
    local = [*command, f"--runs={tmp_path / 'local'}"]
    subprocess.run(local, check=True, env=environment(cluster), capture_output=True)
    sweep.write_text(text.replace("POINTS", f"{points}, bad: {{paths.instruct: /none.json}}"))
    runs = tmp_path / "runs"
    on_slurm = [*command, f"--runs={runs}", "--launcher=slurm", "--slurm.time=30"]

    def start(log: Path) -> subprocess.Popen:
        with log.open("w") as out:
            return subprocess.Popen(
                on_slurm,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment(cluster, **{pause.FOLDER: str(tmp_path)}),
            )

    first, log = start(tmp_path / "first.txt"), tmp_path / "first.txt"
    waits = [tmp_path / f"waits-{number}" for number in (0, 1)]
    slurm.wait(
        lambda: all(file.exists() for file in waits) or first.poll() is not None,
        "both points wait in the middle of their second stage",
    )
    assert first.poll() is None, log.read_text()
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 75
    said = log.read_text()
    (job,) = set(re.findall(r"seed=0: job (\d+)_\d behind", said))
    assert f"scancel {job}" in said and "the jobs go on without this command" in said
    listed = slurm.said(cluster, "squeue", "-h", "-r", "-o", "%i %T")
    assert f"{job}_0 RUNNING" in listed and f"{job}_1 RUNNING" in listed

    second = start(tmp_path / "second.txt")
    log = tmp_path / "second.txt"
    slurm.wait(lambda: f"job {job}_0, running on" in log.read_text(), "it watches the jobs")
    slurm.said(cluster, "scontrol", "requeue", f"{job}_0")
    slurm.said(cluster, "scancel", "--signal=USR1", f"{job}_1")
    assert second.wait(slurm.PATIENCE_SECONDS) == 2
    said = log.read_text()
    assert "1 of 3 points failed; repeat to try them again" in said
    assert "point=bad seed=0: failed with exit status 2" in said and "/none.json" in said
    assert said.count("results.json") == 2 and "sbatch" not in said

    logs = [file.read_text() for file in runs.glob("sweeps/some/*.log")]
    gone_on = [each for each in logs if "going on from step-00000005" in each]
    assert len(logs) == 4 and len(gone_on) == 2
    assert all("interrupted and saved at step 5" in each for each in gone_on)
    assert sum("stage align: training" in each for each in logs) == 1
    mine, theirs = pages.weights(runs), pages.weights(tmp_path / "local")
    assert len(mine) == 2 and mine == theirs, "bit for bit those of fits without Slurm"
    assert slurm.said(cluster, "squeue", "-h") == ""


def test_the_script_of_the_page_is_requeued_at_a_warning_and_goes_on(
    cluster: Path, small_world: Path, tmp_path: Path
) -> None:
    (srun,) = pages.commands("srun ")
    fit = srun.partition(" python ")[2]
    fit = f"python {fit} {shlex.join(pages.options(small_world))}"
    whole = f"{fit} --runs={tmp_path / 'whole'}"
    done = subprocess.run(
        shlex.split(whole), cwd=REPOSITORY, env=environment(cluster), capture_output=True
    )
    assert done.returncode == 0, done.stdout
    head, _, tail = pages.script().partition("\nsrun ")
    head = head.replace(
        "--nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8",
        "--nodes=1 --ntasks-per-node=2 --cpus-per-task=1",
    )
    assert "--ntasks-per-node=2" in head
    script, runs, log = tmp_path / "job.sh", tmp_path / "runs", tmp_path / "log.txt"
    script.write_text(f"{head}\nsrun {fit} --runs={runs}\n{tail.partition(chr(10))[2]}")
    sent = subprocess.run(
        ["sbatch", f"--output={log}", str(script)],
        cwd=REPOSITORY,
        env=environment(cluster, **{pause.FOLDER: str(tmp_path)}),
        capture_output=True,
        text=True,
        check=True,
    )
    (job,) = re.findall(r"job (\d+)", sent.stdout)
    slurm.wait((tmp_path / "waits-0").exists, "rank 0 waits in the middle of a stage")
    slurm.said(cluster, "scancel", "--signal=USR1", job)
    slurm.wait(lambda: not slurm.said(cluster, "squeue", "-h"), "the job has ended")
    said = log.read_text()
    assert "interrupted and saved at step 5" in said and "going on from step-00000005" in said, said
    mine = pages.weights(runs)
    assert len(mine) == 1 and mine == pages.weights(tmp_path / "whole"), "bit for bit"
