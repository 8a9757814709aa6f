"""3. Stage data: the budget, the order and the stores that every stage's DataModule has."""

import itertools
import math
import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from llava_lab.core.numbers import at_least
from llava_lab.data.loader import StageLoader, StepPart, split_step, stage_epochs
from llava_lab.data.packing import Batch, StageBatch
from llava_lab.data.views.base import Views


class Features(Protocol):
    """Features of images that a frozen encoder computed beforehand."""

    def __getitem__(self, image: Path) -> tuple[Tensor, tuple[int, ...]]:
        """Features [n, p, d] of one image's views, and its width, height and frames, if any."""
        ...


class StageDataModule(LightningDataModule):
    """The data of a stage: its rows, their order, the batches, and a hash of their content.

    Args:
        batch_size: Rows an optimizer step, over all devices: the number that papers give.
        micro_batch_size: Rows a device computes at once; null computes its whole share. The rest
            of `batch_size` is accumulated.
        epochs: Times that the rows are read.
        max_steps: Stop after so many optimizer steps, or null.
        group_by_modality: Batches of one modality and of similar lengths, as LLaVA-1.5's second
            stage: text, or images and videos; `video` keeps videos apart from images, too.
        num_workers: Processes that load rows beside the main one.
    """

    # Options that do not decide a stage's result; files count by their content.
    idle: ClassVar[tuple[str, ...]] = ("num_workers",)
    views: Views

    def __init__(
        self,
        batch_size: int,
        micro_batch_size: int | None = None,
        epochs: int = 1,
        max_steps: int | None = None,
        group_by_modality: bool | Literal["video"] = False,
        num_workers: int = 0,
    ):
        super().__init__()
        at_least(1, batch_size=batch_size, micro_batch_size=micro_batch_size)
        at_least(1, epochs=epochs, max_steps=max_steps)
        at_least(0, num_workers=num_workers)
        self.name = "stage"
        self.batch_size, self.micro_batch_size = batch_size, micro_batch_size
        self.epochs, self.max_steps = epochs, max_steps
        self.group_by_modality, self.num_workers = group_by_modality, num_workers
        self.skipped: dict[str, int] = {}
        self.feature_store: str | None = None
        self.features: Features | None = None
        self.limit: float = 1.0
        self.held_limit: float = 1.0

    def take_limits(self, trainer: Any) -> None:
        """Take `limit_train_batches` and `limit_val_batches` over from a trainer.

        Lightning would count each device's micro-batches; here they are optimizer steps, and
        batches of held-out rows, on any number of devices.
        """
        self.limit, self.held_limit = trainer.limit_train_batches, trainer.limit_val_batches
        trainer.limit_train_batches = trainer.limit_val_batches = 1.0

    @property
    def model(self) -> Any:
        """The model whose tokenizer and encoder the rows are made for."""
        assert self.trainer is not None
        return self.trainer.lightning_module

    def accumulate(self, world: int) -> int:
        """Micro-batches of an optimizer step that each of so many devices computes."""
        if self.batch_size < world:
            raise ValueError(
                f"stages.{self.name}.data: batch_size {self.batch_size} is for fewer than {world} "
                "devices; use fewer devices or a larger batch"
            )
        share = math.ceil(self.batch_size / world)
        return math.ceil(share / (self.micro_batch_size or share))

    def check_views(self, model: Any) -> None:
        """Refuse views that the model cannot follow; nothing by default."""

    def check(self, model: Any) -> None:
        """Refuse what cannot work before any stage is trained."""
        self.accumulate(world=1)

    def stored_images(self) -> list[Path]:
        """Images whose features may be stored; none by default."""
        return []

    def chat(self, model: Any) -> list[Any]:
        """What the LM's settings decide about how rows become ids; nothing by default."""
        return []

    @abstractmethod
    def lengths(self) -> tuple[list[int], list[int]]:
        """Length of every training row, and its modality: 0 is text."""

    def costs(self) -> Sequence[int]:
        """What each training row counts where the rows of a step are dealt: its length."""
        return self.lengths()[0]

    def epoch_rows(self, epoch: int) -> Sequence[int] | None:
        """Training rows that an epoch reads, rising; None where that is each of them once."""
        return None

    @abstractmethod
    def train_rows(self) -> Dataset:
        """Training rows, encoded at access."""

    @abstractmethod
    def content(self) -> str:
        """Hash of the content of the rows and their images."""

    def val_dataloader(self) -> StageLoader | list[Any]:
        """Held-out rows, or nothing."""
        return []

    def collate(self, rows: list[Any], part: StepPart) -> StageBatch:
        """Rows to a batch.

        Args:
            rows: The rows of one micro-batch.
            part: What of an optimizer step they are.
        """
        return Batch.pack(rows)

    def _epochs(self) -> list[list[list[int]]]:
        """Rows of every optimizer step of the stage, over all devices, epoch by epoch."""
        lengths, modalities = self.lengths()
        return stage_epochs(
            lengths,
            modalities,
            batch_size=self.batch_size,
            epochs=self.epochs,
            max_steps=self.max_steps,
            group_by_modality=bool(self.group_by_modality),
            seed=run_seed(),
            stage=str(self.name),
            rows=self.epoch_rows,
        )

    def order(self) -> list[list[int]]:
        """Rows of every optimizer step of the stage, over all devices, up to the limit."""
        steps = list(itertools.chain.from_iterable(self._epochs()))
        return steps[: limited(len(steps), self.limit)]

    def ending(self) -> str:
        """How many steps it has and what ends it, where one of `epochs` and `max_steps` is idle."""
        if self.max_steps is None:
            return ""
        epochs = self._epochs()
        steps = sum(map(len, epochs))
        if steps < self.max_steps:
            ends = "epoch" if self.epochs == 1 else f"{self.epochs} epochs"
            return f"{steps:,} steps, by {ends}, before max_steps of {self.max_steps:,}"
        if len(epochs) < self.epochs:
            return f"{steps:,} steps, by max_steps, in epoch {len(epochs)} of {self.epochs}"
        return ""

    def steps(self) -> int:
        """Optimizer steps of the whole stage."""
        return len(self.order())

    def train_dataloader(self) -> StageLoader:
        """The whole stage as one pass, so that its progress bar counts to the stage's end."""
        trainer: Any = self.trainer
        rank, world = trainer.global_rank, trainer.world_size
        costs, micro = self.costs(), self.accumulate(world)
        steps = [
            split_step(step, costs, accumulate=micro, rank=rank, world=world)
            for step in self.order()
        ]
        device = trainer.strategy.root_device
        return StageLoader(self.train_rows(), steps, self.collate, self.num_workers, device)


def limited(number: int, limit: float) -> int:
    """How many of a number of batches a limit of Lightning leaves: a share, or so many at most.

    A share above 0 leaves one at least, so that of no source's held-out rows nothing is measured.
    """
    if isinstance(limit, float):
        return max(int(number * limit), min(number, math.ceil(limit)))
    return min(number, limit)


def run_seed() -> int:
    """The run's seed, as `seed_everything` has set it."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))
