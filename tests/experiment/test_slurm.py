"""Sweeps on Slurm, whose commands are played here; tests/clusters runs them on a real one."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY

from llava_lab.cli import sweep as sweeps
from llava_lab.core import signals
from llava_lab.experiment import slurm, slurm_job, slurm_options
from llava_lab.experiment.shared import shared_stages
from llava_lab.experiment.slurm_options import minutes, resources
from llava_lab.experiment.sweep import Sweep

pytest.importorskip("submitit")

EXPERIMENT = REPOSITORY / "experiments" / "llava15.yaml"
AUTO = {"devices": "auto", "num_nodes": 1, "accelerator": "auto"}
# sbatch keeps its script and counts; squeue shows what the file `queue` holds.
PLAYED = {
    "sbatch": 'n=$(ls {0}/*.sent 2>/dev/null | wc -l); cp "$1" {0}/$((n + 70)).sent; '
    'echo "Submitted batch job $((n + 70))"',
    "squeue": "cat {0}/queue",
    "scontrol": "echo JobState=OUT_OF_MEMORY Reason=None",
    "srun": "exit 1",
}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with what was submitted, as N.sent, and with `queue`, what squeue prints."""
    folder = tmp_path / "slurm"
    (folder / "bin").mkdir(parents=True)
    (folder / "queue").touch()
    for name, text in PLAYED.items():
        program = folder / "bin" / name
        program.write_text(f"#!/bin/sh\n{text.format(folder)}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "GONE_SECONDS", 0.0)
    return folder


def sweep_file(folder: Path, axes: str) -> Path:
    path = folder / "some.yaml"
    path.write_text(f"{{experiment: {EXPERIMENT}, seeds: [0], axes: {axes}}}")
    return path


def sbatch(script: Path) -> dict[str, str]:
    """Options of a script that was submitted, and its command."""
    text = script.read_text()
    found = dict(re.findall(r"^#SBATCH --([\w-]+)=(.*)$", text, re.MULTILINE))
    return found | {"command": text.strip().splitlines()[-1]}


def test_a_shared_stage_is_one_job_and_the_points_that_need_it_are_one_array_behind_it(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = sweep_file(tmp_path, "{stages.instruct.lr.llm: [1.0e-5, 2.0e-5]}")
    monkeypatch.setenv("PYTHONPATH", "/some/code")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    command = [str(path), f"--runs={tmp_path / 'runs'}", "--launcher=slurm", "--jobs=1"]
    command += ["--slurm.time=4:00:00", "--slurm.partition=gpu", "--trainer.accelerator=gpu"]
    command += ["--slurm.cpus-per-task=4"]
    with pytest.raises(SystemExit):
        sweeps.main(command)
    said = capsys.readouterr()
    stage, points = sbatch(cluster / "70.sent"), sbatch(cluster / "71.sent")
    assert "array" not in stage and "dependency" not in stage
    assert points["array"] == "0-1%1" and points["dependency"] == "afterok:70"
    assert points["kill-on-invalid-dep"] == "yes"
    for each in (stage, points):
        assert (each["time"], each["partition"], each["job-name"]) == (
            "240",
            "gpu",
            "llava_lab-some",
        )
        assert (each["nodes"], each["ntasks-per-node"], each["gpus-per-node"]) == ("1", "1", "1")
        assert each["signal"] == "USR1@90" and "PYTHONPATH=/some/code" in each["command"]
        assert each["cpus-per-task"] == "4" and "srun" in each["command"]
        assert "--cpus-per-task=4" in each["command"], "not every srun takes it from sbatch"
    assert "stage align of" in said.out and "job 70" in said.out
    assert "seed=0: job 71_1 behind job 70" in said.out
    assert "[2/2]" in said.out and "ended without results (OUT_OF_MEMORY)" in said.out
    assert "2 of 2 points failed; repeat" in said.err
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if b"hf_secret" in file.read_bytes()]


@pytest.mark.parametrize(
    ("jobs", "limits", "behind"),
    [(4, ["2", "1", "1"], ["", "", ""]), (2, ["1", "1", "1"], ["", "", ",afterany:73"])],
)
def test_arrays_share_the_number_of_points_at_once(
    cluster: Path, tmp_path: Path, jobs: int, limits: list[str], behind: list[str]
) -> None:
    """Each array had the whole number: 4 seeds behind a shared stage each ran 4 times as many."""
    path = tmp_path / "some.yaml"
    axes = "{stages.instruct.lr.llm: [1.0e-5, 2.0e-5]}"
    path.write_text(f"{{experiment: {EXPERIMENT}, seeds: [0, 1, 2], axes: {axes}}}")
    with pytest.raises(SystemExit):
        command = [str(path), f"--runs={tmp_path / 'runs'}", "--launcher=slurm", f"--jobs={jobs}"]
        sweeps.main(command)
    sent = [sbatch(cluster / f"{number}.sent") for number in range(70, 76)]
    assert ["array" in each for each in sent] == [False] * 3 + [True] * 3
    assert [each["array"].partition("%")[2] for each in sent[3:]] == limits
    stages = [f"afterok:{number}" for number in (70, 71, 72)]
    wanted = [stage + more for stage, more in zip(stages, behind, strict=True)]
    assert [each["dependency"] for each in sent[3:]] == wanted


def test_the_same_command_watches_the_jobs_that_there_are(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = sweep_file(tmp_path, "{model.connector.depth: [1, 2]}")
    command = [str(path), f"--runs={tmp_path / 'runs'}", "--launcher=slurm"]
    with pytest.raises(SystemExit):
        sweeps.main(command)
    rows = ("70_0|llava_lab-some|RUNNING|node7|None", "70_1|llava_lab-other|RUNNING|node8|None")
    (cluster / "queue").write_text("\n".join(rows))

    def interrupt(seconds: float) -> None:
        raise signals.interruption()

    monkeypatch.setattr(slurm, "time", SimpleNamespace(sleep=interrupt, monotonic=time.monotonic))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        sweeps.main(command)
    said = capsys.readouterr()
    assert stop.value.code == 75 and "scancel 70 71" in said.out
    assert "depth=1 seed=0: job 70_0, running on node7, log" in said.out
    assert "depth=2 seed=0: job 71, log" in said.out, "70_1 is a job of somebody else's by now"
    assert {file.name for file in cluster.glob("*.sent")} == {"70.sent", "71.sent"}

    (cluster / "bin" / "squeue").write_text("#!/bin/sh\necho no contact >&2; exit 1\n")
    with pytest.raises(SystemExit, match="squeue fails: no contact"):
        sweeps.main(command)
    assert len(list(cluster.glob("*.sent"))) == 2


def test_points_of_other_devices_are_an_array_of_their_own(cluster: Path, tmp_path: Path) -> None:
    axes = "{size: {small: {trainer.devices: 1}, big: {trainer.devices: 2, trainer.num_nodes: 2}}}"
    path = sweep_file(tmp_path, axes)
    with pytest.raises(SystemExit):
        sweeps.main([str(path), f"--runs={tmp_path / 'runs'}", "--launcher=slurm"])
    found = [sbatch(cluster / f"{number}.sent") for number in (70, 71)]
    assert [(each["nodes"], each["ntasks-per-node"]) for each in found] == [("1", "1"), ("2", "2")]


def test_stages_are_shared_as_far_as_their_options_are_the_same() -> None:
    def config(*values: int) -> dict:
        stages = {name: {"lr": value} for name, value in zip("abc", values, strict=True)}
        return {"model": {}, "seed_everything": 0, "trainer": {}, "stages": stages}

    found = shared_stages([config(1, 1, 1), config(1, 1, 2), config(1, 2, 1), config(2, 1, 1)])
    names = [[stage.name for stage in stages] for stages in found]
    assert names == [["a", "b"], ["a", "b"], ["a"], []]
    assert found[0] == found[1] and found[0][0] == found[2][0]
    ((first,), (second,)) = shared_stages([config(1, 1, 1), config(1, 1, 1)])
    assert first == second and first.name == "c"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        *(("90", 90), ("1:30:00", 90), ("0-1:30", 90), ("89:30", 90), ("0:00:01", 1)),
        *(("1-12:00:00", 2160), ("2-0", 2880), ("0", None), ("1-", None), ("x", None)),
    ],
)
def test_a_time_limit_is_read_as_sbatch_reads_it(text: str, found: int | None) -> None:
    if found:
        assert minutes(text) == found
    else:
        with pytest.raises(ValueError, match=re.escape(f"slurm.time is '{text}'")):
            minutes(text)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--slurm.partion=gpu"], "slurm.partion: submitit has no option .* mean 'partition'"),
        (["--slurm.dependency=singleton"], "slurm.dependency is set by the sweep: points wait"),
        (["--slurm.nodes=2"], "slurm.nodes is set by the sweep: say trainer.num_nodes"),
        (["--slurm.gpus-per-node=4", "--trainer.devices=2"], "gpus_per_node is 4, and .* is 2"),
        (["--slurm.gpus-per-node=all"], "gpus_per_node is 'all', not a number such as 4"),
        (["--slurm.signal_delay_s=soon"], "slurm.signal_delay_s is 'soon', not a whole number"),
        (["--slurm.additional_parameters=x"], "additional_parameters is 'x', not names with"),
        (["--launcher=pbs"], "--launcher pbs: it is local, slurm, or a YAML file"),
        (["--launcher=none.yaml"], "none.yaml: there is no such options file"),
        (["--launcher=local", "--slurm.time=3"], "--slurm.time=3: --launcher slurm is missing"),
    ],
)
def test_options_of_slurm_are_refused_by_name(
    given: list[str], message: str, cluster: Path, tmp_path: Path
) -> None:
    path = sweep_file(tmp_path, "{model.connector.depth: [1]}")
    more = ["--trainer.accelerator=gpu", *given]
    with pytest.raises(SystemExit, match=message):
        sweeps.main([str(path), f"--runs={tmp_path / 'runs'}", "--launcher=slurm", *more])
    assert not list(cluster.glob("*.sent"))


def test_a_launchers_file_says_times_as_sbatch_does_and_the_command_line_wins(
    cluster: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("time: 4:00:00\ngpus-per-node: a100:2\nadditional_parameters: {reservation: r}")
    found = slurm_options.read_options(
        str(file), ["partition=long", "setup=[a b, c]", "account=0123"]
    )
    assert found["account"] == "0123"
    assert (found["time"], found["partition"], found["setup"]) == (240, "long", ["a b", "c"])
    assert found["additional_parameters"] == {"reservation": "r"}
    assert resources(AUTO, found) == {"nodes": 1, "ntasks_per_node": 2}
    with pytest.raises(ValueError, match="devices is '0,1': say how many a job of Slurm is"):
        resources({**AUTO, "devices": "0,1"}, {})
    shipped = slurm_options.read_options(str(REPOSITORY / "configs/launcher/slurm.yaml"), [])
    assert (shipped["time"], shipped["signal_delay_s"]) == (240, 120)


def test_what_slurm_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sweep_file(tmp_path, "{model.connector.depth: [1]}")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="there is no sbatch here; start it where Slurm is"):
        sweeps.main([str(path), "--launcher=slurm"])


@pytest.fixture
def fit(
    cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], slurm_job.Fit]:
    """The fit of a stage that runs a shell's code in this process, as a job would."""
    path = sweep_file(tmp_path, "{model.connector.depth: [1]}")
    monkeypatch.setenv("SLURM_JOB_ID", "70")
    for name in ("SLURM_PROCID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)

    def make(code: str) -> slurm_job.Fit:
        monkeypatch.setattr(slurm_job, "fit_command", lambda *_: ["sh", "-c", code])
        sweep = Sweep.read(path)
        return slurm_job.Fit(
            sweep, tmp_path, (), sweep.points()[0], tmp_path / "record.json", "align"
        )

    return make


SAVES = "trap 'echo saved; exit 75' USR1 TERM; kill -{} $PPID; while :; do sleep 0.05; done"


@pytest.mark.parametrize(
    ("sent", "state", "requeued"),
    [("USR1", "RUNNING", True), ("TERM", "RUNNING", True), ("TERM", "COMPLETING", False)],
)
def test_a_fit_that_a_signal_ends_saves_and_is_requeued_unless_slurm_ends_the_job(
    sent: str, state: str, requeued: bool, fit: Callable[[str], slurm_job.Fit], cluster: Path
) -> None:
    (cluster / "queue").write_text(f"{state}\n")
    asked: list[int] = []

    def submitits(number: int, frame: object) -> None:
        asked.append(number)
        raise SystemExit(-1)

    before = signal.signal(signal.SIGUSR1, submitits)
    try:
        with pytest.raises(SystemExit):
            (job := fit(SAVES.format(sent)))()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert asked == ([signal.SIGUSR1] if requeued else [])
    assert job.log.read_text() == "saved\n" and not job.record.exists()
    assert job.checkpoint().function is job


def test_a_fit_that_fails_or_was_requeued_too_often_is_recorded_as_failed(
    fit: Callable[[str], slurm_job.Fit], cluster: Path
) -> None:
    job = fit("echo much; echo 'error: depth is 0'; exit 2")
    with pytest.raises(SystemExit):
        job()
    record = json.loads(job.record.read_text())
    assert (record["exit"], record["error"], record["job"]) == (2, ["error: depth is 0"], "70")

    (cluster / "queue").write_text("RUNNING\n")

    def refuse(number: int, frame: object) -> None:
        raise RuntimeError("timed-out too many times")

    before = signal.signal(signal.SIGUSR1, refuse)
    try:
        with pytest.raises(RuntimeError):
            (job := fit(SAVES.format("USR1")))()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert json.loads(job.record.read_text())["error"] == ["error: timed-out too many times"]


def test_a_point_whose_files_have_changed_since_is_not_fitted(
    fit: Callable[[str], slurm_job.Fit], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = fit("exit 0")
    object.__setattr__(job, "stage", None)
    with pytest.raises(ValueError, match="files of the experiment have changed since"):
        job()
    assert "have changed" in json.loads(job.record.read_text())["error"][0]


def test_other_tasks_of_a_job_run_the_same_fit_and_leave_the_record_to_the_first(
    fit: Callable[[str], slurm_job.Fit], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    for code, status in ((0, 0), (75, 0), (2, 2)):
        with pytest.raises(SystemExit) as end:
            (job := fit(f"exit {code}"))()
        assert end.value.code == status and not job.record.exists()
