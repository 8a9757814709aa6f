"""1. Mix: sources with names and weights -> what is trained on, and what is held out, by source."""

import random
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np

from llava_lab.data.order import shuffled
from llava_lab.data.source import Source
from llava_lab.data.table import Samples


def check_names(sources: Sequence[Source]) -> None:
    """Refuse two sources of one name."""
    names = [each.name for each in sources if each.name is not None]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"sources: two have the name {twice[0]!r}")


def split(
    sources: Sequence[Source], rows: Samples, fraction: float, where: str
) -> tuple[Samples, Samples]:
    """Rows to train on, and rows that are held out.

    Args:
        sources: The sources.
        rows: Their rows, one source after another.
        fraction: Share to hold out.
        where: Where the sources stand, for messages.

    Raises:
        ValueError: If no source has a weight, or none of a named source's rows is held out.
    """
    train, held = rows.hold_out(fraction)
    for source, total, count in zip(sources, counts(rows), counts(held), strict=True):
        if fraction and source.name and not count:
            raise ValueError(
                f"{where}: none of the {total} rows of source {source.name} is held out at "
                f"hold_out {fraction}; raise it, or take the name away"
            )
    taken = np.repeat([source.weight > 0 for source in sources], counts(train))
    if not taken.any():
        raise ValueError(f"{where}: all sources have weight 0")
    return Samples(train.tables, train.rows[taken]), held


def counts(rows: Samples) -> list[int]:
    """Rows of each source, which has a table of its own; they stand one source after another."""
    return np.diff(np.searchsorted(rows.rows, rows.starts)).tolist()


def held_parts(sources: Sequence[Source], held: Samples) -> Iterator[tuple[str | None, range]]:
    """Held-out rows that are measured together, with the name of their source.

    A limit is one of each part, so that it leaves out no source.

    Args:
        sources: The sources, of which some have names.
        held: Their held-out rows, one source after another.
    """
    first = 0
    for source, count in zip(sources, counts(held), strict=True):
        if count:
            yield source.name, range(first, first + count)
        first += count


def epoch_rows(
    sizes: Sequence[int], weights: Sequence[float], seed: int, stage: str, epoch: int
) -> list[int]:
    """List the samples that an epoch reads where sources have weights, rising.

    Of a source with n samples and weight w exactly w x n are read, rounded. Each source is read
    round and round, in an order of its own each time, and an epoch goes on where the one before
    has stopped: over all epochs no sample of a source is read two times more than another one.

    Args:
        sizes: Samples of each source, which stand one after another.
        weights: How often each source is read in an epoch.
        seed: Seed of the run.
        stage: Name of the stage.
        epoch: Number of the epoch within the stage.
    """
    found: list[int] = []
    first = 0
    for source, (count, weight) in enumerate(zip(sizes, weights, strict=True)):
        size = weighted(count, weight)
        for number, start, end in _rounds(epoch * size, (epoch + 1) * size, count):
            order: Sequence[int] = range(count)
            if end - start < count:
                order = shuffled(order, random.Random(f"{seed}/{stage}/source {source}/{number}"))
            found += [first + place for place in order[start:end]]
        first += count
    return sorted(found)


def weighted(count: int, weight: float) -> int:
    """Samples that an epoch reads of a source: weight x count, rounded; one at least, if any."""
    if not count or not weight:
        return 0
    return max(1, int(Fraction(repr(weight)) * count + Fraction(1, 2)))


def _rounds(begin: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cut a span of endless rounds: of each round its number, and where the span is in it."""
    while begin < stop:
        number, start = divmod(begin, size)
        end = min(size, start + stop - begin)
        yield number, start, end
        begin += end - start
