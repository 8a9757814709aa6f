"""A callback that stops a fit in the middle of a stage, once, until a signal comes."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from llava_lab.core import signals

FOLDER = "LLAVA_LAB_PAUSE"  # environment: where a file says that rank 0 waits, and has waited
STEP = 5
SECONDS = 120.0


class Pause(Callback):
    """Waits for a signal at the fifth step of the first stage that comes to it."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Wait, where the environment says so and nobody has waited yet."""
        if FOLDER not in os.environ or trainer.global_rank or trainer.global_step != STEP:
            return
        waits = Path(os.environ[FOLDER]) / f"waits-{os.environ.get('SLURM_ARRAY_TASK_ID', 0)}"
        if waits.exists():
            return
        waits.touch()
        limit = time.monotonic() + SECONDS
        while not signals.came() and time.monotonic() < limit:
            time.sleep(0.05)
