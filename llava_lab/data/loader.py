"""3. Loader: micro-batches of a whole stage in a fixed order, from any step on."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from llava_lab.data.order import epoch_batches, shard
from llava_lab.data.packing import StageBatch, pinned, tensors


class StepPart(NamedTuple):
    """The rows of one micro-batch of an optimizer step.

    Attributes:
        rows: Indices of its rows; at least one.
        filler: Whether its row only keeps a device busy, because the step has fewer rows than
            micro-batches. Such a row counts neither in the loss nor in any total.
        step: Indices of all rows of the step, over all devices.
        number: Its place among the step's micro-batches that are no fillers.
        parts: Number of micro-batches of the step that are no fillers.
        source: Name of the source that all its rows are of, or None.
    """

    rows: list[int]
    filler: bool
    step: list[int]
    number: int
    parts: int
    source: str | None = None


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass of one device.

    Attributes:
        batch: Its rows.
        filler: Whether its rows do not count.
        step: The device's micro-batches of the whole step, on the CPU: the size of the step is
            known before its first micro-batch is computed.
        first: Whether the step begins with it.
        last: Whether the step ends with it.
        source: Name of the source that all its rows are of, or None.
    """

    batch: StageBatch
    filler: bool
    step: "tuple[MicroBatch, ...]" = ()
    first: bool = True
    last: bool = True
    source: str | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> "MicroBatch":
        """Copy the batch to another device."""
        return replace(self, batch=self.batch.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "MicroBatch":
        """A copy from which a GPU may copy while it computes."""
        return replace(self, batch=pinned(self.batch))


class StepParts(Dataset):
    """Data set of micro-batches, collated on access.

    Args:
        rows: The rows.
        collate: Makes a batch of rows and the part that they belong to.
    """

    def __init__(self, rows: Any, collate: Callable[[list[Any], StepPart], Any]):
        self.rows, self.collate = rows, collate

    def __getitem__(self, index: StepPart) -> MicroBatch:
        batch = self.collate([self.rows[row] for row in index.rows], index)
        return MicroBatch(batch, index.filler, source=index.source)


class StepPartSampler:
    """Yields the micro-batches of a stage on one device, from any step on."""

    def __init__(self, steps: Sequence[list[StepPart]]):
        self.steps, self.start = steps, 0

    def __len__(self) -> int:
        return sum(map(len, self.steps))

    def __iter__(self) -> Iterator[StepPart]:
        return itertools.chain.from_iterable(self.steps[self.start :])


class StageLoader(DataLoader):
    """Data loader whose position is saved in checkpoints, so that resuming is exact.

    The position is the number of optimizer steps that were handed out, which means the same on any
    number of devices.

    A GPU gets each micro-batch while it still computes the one before, from pinned memory.

    Args:
        rows: The rows.
        steps: This device's micro-batches of every optimizer step.
        collate: Makes a batch of rows and the part that they belong to.
        workers: Processes that load rows beside the main one.
        device: Where micro-batches are computed.
    """

    def __init__(
        self,
        rows: Any,
        steps: Sequence[list[StepPart]],
        collate: Callable[[list[Any], StepPart], Any],
        workers: int = 0,
        device: torch.device | None = None,
    ):
        self.order, self.position, self.begin = StepPartSampler(steps), 0, 0
        self.gpu = device if device is not None and device.type == "cuda" else None
        # A step begins when all its micro-batches are there: workers load the next one meanwhile.
        ahead = max(2, math.ceil(max(map(len, steps), default=0) / max(1, workers)))
        super().__init__(
            StepParts(rows, collate),
            batch_size=None,
            sampler=self.order,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=ahead if workers else None,
            pin_memory=self.gpu is not None,
        )

    def __iter__(self) -> Any:
        # Only what a checkpoint says is gone on from: Lightning leaves a pass over held-out rows
        # before its end, and the next one begins anew.
        self.order.start = self.position = self.begin
        self.begin = 0
        fetched = super().__iter__()
        stream = None if self.gpu is None else torch.cuda.Stream(self.gpu)
        for step in self.order.steps[self.position :]:
            micro = tuple(itertools.islice(fetched, len(step)))
            for number, each in enumerate(micro, 1):
                last = number == len(micro)
                self.position += last
                shown = each if stream is None else copied(each, stream)
                yield replace(shown, step=micro, first=number == 1, last=last)
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        """Optimizer steps handed out so far."""
        return {"steps": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the steps that were handed out."""
        self.begin = self.position = state["steps"]


def copied(micro: MicroBatch, stream: torch.cuda.Stream) -> MicroBatch:
    """A micro-batch on a GPU, copied by a stream of its own beside what the GPU computes."""
    with torch.cuda.stream(stream):
        moved = micro.to(stream.device, non_blocking=True)
    computing = torch.cuda.current_stream(stream.device)
    computing.wait_stream(stream)
    for each in tensors(moved.batch).values():
        each.record_stream(computing)  # its memory is free again when that one is done with it
    return moved


def stage_epochs(
    lengths: Sequence[int],
    modalities: Sequence[int],
    *,
    batch_size: int,
    epochs: int,
    max_steps: int | None,
    group_by_modality: bool,
    seed: int,
    stage: str,
    rows: Callable[[int], Sequence[int] | None] = lambda epoch: None,
) -> list[list[list[int]]]:
    """List the rows of every optimizer step of a stage, epoch by epoch, on any number of devices.

    The last batch of an epoch may be smaller. `rows` gives those of an epoch, None being each once.
    """
    found: list[list[list[int]]] = []
    left = math.inf if max_steps is None else max_steps
    while len(found) < epochs and left > 0:
        epoch = epoch_batches(
            lengths,
            modalities,
            batch_size=batch_size,
            seed=seed,
            stage=stage,
            epoch=len(found),
            group_by_modality=group_by_modality,
            rows=rows(len(found)),
        )
        found.append(epoch[: None if max_steps is None else int(left)])
        left -= len(epoch)
    return found


def split_step(
    step: list[int], lengths: Sequence[int], *, accumulate: int, rank: int, world: int
) -> list[StepPart]:
    """One device's micro-batches of an optimizer step, `accumulate` of them.

    Rows are dealt so that devices get about the same sum of lengths. If there are fewer rows than
    micro-batches, the step's shortest row fills the others and does not count.
    """
    shares = [shard(step, each, world, lengths) for each in range(world)]
    cut = [[share[part::accumulate] for part in range(accumulate)] for share in shares]
    sizes = [sum(map(bool, micro)) for micro in cut]
    before, filler = sum(sizes[:rank]), min(step, key=lengths.__getitem__)
    return [
        StepPart(rows or [filler], not rows, step, before + number, sum(sizes))
        for number, rows in enumerate(cut[rank])
    ]


def deal(
    rows: Sequence[int], size: int, rank: int, world: int, source: str | None = None
) -> list[list[StepPart]]:
    """One device's share of rows that are read once in their order, such as held-out rows.

    Every device has as many batches as the others, and every row counts once: the batches are
    the same on any number of devices, and dealt out in turn.
    """
    every = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
    steps = []
    for start in range(0, len(every), world):
        filler = start + rank >= len(every)
        batch = every[start] if filler else every[start + rank]
        steps.append([StepPart(batch, filler, batch, 0, 1, source)])
    return steps
