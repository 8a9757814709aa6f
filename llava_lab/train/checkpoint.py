"""Checkpoints of a running stage: whole or not at all, checked when read, saved on Ctrl-C."""

import hashlib
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from llava_lab.core import signals
from llava_lab.core.numbers import at_least
from llava_lab.core.progress import say
from llava_lab.core.random_state import random_state, set_random_state
from llava_lab.train.checkpoint_files import StageFiles, digest, remove
from llava_lab.train.normalize import over_processes
from llava_lab.train.stage import Stage

KEPT = 2  # the newest one, and one to go on from should that be damaged
# Strategies whose checkpoints each other reads.
ALIKE = {"SingleDeviceStrategy", "DDPStrategy", "Sharded"}


class StageCheckpoint(Callback):
    """Keeps the two newest checkpoints of a stage; on a signal saves one and stops.

    A checkpoint holds the trained parts, the optimizer, the position in the stage's order and
    every device's random state. Frozen parts are those that the stage began with. Its name
    carries the step and the first digits of two hashes: of the stage's fingerprint, so that none
    of other options or data is gone on from, and of its bytes, so that a damaged file is found
    out. A stage may go on with another number of devices than it began with.

    Args:
        folder: The stage's folder.
        fingerprint: The stage's fingerprint.
        stage: The stage.
        seconds: Time between checkpoints.
    """

    def __init__(self, folder: Path, fingerprint: str, stage: Stage, seconds: float):
        at_least(0, checkpoint_seconds=seconds)
        self.folder, self.stage, self.seconds = folder, stage, seconds
        self.tag = hashlib.sha256(fingerprint.encode()).hexdigest()[:8]
        self.random_state: dict[str, Any] | None = None
        self.saved = time.monotonic()

    def newest(self) -> Path | None:
        """The checkpoint to go on from: the newest whose bytes are those that were written.

        Those of another fingerprint are removed: other options, data or code began here.

        Raises:
            ValueError: If all of them are damaged.
        """
        files = sorted(self.folder.glob("step-*.ckpt"), reverse=True)
        own = [file for file in files if file.stem.split("-")[2:3] == [self.tag]]
        for file in files:
            if file not in own:
                say(f"{file}: of other options or data, removed")
                remove(file)
        for file in own:
            if digest(file) == file.stem.split("-")[-1]:
                return file
            if file != own[-1]:
                say(f"{file}: damaged; going on from the one before it")
        if own:
            raise ValueError(
                f"{own[0]}: damaged (its bytes do not match the checksum in its name), and no good "
                "one is before it. Delete it, and others beside it, to begin the stage anew."
            )
        return None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write checkpoints beside their place."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = StageFiles()

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
        if "means" not in outputs:  # the step is not whole
            return
        # Of all processes, between CPUs: no device has to finish anything for it.
        due = time.monotonic() - self.saved >= self.seconds
        came, due = over_processes([int(signals.came()), int(due)])
        if came:
            self.save(trainer)
            say(f"interrupted and saved at step {trainer.global_step}; the same command goes on")
            raise signals.interruption("")
        if due:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write beside, then rename; the oldest goes when the new one stands."""
        draft = self.folder / "draft.ckpt"
        trainer.save_checkpoint(draft)
        if trainer.is_global_zero:
            name = f"step-{trainer.global_step:08d}-{self.tag}-{digest(draft)}.ckpt"
            if not (self.folder / name).is_dir():  # a folder takes no other's place
                draft.replace(self.folder / name)
            before = sorted(
                file
                for file in self.folder.glob("step-*.ckpt")
                if file.name != name and file.stem.split("-")[1] < name.split("-")[1]
            )
            keep = {name, *(file.name for file in before[1 - KEPT :])}
            for file in self.folder.glob("step-*.ckpt"):
                if file.name not in keep:
                    remove(file)
        trainer.strategy.barrier()
        self.saved = time.monotonic()

    def clear(self) -> None:
        """Remove what a finished stage no longer needs."""
        for file in (*self.folder.glob("step-*.ckpt"), self.folder / "draft.ckpt"):
            remove(file)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave out frozen parts; add the devices, and the random state of each."""
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if self.stage.keeps(k)}
        states: list[Any] = [random_state(pl_module.device)]
        if trainer.world_size > 1:
            states *= trainer.world_size
            dist.all_gather_object(states, states[0])
        checkpoint["random_states"] = states
        checkpoint["split"] = {
            "devices": trainer.world_size,
            "micro-batches": trainer.accumulate_grad_batches,
            "strategy": type(trainer.strategy).__name__,
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Find the place in the order again, however steps are split now.

        Raises:
            ValueError: If the checkpoint cannot go on with these devices.
        """
        was, world = checkpoint["split"], trainer.world_size
        micro, strategy = trainer.accumulate_grad_batches, type(trainer.strategy).__name__
        if strategy != was["strategy"] and not {strategy, was["strategy"]} <= ALIKE:
            raise ValueError(
                f"the checkpoint in {self.folder} was written under {was['strategy']}, whose "
                f"optimizer state {strategy} cannot read; go on with the trainer.strategy and "
                f"trainer.devices={was['devices']} that it began with, or anew with --fresh"
            )
        # Lightning counts micro-batches; those of a step may be others now.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        ready = progress["current"]["ready"]
        more = ready // was["micro-batches"] * micro - ready
        for tracker in (progress["total"], progress["current"]):
            for name in tracker:
                tracker[name] += more
        # As at a stage's beginning, devices draw alike where each has no state of its own.
        states = checkpoint["random_states"]
        self.random_state = states[trainer.global_rank if world == len(states) else 0]
        if world != was["devices"] and trainer.is_global_zero:
            print(
                f"llava_lab: the checkpoint was written with {was['devices']} device(s); going on "
                f"at the same place of the same order with {world}",
                flush=True,
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Put the random state back: now, as loaders draw from it when they begin."""
        if self.random_state is not None:
            set_random_state(self.random_state, pl_module.device)
            self.random_state = None
