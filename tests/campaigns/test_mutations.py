"""Changed and damaged inputs of every kind are read right, or refused with one message."""

import os
from pathlib import Path

import pytest
from mutations import COMMAND, KINDS, OUTCOMES, campaign, limited, rows
from report import table

from llava_lab.convert.released import import_checkpoint

QUICK = [kind for kind in KINDS if "checkpoints" not in kind.name]


def test_a_few_mutations_of_every_kind_do_no_harm() -> None:
    """Of checkpoints, which take longer, none; other seeds are for the whole form."""
    counts = campaign(share=0.06, kinds=QUICK)
    assert [fault for found in counts.values() for fault in found.faults] == []
    assert sum(sum(found.outcomes.values()) for found in counts.values()) >= 120


def test_a_campaign_is_the_same_for_a_seed() -> None:
    kinds = [kind for kind in KINDS if kind.name == "conversations"]
    first, again, other = (campaign(0.1, seed, kinds)["conversations"] for seed in (1, 1, 2))
    assert first.outcomes == again.outcomes and len(first.outcomes) == 2
    assert other.outcomes.keys() <= set(OUTCOMES)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_all_mutations_do_no_harm() -> None:
    counts = campaign()
    for fault in [fault for found in counts.values() for fault in found.faults]:
        print(fault)
    print(f"{COMMAND}\n{table(rows(counts))}")
    assert sum(sum(found.outcomes.values()) for found in counts.values()) >= 2000
    assert not any(found.faults for found in counts.values())


def test_a_pipe_in_place_of_a_checkpoints_file_is_not_waited_for(tmp_path: Path) -> None:
    """What the campaign found: `config.json` as a pipe was read for ever."""
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model" / "config.json")
    with (
        limited(20),
        pytest.raises(ValueError, match=r"config\.json: a pipe, a device"),
    ):
        import_checkpoint(str(tmp_path / "model"), tmp_path / "out", "v1")
