"""Ranks: the processes of a job are as many as its devices."""

import pytest

from llava_lab.core import ranks


def test_a_job_of_slurm_with_other_tasks_than_devices_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lightning would train on one device, and leave the others idle."""
    for name in ("SLURM_NTASKS", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    two = {"devices": 2, "num_nodes": 2}
    ranks.check_tasks(two)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    ranks.check_tasks(two)
    ranks.check_tasks({**two, "devices": "auto"})
    monkeypatch.setenv("SLURM_NTASKS", "1")
    with pytest.raises(ValueError, match=r"has 1 task.*devices=2 on .*nodes=2 .*per-node=2"):
        ranks.check_tasks(two)
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    ranks.check_tasks(two)
