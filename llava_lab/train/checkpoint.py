"""Checkpoints of a running stage: whole or not at all, checked when read, saved on Ctrl-C."""

import hashlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from llava_lab.train.stage import Stage


class StageCheckpoint(Callback):
    """Keeps the newest checkpoint of a stage; on SIGINT or SIGTERM saves one and stops.

    A checkpoint holds the trained parts, the optimizer, the loader's position and the random
    state. Frozen parts are those that the stage began with. Its name carries the step and the
    first digits of its SHA-256, so that a damaged file is found out.

    Args:
        folder: The stage's folder.
        recipe: The stage.
        seconds: Time between checkpoints.
    """

    def __init__(self, folder: Path, recipe: Stage, seconds: float):
        self.folder, self.recipe, self.seconds = folder, recipe, seconds
        self.interrupted = False
        self.random_state: torch.Tensor | None = None
        self.saved = time.monotonic()
        self.handlers: dict[int, Any] = {}

    def newest(self) -> Path | None:
        """The checkpoint to go on from, after a check of its bytes."""
        files = sorted(self.folder.glob("step-*.ckpt"))
        if not files:
            return None
        wanted = files[-1].stem.split("-")[2]
        if _digest(files[-1]) != wanted:
            raise ValueError(
                f"{files[-1]}: damaged (its bytes do not match the checksum in its name). "
                "Delete it to go on from the checkpoint before it, or from the stage's beginning."
            )
        return files[-1]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals: Lightning's own handlers save nothing, or hang with several ranks."""
        self.saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._interrupt)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        while self.handlers:
            signal.signal(*self.handlers.popitem())

    def _interrupt(self, number: int, frame: Any) -> None:
        self.interrupted = True
        signal.signal(number, signal.SIG_DFL)  # a second one stops at once

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between two optimizer steps, where it is time or a signal has come."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        due = time.monotonic() - self.saved >= self.seconds
        decide = trainer.strategy.reduce_boolean_decision
        if decide(self.interrupted, all=False):
            self.interrupted = True
            self.save(trainer)
            trainer.should_stop = True
        elif decide(due, all=False):
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write beside, then rename; the one before goes when the new one stands."""
        draft = self.folder / "draft.ckpt"
        trainer.save_checkpoint(draft)
        if trainer.is_global_zero:
            name = f"step-{trainer.global_step:08d}-{_digest(draft)}.ckpt"
            os.replace(draft, self.folder / name)
            for old in self.folder.glob("step-*.ckpt"):
                if old.name != name:
                    old.unlink()
        trainer.strategy.barrier()
        self.saved = time.monotonic()

    def clear(self) -> None:
        """Remove what a finished stage no longer needs."""
        for file in (*self.folder.glob("step-*.ckpt"), self.folder / "draft.ckpt"):
            file.unlink(missing_ok=True)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave out frozen parts, add the random state."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if self.recipe.keeps(k)}
        checkpoint["random_state"] = torch.get_rng_state()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the random state for the next step."""
        self.random_state = checkpoint["random_state"]

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the random state back: now, as loaders draw from it when they begin."""
        if self.random_state is not None:
            torch.set_rng_state(self.random_state)
            self.random_state = None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
