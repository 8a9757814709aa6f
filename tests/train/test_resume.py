"""A run that is interrupted and repeated ends as one that never was, bit for bit.

Kills at random moments are the campaign `kills`.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY
from safetensors.torch import load_file

EXPERIMENT = REPOSITORY / "experiments" / "llava15.yaml"
STEPS = 16


def command(world: Path, folder: Path) -> list[str]:
    options = {
        "tiny_world": "null",
        "paths.root": world,
        "runs": folder / "runs",
        "checkpoint_seconds": 0,
        "stages.align.data.max_steps": STEPS,
        "stages.instruct.data.max_steps": STEPS,
        "stages.align.data.batch_size": 8,
        "stages.instruct.data.batch_size": 8,
        "stages.align.data.feature_store": folder / "features",
        "stages.instruct.data.feature_store": folder / "features",
        "stages.instruct.data.micro_batch_size": 4,
        "data.max_new_tokens": 2,
    }
    head = [sys.executable, "-m", "llava_lab", "fit", "-c", str(EXPERIMENT)]
    return [*head, *(f"--{key}={value}" for key, value in options.items())]


def outcome(folder: Path) -> tuple[dict, dict]:
    (run,) = (folder / "runs").glob("llava15/*")
    weights = {path.parent.name: load_file(path) for path in run.glob("stages/*/*.safetensors")}
    return weights, json.loads((run / "results.json").read_text())


def assert_equal(one: tuple[dict, dict], other: tuple[dict, dict]) -> None:
    assert one[0].keys() == other[0].keys() == {"align", "instruct"}
    for stage, weights in one[0].items():
        assert weights.keys() == other[0][stage].keys()
        for name, tensor in weights.items():
            assert tensor.equal(other[0][stage][name]), (stage, name)
    assert one[1]["benchmarks"] == other[1]["benchmarks"]
    for mine, theirs in zip(one[1]["stages"], other[1]["stages"], strict=True):
        for key in ("fingerprint", "steps", "samples", "tokens", "loss_first", "loss_last"):
            assert mine[key] == theirs[key], key


@pytest.fixture(scope="module")
def uninterrupted(small_world: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("whole")
    subprocess.run(command(small_world, folder), check=True, capture_output=True, timeout=200)
    return outcome(folder)


def test_ctrl_c_saves_and_says_how_to_go_on(
    uninterrupted, small_world: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        command(small_world, tmp_path), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "stage align: training" in line:
            break
    while not list(tmp_path.rglob("step-*.ckpt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.stdout.read()
    assert process.wait() == 75
    assert "interrupted and saved at step" in said
    assert "the same command goes on" in said
    done = subprocess.run(
        command(small_world, tmp_path), check=True, capture_output=True, text=True, timeout=200
    )
    assert "going on from step-" in done.stdout
    assert_equal(uninterrupted, outcome(tmp_path))
