"""Checkpoints: the newest good one of the same fingerprint is gone on from, never another."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llava_lab.train.checkpoint import StageCheckpoint, WholeCheckpointIO


class StandIn:
    """A trainer at a step, whose checkpoints hold the step."""

    is_global_zero = True
    strategy = SimpleNamespace(barrier=lambda: None)

    def __init__(self) -> None:
        self.global_step = 0

    def save_checkpoint(self, path: Path) -> None:
        WholeCheckpointIO().save_checkpoint({"step": self.global_step}, path)


def saved(folder: Path, *steps: int) -> tuple[StageCheckpoint, list[Path]]:
    """A stage that saved at these steps, and what is there then."""
    checkpoint, trainer = StageCheckpoint(folder, "fingerprint", Any, 60.0), StandIn()
    for trainer.global_step in steps:
        checkpoint.save(trainer)  # pyrefly: ignore
    return checkpoint, sorted(folder.iterdir())


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_two_are_kept_and_the_newest_is_gone_on_from(tmp_path: Path) -> None:
    checkpoint, files = saved(tmp_path, 1, 2, 3, 4)
    assert [path.name[:13] for path in files] == ["step-00000003", "step-00000004"]
    assert checkpoint.newest() == files[1]
    assert torch.load(files[1], weights_only=True) == {"step": 4}
    digest = hashlib.sha256(files[1].read_bytes()).hexdigest()[:16]
    assert files[1].stem.endswith(f"-{digest}")


def test_a_damaged_newest_is_named_and_the_one_before_it_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkpoint, files = saved(tmp_path, 1, 2)
    flip(files[1])
    assert checkpoint.newest() == files[0]
    assert f"{files[1]}: damaged; going on from the one before it" in capsys.readouterr().out
    flip(files[0])
    with pytest.raises(ValueError, match=rf"{files[1]}: damaged .*Delete it.*begin the stage anew"):
        checkpoint.newest()


def test_after_going_on_from_the_one_before_the_damaged_one_goes(tmp_path: Path) -> None:
    checkpoint, files = saved(tmp_path, 1, 3)
    flip(files[1])
    trainer = StandIn()
    trainer.global_step = 2
    checkpoint.save(trainer)  # pyrefly: ignore
    assert [path.name[:13] for path in sorted(tmp_path.iterdir())] == [
        "step-00000001",
        "step-00000002",
    ]


def test_one_of_another_fingerprint_is_removed_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _, files = saved(tmp_path, 1)
    assert StageCheckpoint(tmp_path, "another", Any, 60.0).newest() is None
    assert f"{files[0]}: of other options or data, removed" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_finished_stage(tmp_path: Path) -> None:
    checkpoint, _ = saved(tmp_path, 1, 2)
    (tmp_path / "draft.ckpt").touch()
    checkpoint.clear()
    assert not list(tmp_path.iterdir())
