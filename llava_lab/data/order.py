"""1. Order: lengths of the samples -> the batches of one epoch, decided by seed, stage and epoch.

No global random state is read or changed, so a resumed run and every process of a job have the same
order.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from typing import TypeVar

_Item = TypeVar("_Item")

# Batches in a group: more make lengths more similar, fewer make the order more random.
_MEGA = 8


def epoch_batches(
    lengths: Sequence[int],
    modalities: Sequence[int],
    batch_size: int,
    seed: int,
    stage: str,
    epoch: int,
    group_by_modality: bool,
    rows: Sequence[int] | None = None,
) -> list[list[int]]:
    """Deal samples into batches, each once or as often as asked; the last batch may be smaller.

    With grouping, a batch has one modality and samples of similar lengths, the longest first: each
    modality is shuffled, split into groups of eight batches, sorted by length within a group, and
    cut into batches, which are then shuffled. Remainders that fill no batch come at the end, text
    last; only there a batch has several modalities. LLaVA's sampler (llava_trainer.py) does the
    same, but draws one step at a time, so that lengths are similar across its devices only, and
    uses the global random state.

    Args:
        lengths: Length of each sample, at least 1; only used when grouped.
        modalities: Number of each sample's modality, text being the lowest; only used when grouped.
        batch_size: Samples of one optimizer step, over all devices.
        seed: Seed of the run.
        stage: Name of the stage.
        epoch: Number of the epoch within the stage.
        group_by_modality: Whether to group by modality and length, or only to shuffle.
        rows: The samples, rising; one may stand there several times. None takes each once.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; at least 1 is needed")
    if len(lengths) != len(modalities):
        raise ValueError(f"{len(lengths)} lengths, but {len(modalities)} modalities")
    rng = random.Random(f"{seed}/{stage}/{epoch}")
    rows = range(len(lengths)) if rows is None else rows
    if not group_by_modality:
        return _cut(shuffled(rows, rng), batch_size)
    for index, length in enumerate(lengths):
        if length < 1:
            raise ValueError(f"sample {index} has length {length}; at least 1 is needed")
    batches: list[list[int]] = []
    rest: list[int] = []
    for modality in sorted(set(modalities), reverse=True):
        indices = [index for index in rows if modalities[index] == modality]
        drawn = shuffled(indices, rng)
        full = len(drawn) - len(drawn) % batch_size
        for mega in _cut(drawn[:full], _MEGA * batch_size):
            batches += _cut(sorted(mega, key=lambda i: -lengths[i]), batch_size)
        rest += drawn[full:]
    return shuffled(batches, rng) + _cut(rest, batch_size)


def shuffled(items: Sequence[_Item], rng: random.Random) -> list[_Item]:
    """The items in an order that the generator draws, the same in every version of Python."""
    # Python promises the same random() from the same seed in every version, but not shuffle().
    keys = [rng.random() for _ in items]
    return [items[i] for i in sorted(range(len(items)), key=keys.__getitem__)]


def _cut(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def order_hash(batches: Sequence[Sequence[int]]) -> str:
    """Hash an order to 12 hexadecimal digits, for the record of a run."""
    return hashlib.sha256(json.dumps([list(batch) for batch in batches]).encode()).hexdigest()[:12]


def shard(
    batch: Sequence[int], rank: int, world: int, lengths: Sequence[int] | None = None
) -> list[int]:
    """Return one device's share of a batch; the shares differ by at most one sample.

    If a batch has fewer samples than there are devices, some devices get none.

    Args:
        batch: Samples of one optimizer step.
        rank: Number of this device, from 0.
        world: Number of devices.
        lengths: Length of each sample of the data set. Where given, samples are dealt out from the
            longest to the shortest, to and fro, so that all devices get about the same sum of
            lengths; else each gets a contiguous part.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank {rank} is not one of {world} devices")
    if lengths is None:
        return list(batch[len(batch) * rank // world : len(batch) * (rank + 1) // world])
    share = []
    for number, dealt in enumerate(_cut(sorted(batch, key=lambda i: -lengths[i]), world)):
        place = rank if number % 2 == 0 else world - 1 - rank
        share += dealt[place : place + 1]
    return share
