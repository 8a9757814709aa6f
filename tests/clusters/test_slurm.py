"""A real Slurm of one node: sweeps whose jobs are requeued, fail, and are left alone."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm
from conftest import REPOSITORY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(slurm.missing()), reason=slurm.missing() or "there is one"),
]
EXPERIMENT = REPOSITORY / "experiments" / "llava15.yaml"
PATIENCE_SECONDS = 600.0  # of tiny fits on a busy machine


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The configuration of a running Slurm."""
    with slurm.running(tmp_path_factory.mktemp("slurm") / "node") as configuration:
        yield configuration


def environment(configuration: Path) -> dict[str, str]:
    path = f"{REPOSITORY}:{Path(__file__).parent}"
    return {**os.environ, "SLURM_CONF": str(configuration), "PYTHONPATH": path}


def options(world: Path, folder: Path) -> list[str]:
    """Twelve steps of four rows for either stage."""
    pause = json.dumps([{"class_path": "pause.Pause", "init_args": {"folder": str(folder)}}])
    given = {
        "tiny_world": "null",
        "tiny_videos": "null",
        "paths.root": world,
        "data.images_per_batch": 6,
        "data.max_new_tokens": 3,
        "trainer.accelerator": "cpu",
        "trainer.callbacks": pause,
    }
    for stage in ("align", "instruct"):
        given |= {f"stages.{stage}.data.max_steps": 12, f"stages.{stage}.data.batch_size": 4}
    return [f"--{key}={value}" for key, value in given.items()]


def weights(runs: Path) -> dict[str, bytes]:
    """Trained weights of the second stage, by its learning rate."""
    found = {}
    for file in runs.glob("llava15/*/stages/instruct/weights.safetensors"):
        text = (file.parents[2] / "config.yaml").read_text()
        found[re.findall(r"llm: (.*e-0?5)", text)[-1]] = file.read_bytes()
    return found


def test_a_sweep_goes_on_after_requeues_trains_a_shared_stage_once_and_shows_what_failed(
    cluster: Path, small_world: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "some.yaml"
    text = f"""
        experiment: {EXPERIMENT}
        axes:
          point:
            requeued: {{stages.instruct.lr.llm: 1.0e-5}}
            warned: {{stages.instruct.lr.llm: 2.0e-5}}
    """
    sweep.write_text(text)
    more = options(small_world, tmp_path)
    command = [sys.executable, "-m", "llava_lab", "sweep", str(sweep), *more]
    local = [*command, f"--runs={tmp_path / 'local'}"]
    subprocess.run(local, check=True, env=environment(cluster), capture_output=True)
    sweep.write_text(f"{text}    bad: {{paths.instruct: /none.json}}\n")
    runs = tmp_path / "runs"
    on_slurm = [*command, f"--runs={runs}", "--launcher=slurm", "--slurm.time=30"]

    def start(log: Path) -> subprocess.Popen:
        with log.open("w") as out:
            return subprocess.Popen(
                on_slurm, stdout=out, stderr=subprocess.STDOUT, env=environment(cluster)
            )

    first, log = start(tmp_path / "first.txt"), tmp_path / "first.txt"
    waits = [tmp_path / f"waits-{number}" for number in (0, 1)]
    slurm.wait(
        lambda: all(file.exists() for file in waits) or first.poll() is not None,
        "both points wait in the middle of their second stage",
        PATIENCE_SECONDS,
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
    assert second.wait(PATIENCE_SECONDS) == 2
    said = log.read_text()
    assert "1 of 3 points failed; repeat to try them again" in said
    assert "point=bad seed=0: failed with exit status 2" in said and "/none.json" in said
    assert said.count("results.json") == 2 and "sbatch" not in said

    logs = [file.read_text() for file in runs.glob("sweeps/some/*.log")]
    gone_on = [each for each in logs if "going on from step-00000005" in each]
    assert len(logs) == 4 and len(gone_on) == 2
    assert all("interrupted and saved at step 5" in each for each in gone_on)
    assert sum("stage align: training" in each for each in logs) == 1
    mine, theirs = weights(runs), weights(tmp_path / "local")
    assert len(mine) == 2 and mine == theirs, "bit for bit those of fits without Slurm"
    assert slurm.said(cluster, "squeue", "-h") == ""
