"""Damaged anywhere, a run's files are made again or named; none changes a number in silence."""

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).with_name("faults.py")


def run(*options: str) -> str:
    done = subprocess.run([sys.executable, str(CAMPAIGN), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_flipped_records_and_checkpoints_are_found_out() -> None:
    kinds = ("results.json", "NAME/step-N")
    said = run("--small", "--no-disks", "--each=1", "--ways", "flipped", "--kinds", *kinds)
    for kind in kinds:
        assert kind in said, "no such file was damaged"


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_every_kind_of_file_and_disk() -> None:
    print(run())
