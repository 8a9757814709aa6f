"""One process and two come to the same numbers, also where one was killed on the way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).with_name("ranks.py")


@pytest.mark.slow
def test_a_run_killed_under_fsdp2_goes_on_under_ddp_to_the_numbers_of_one_process() -> None:
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
