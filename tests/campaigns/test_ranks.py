"""One process and two come to the same numbers, also where one was killed on the way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).with_name("ranks.py")


def test_a_run_that_was_killed_on_two_processes_goes_on_on_one_to_the_same_numbers() -> None:
    done = subprocess.run(
        [sys.executable, str(CAMPAIGN), "--short"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    (row,) = json.loads(done.stdout[done.stdout.index("[") : done.stdout.rindex("]") + 1])
    assert row["runs"] == 3 and row["numbers compared"] > 100


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_the_whole_campaign_of_ranks() -> None:
    subprocess.run([sys.executable, str(CAMPAIGN)], check=True)
