"""10. Kept: weights of a running stage after some of its steps, each a file that opens as a model.

`Every` names the steps: every so many, or after each such share of the stage. Benchmarks are asked
at such steps, too (`llava_lab.evaluate.trajectory`).
"""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from llava_lab.core import ranks
from llava_lab.train.lora import as_merged
from llava_lab.train.precision import as_after
from llava_lab.train.stage_weights import save_trained

if TYPE_CHECKING:
    from llava_lab.train.stage import Stage

Every = int | float | None
FOLDER = "kept"
NAME = re.compile(r"step-(\d{8})\.safetensors")


def check_every(name: str, every: Every) -> Every:
    """Refuse what names no steps.

    Args:
        name: Name of the option.
        every: Its value.

    Raises:
        ValueError: If it is neither a number of steps nor a share of the stage.
    """
    whole = isinstance(every, int) and not isinstance(every, bool) and every >= 1
    share = isinstance(every, float) and 0 < every <= 1
    if every is None or whole or share:
        return every
    raise ValueError(
        f"{name} is {every!r}; it is a number of steps (500), or a share of the stage, above 0 and "
        "at most 1.0 (0.25)"
    )


def steps_between(every: Every, steps: int) -> list[int]:
    """Steps before the last one of a stage that an option names.

    Args:
        every: The option.
        steps: Optimizer steps of the stage.
    """
    if every is None:
        return []
    length = every if isinstance(every, int) else every * steps
    # A share of few steps may be less than one; the last step is the stage's end.
    named = (round(number * length) for number in range(1, int(steps / length) + 1))
    return sorted({step for step in named if 0 < step < steps})


def kept_file(folder: Path, step: int) -> Path:
    """Where a stage keeps its weights after a step.

    Args:
        folder: The stage's.
        step: Optimizer steps.
    """
    return folder / FOLDER / f"step-{step:08d}.safetensors"


def stage_of(path: Path) -> Path | None:
    """The folder of the stage that a file of kept weights is of; None for any other path."""
    path = path.absolute()
    kept = NAME.fullmatch(path.name) and path.parent.name == FOLDER and path.is_file()
    return path.parents[1] if kept else None


class Kept(Callback):
    """Keeps a stage's weights after some of its steps.

    Args:
        folder: The stage's folder.
        fingerprint: The stage's fingerprint.
        stage: The stage.
    """

    def __init__(self, folder: Path, fingerprint: str, stage: "Stage"):
        self.folder, self.fingerprint, self.stage = folder, fingerprint, stage
        self.steps: set[int] = set()

    def clear(self) -> None:
        """Remove what was kept of a stage that begins anew."""
        if ranks.first():
            shutil.rmtree(self.folder / FOLDER, ignore_errors=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find out which steps they are."""
        self.steps = set(steps_between(self.stage.keep_every, trainer.datamodule.steps()))  # type: ignore[attr-defined]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the weights when a step is whole; by one process, as all hold the same."""
        step = trainer.global_step
        if "means" in outputs and step in self.steps and trainer.is_global_zero:
            weights = self._weights(trainer, pl_module)
            save_trained(weights, kept_file(self.folder, step), self.fingerprint)

    def _weights(self, trainer: Trainer, model: LightningModule) -> dict[str, Tensor]:
        """What the stage would leave if it ended here."""
        exact = as_after(trainer.precision_plugin)
        weights = self.stage.trained(model)
        if self.stage.lora is not None:
            return as_merged(model, weights, exact)
        return {name: exact(tensor) for name, tensor in weights.items()}
