"""Checkpoints of a running stage: whole or not at all, checked when read, saved on Ctrl-C."""

import hashlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from llava_lab import signals
from llava_lab.disk import whole
from llava_lab.train.stage import Stage

KEPT = 2  # the newest one, and one to go on from should that be damaged


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes beside the file's place: Lightning's own writes to $TMPDIR, and copies from there."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint whole or not at all."""
        with whole(Path(path)) as draft:
            torch.save(checkpoint, draft)


class StageCheckpoint(Callback):
    """Keeps the two newest checkpoints of a stage; on a signal saves one and stops.

    A checkpoint holds the trained parts, the optimizer, the loader's position and the random
    state. Frozen parts are those that the stage began with. Its name carries the step and the
    first digits of two hashes: of the stage's fingerprint, so that none of other options or data
    is gone on from, and of its bytes, so that a damaged file is found out.

    Args:
        folder: The stage's folder.
        fingerprint: The stage's fingerprint.
        recipe: The stage.
        seconds: Time between checkpoints.
    """

    def __init__(self, folder: Path, fingerprint: str, recipe: Stage, seconds: float):
        self.folder, self.recipe, self.seconds = folder, recipe, seconds
        self.mark = hashlib.sha256(fingerprint.encode()).hexdigest()[:8]
        self.random_state: torch.Tensor | None = None
        self.saved = time.monotonic()

    def newest(self) -> Path | None:
        """The checkpoint to go on from: the newest whose bytes are those that were written.

        Those of another fingerprint are removed: other options, data or code began here.

        Raises:
            ValueError: If all of them are damaged.
        """
        files = sorted(self.folder.glob("step-*.ckpt"), reverse=True)
        own = [file for file in files if file.stem.split("-")[2:3] == [self.mark]]
        for file in files:
            if file not in own:
                print(f"llava_lab: {file}: of other options or data, removed", flush=True)
                file.unlink(missing_ok=True)
        for file in own:
            if _digest(file) == file.stem.split("-")[-1]:
                return file
            if file != own[-1]:
                print(f"llava_lab: {file}: damaged; going on from the one before it", flush=True)
        if own:
            raise ValueError(
                f"{own[0]}: damaged (its bytes do not match the checksum in its name), and no good "
                "one is before it. Delete it, and others beside it, to begin the stage anew."
            )
        return None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write checkpoints beside their place."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpointIO()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for the end of a step."""
        self.saved = time.monotonic()
        signals.defer()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Held-out rows come after the last step; a signal ends them at once."""
        signals.resume()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on, where it has not ended."""
        if trainer.state.fn == TrainerFn.FITTING:
            signals.defer()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is left to save."""
        signals.resume()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Nothing can be saved any more."""
        with suppress(signals.Interrupted):
            signals.resume()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save between two optimizer steps, where it is time or a signal has come."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        due = time.monotonic() - self.saved >= self.seconds
        decide = trainer.strategy.reduce_boolean_decision
        if decide(signals.came(), all=False):
            self.save(trainer)
            said = f"interrupted and saved at step {trainer.global_step}; the same command goes on"
            if trainer.is_global_zero:
                print(f"llava_lab: {said}", flush=True)
            raise signals.interruption("")
        if decide(due, all=False):
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write beside, then rename; the oldest goes when the new one stands."""
        draft = self.folder / "draft.ckpt"
        trainer.save_checkpoint(draft)
        if trainer.is_global_zero:
            name = f"step-{trainer.global_step:08d}-{self.mark}-{_digest(draft)}.ckpt"
            draft.replace(self.folder / name)
            before = sorted(
                file
                for file in self.folder.glob("step-*.ckpt")
                if file.name != name and file.stem.split("-")[1] < name.split("-")[1]
            )
            keep = {name, *(file.name for file in before[1 - KEPT :])}
            for file in self.folder.glob("step-*.ckpt"):
                if file.name not in keep:
                    file.unlink()
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
