"""On a GPU a stage goes on bit for bit where `trainer.deterministic` makes kernels add in order."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from test_waiting import CASES, STEPS, stage_of, trainer_of

from llava_lab.train.checkpoint import StageCheckpoint

NO_GPU = not torch.cuda.is_available()
GPU = {"accelerator": "gpu", "devices": 1, "deterministic": True}


@pytest.fixture(autouse=True)
def as_they_come() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


class Saved(Callback):
    """Saves after the second step."""

    def __init__(self, checkpoint: StageCheckpoint):
        self.checkpoint = checkpoint

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 2 and self.checkpoint.newest() is None:
            self.checkpoint.save(trainer)


def fitted(case: str, precision: str, folder: Path, newest: Path | None = None) -> Any:
    """Weights after a stage's last step, and its checkpoint after the second."""
    model, stage = stage_of(case)
    checkpoint = StageCheckpoint(folder, "f" * 64, stage, 1e9)
    callbacks = [stage, checkpoint, Saved(checkpoint)]
    trainer = trainer_of(stage, folder, callbacks, **GPU, precision=precision)
    model.strict_loading = False
    trainer.fit(model, datamodule=stage.data, ckpt_path=newest, weights_only=True)
    assert trainer.global_step == STEPS
    return {name: each.cpu() for name, each in model.state_dict().items()}, checkpoint.newest()


@pytest.mark.skipif(NO_GPU, reason="kernels of a GPU add in an order of their own")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-master"])
@pytest.mark.parametrize("case", CASES)
def test_a_stage_on_a_gpu_goes_on_bit_for_bit(case: str, precision: str, tmp_path: Path) -> None:
    whole, newest = fitted(case, precision, tmp_path)
    assert newest is not None
    again, _ = fitted(case, precision, tmp_path, newest)
    assert again.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(again[name], tensor), name
