"""A callback that stops a job of Slurm in the middle of a stage, until Slurm sends it a signal."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from llava_lab.core import signals

STEP = 5
SECONDS = 120.0


class Pause(Callback):
    """Waits for a signal at a step of the second stage, the first time that a job runs.

    Args:
        folder: Where a file of the job's name says that it waits.
    """

    idle = ("folder",)

    def __init__(self, folder: str):
        self.folder = Path(folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Wait, where this is a job that has not been requeued."""
        job = os.environ.get("SLURM_ARRAY_TASK_ID")
        if job is None or "SLURM_RESTART_COUNT" in os.environ or trainer.global_step != STEP:
            return
        (self.folder / f"waits-{job}").touch()
        limit = time.monotonic() + SECONDS
        while not signals.came() and time.monotonic() < limit:
            time.sleep(0.05)
