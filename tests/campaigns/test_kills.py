"""Killed anywhere and repeated, a run ends as one that was left alone."""

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).with_name("kills.py")


def run(*options: str) -> str:
    done = subprocess.run([sys.executable, str(CAMPAIGN), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_three_signals_in_three_parts_change_nothing() -> None:
    parts = ("features", "stage instruct", "evaluation")
    said = run("--rounds=1", "--sweeps=0", "--chains", "images", "--places", *parts)
    for part in parts:
        assert f"| {part} | 1 |" in said, "the part was not hit"


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_signals_at_all_moments_change_nothing() -> None:
    print(run())
