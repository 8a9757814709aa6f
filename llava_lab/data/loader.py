"""3d. Loader: the batches of a whole stage in an order fixed beforehand, from any position on."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from llava_lab.data.order import epoch_batches, shard


class Batches:
    """A batch sampler over a fixed list, which may begin in the middle."""

    def __init__(self, batches: Sequence[list[int]]):
        self.batches, self.start = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches[self.start :])


class StageLoader(DataLoader):
    """A loader whose position travels in the checkpoint, so that resuming is exact."""

    def __init__(
        self,
        dataset: Dataset,
        batches: Sequence[list[int]],
        collate: Callable[[list[Any]], Any],
        workers: int,
    ):
        self.order, self.position = Batches(batches), 0
        super().__init__(
            dataset,
            batch_sampler=self.order,
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Any:
        self.order.start = self.position
        for batch in super().__iter__():
            self.position += 1
            yield batch
        self.position = 0

    def state_dict(self) -> dict[str, int]:
        """Batches handed out so far."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were handed out."""
        self.position = state["position"]


def stage_batches(
    lengths: Sequence[int],
    modalities: Sequence[int],
    *,
    batch_size: int,
    accumulate: int,
    epochs: int,
    max_steps: int | None,
    group_by_modality: bool,
    seed: int,
    stage: str,
    rank: int = 0,
    world: int = 1,
) -> list[list[int]]:
    """Micro-batches of a whole stage for one rank, `accumulate` of them an optimizer step.

    The last batch of an epoch may be smaller; where it has fewer rows than micro-batches, it is
    filled up from the beginning of the epoch.
    """
    steps: list[list[int]] = []
    total = math.inf if max_steps is None else max_steps
    epoch = 0
    while epoch < epochs and len(steps) < total:
        batches = epoch_batches(
            lengths,
            modalities,
            batch_size=batch_size,
            seed=seed,
            stage=stage,
            epoch=epoch,
            group_by_modality=group_by_modality,
        )
        first = [index for batch in batches for index in batch]
        steps += [batch + first[: max(0, accumulate * world - len(batch))] for batch in batches]
        epoch += 1
    steps = steps[: max_steps or None]
    micro = []
    for step in steps:
        mine = shard(step, rank, world, lengths)
        micro += [mine[part::accumulate] for part in range(accumulate)]
    return micro
