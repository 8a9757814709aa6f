"""Verbs take the devices, folders and files that are meant, or say that they are not there."""

import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

from llava_lab.__main__ import main
from llava_lab.report.budget import devices_of

PAPER = ("-c", str(REPOSITORY / "configs" / "scale" / "paper.yaml"))
LARGE = ("-c", str(REPOSITORY / "experiments" / "llava_next_qwen15_110b.yaml"), *PAPER)


def fits(capsys: pytest.CaptureFixture, *options: str) -> list[str]:
    """What fits each stage of the 110B, by its plan."""
    main(["plan", *LARGE, *options, "--format=md"])
    return re.findall(r"\| fits \d+ GiB +\| (\S+) +\|", capsys.readouterr().out)


def test_a_plan_is_of_the_devices_that_the_trainer_takes(capsys: pytest.CaptureFixture) -> None:
    assert fits(capsys) == ["fsdp2_large", "fsdp2_large"]  # on its eight nodes
    assert fits(capsys, "--trainer.num_nodes=1")[1] == "none"
    assert fits(capsys, "--devices=8", "--nodes=1")[1] == "none"


@pytest.mark.parametrize(
    ("devices", "nodes", "batch", "expected"),
    [
        (4, 3, 2, (12, 3)),
        ([0, 2], 1, 32, (2, 1)),
        ("auto", 1, 32, (8, 1)),
        ("auto", 1, 4, (4, 1)),
        (-1, 2, 32, (16, 2)),
        (None, None, 32, (8, 1)),
    ],
)
def test_devices_are_counted_on_all_nodes(
    devices: object, nodes: object, batch: int, expected: tuple[int, int]
) -> None:
    stages = {"a": {"data": {"batch_size": 64}}, "b": {"data": {"batch_size": batch}}, "c": None}
    trainer = {"devices": devices, "num_nodes": nodes}
    assert devices_of({"trainer": trainer, "stages": stages}) == expected


def test_results_that_are_not_there_are_refused_or_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="--results resutls: there is no such folder"):
        main(["report", "--results", "resutls"])
    capsys.readouterr()
    assert not (tmp_path / "report.html").exists()
    main(["report", "--format=json"])
    line = "there is no folder results here, so that no finding has runs; --results names another"
    assert f"llava_lab: {line}\n" in capsys.readouterr().err
    assert (tmp_path / "report.html").exists()


def test_points_of_shipped_sweeps_are_compared_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = "sweeps/grid_size.yaml"
    main(["diff", f"{sweep}:2x2", f"{sweep}:3x3", "--format=json"])
    found = capsys.readouterr()
    assert "stages.instruct.data.views.grids" in found.out
    assert f"{sweep} is not here; taking" in found.err
