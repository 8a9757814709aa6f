"""9. Cache: keys and values of a forest, and the plan of one more token of its answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from llava_lab.data.forest import Forest
from llava_lab.model.attention.kernel import Sequences, attend_levels, send
from llava_lab.model.attention.plan import AttentionPlan, KeyBlock


class LayerKind(NamedTuple):
    """How a layer of the LM attends.

    Attributes:
        group: Heads that share keys.
        window: Sliding window, or None.
        fused: Whether the kernel computes it.
    """

    group: int
    window: int | None
    fused: bool


class KeyValueCache:
    """Keys and values of a forest, with room for `reserve` more tokens in every leaf.

    Slots of a tree are contiguous, so that a later pass attends to a tree by a slice.
    """

    def __init__(self, forest: Forest, reserve: int):
        leaves = set(forest.leaves)
        lengths = [n + reserve * (i in leaves) for i, n in enumerate(forest.lengths)]
        self.forest, self.reserve = forest, reserve
        self.room = Forest(tuple(lengths), forest.parents)
        # A child's positions continue from its parent's tokens, and only leaves have a reserve.
        self.calls: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # of each layer, in order
        self.kinds: set[LayerKind] = set()  # of the layers that were computed with it

    def slots(self, forest: Forest) -> Tensor:
        """Slots of all tokens of the first pass [t]."""
        shift = torch.tensor(self.room.starts) - torch.tensor(forest.starts)
        return torch.arange(forest.tokens) + shift[forest.segments]

    def keep(
        self, call: tuple[int, int], slots: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values [1, h, q, d] to their slots; returns all of the call's.

        Args:
            call: A layer, and how often it has attended before in the pass.
            slots: Where they are written [q].
            key: Keys.
            value: Values.
        """
        if call not in self.calls:
            self.calls[call] = self._room(key), self._room(value)
        for kept, new in zip(self.calls[call], (key, value), strict=True):
            kept.index_copy_(0, slots, new[0].transpose(0, 1))
        keys, values = self.calls[call]
        return keys.transpose(0, 1)[None], values.transpose(0, 1)[None]

    def _room(self, new: Tensor) -> Tensor:
        """Zeros [slots, h, d] for all keys or values of a layer, of which some are [1, h, q, d]."""
        return new.new_zeros(self.room.tokens, new.shape[1], new.shape[3])

    def step(self, leaves: Sequence[int], count: int, device: torch.device) -> "StepPlan":
        """Make the plan of a pass over one new token in each of `leaves`, its `count`-th.

        That of -1 is to be advanced before its first pass.
        """
        slots = torch.tensor(
            [self.room.starts[leaf] + self.forest.lengths[leaf] + count for leaf in leaves]
        )
        blocks, begin, wanted = [], 0, set(leaves)
        for index, tree in enumerate(self.room.trees):
            number = sum(segment in wanted for segment in tree)
            if number:
                keys = slice(self.room.starts[tree[0]], self.room.end(tree[-1]))
                blocks.append(KeyBlock(index, slice(begin, begin + number), keys, causal=False))
                begin += number
        positions = send(self.room.positions[slots], device)
        plan = StepPlan(self.room, blocks, self.room.segments[slots], positions, self)
        plan.slots, plan.leaves, plan.count = send(slots, device), leaves, count
        return plan


class Level(NamedTuple):
    """What one level of the forest has for the answers, on the CPU.

    Attributes:
        ends: End of each sequence's keys, int32 [s + 1]; the first is the first key's slot.
        growth: 1 where an answer's new tokens move the end, int32 [s + 1].
        queries: End of each sequence's queries, int32 [s + 1].
        blind: Whether a query has no keys here [q].
    """

    ends: Tensor
    growth: Tensor
    queries: Tensor
    blind: Tensor


@dataclass
class StepPlan(AttentionPlan):
    """How one new token of each answer attends: to its tree's prefix, and to what is its own.

    Its tensors keep their shapes from step to step, and `advance` changes them in place, so that
    a step can be captured and replayed.

    Attributes:
        leaves: The answers' leaves, in their order.
        count: Tokens that each answer has already.
    """

    leaves: Sequence[int] = ()
    count: int = 0

    def __post_init__(self) -> None:
        self._grouped: dict[int, list[Sequences]] = {}

    def advance(self) -> None:
        """Go on to the next token of every answer."""
        assert self.cache is not None and self.slots is not None
        self.count += 1
        assert self.count < self.cache.reserve, f"room for {self.cache.reserve} new tokens only"
        self.query_positions += 1
        self.slots += 1
        if self._grouped:
            ends, growth, _ = self._levels
            ends += growth
        self.masks.clear()

    def keep(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [1, h, q, d] to the cache; returns all of the layer's."""
        return self.written(layer, key, value)

    @cached_property
    def _longest(self) -> int:
        """Tokens of the longest path, when its answer is at its longest."""
        return int(self.forest.positions.max()) + 1

    def fixed(self) -> bool:
        """Whether a pass changes nothing but tensors of this plan and the cache, in place.

        All that has to be made for it on the CPU is made now.
        """
        assert self.cache is not None
        kinds = self.cache.kinds
        if not all(kind.fused and self.fuses(kind.window) for kind in kinds):
            return False  # masks are made anew for each pass
        for kind in kinds:
            self.levels(kind.group)
        return True

    def fuses(self, window: int | None) -> bool:
        """Whether no answer is so long that a sliding window hides a part of its path."""
        return window is None or self._longest <= window

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, scaling: float | None
    ) -> Tensor:
        """Attention of all queries [q, h, d] by the kernel; see `attend_levels`."""
        group = query.shape[1] // key.shape[1]
        return attend_levels(query, key, value, self.levels(group), scaling)

    def levels(self, group: int) -> list[Sequences]:
        """Sequences of every level, with the queries of the `group` heads that share keys."""
        if group not in self._grouped:
            self._grouped[group] = [level.times(group) for level in self._levels[2]]
        return self._grouped[group]

    @cached_property
    def _levels(self) -> tuple[Tensor, Tensor, list[Sequences]]:
        """Ends of all keys, by how much each grows in a step, and the sequences of every level."""
        paths = [self.forest.path(leaf) for leaf in self.leaves]
        tables = [self._level(paths, depth) for depth in range(max(map(len, paths)))]
        device = self.query_positions.device
        ends, growth, queries, blind = (
            send(torch.cat([table[i] for table in tables]), device) for i in range(4)
        )
        counts = [len(table.ends) for table in tables]
        rows = zip(
            tables,
            queries.split(counts),
            ends.split(counts),
            blind.split(len(paths)),
            strict=True,
        )
        levels = [
            Sequences(
                begin,
                end,
                int(table.queries.diff().max()),
                self._longest,
                blind=hidden if table.blind.any() else None,
            )
            for table, begin, end, hidden in rows
        ]
        return ends, growth, levels

    def _level(self, paths: Sequence[Sequence[int]], depth: int) -> "Level":
        """The sequences of one level: the leaves below each of its segments over its keys.

        A sequence without queries stands for the slots between two segments, and one without keys
        for leaves that have no segment so deep.
        """
        assert self.cache is not None
        leaves = set(self.leaves)
        ends, growth, queries, blind = [0], [0], [0], []
        for segment, group in groupby(paths, lambda path: path[depth] if depth < len(path) else -1):
            number = len(list(group))
            blind += [segment < 0] * number
            if segment >= 0:
                start, grows = self.forest.starts[segment], segment in leaves
                end = start + self.cache.forest.lengths[segment] + grows * (self.count + 1)
                ends, growth, queries = [*ends, start], [*growth, 0], [*queries, queries[-1]]
            else:
                end, grows = ends[-1], bool(growth[-1])
            ends.append(end)
            growth.append(int(grows))
            queries.append(queries[-1] + number)
        bounds = torch.tensor([ends, growth, queries], dtype=torch.int32)
        return Level(bounds[0], bounds[1], bounds[2], torch.tensor(blind))
