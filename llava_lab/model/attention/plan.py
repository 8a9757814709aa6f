"""9. Plan: the forest of a forward pass -> which queries see which keys, for all layers."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from llava_lab.data.forest import Forest
from llava_lab.model.attention.kernel import Sequences, attend_paths, send

if TYPE_CHECKING:
    from llava_lab.model.attention.cache import KeyValueCache


class KeyBlock(NamedTuple):
    """A block of queries that attend in one call, and the keys that they may see.

    Attributes:
        tree: The tree that has them.
        queries: The queries.
        keys: The first keys of the tree, or all.
        causal: Whether keys and queries are the same, and each sees those before it.
    """

    tree: int
    queries: slice
    keys: slice
    causal: bool


@dataclass
class AttentionPlan:
    """How the tokens of one forward pass attend; passed to every attention layer.

    Attributes:
        forest: Segments of the keys.
        blocks: Blocks of queries, in order; a root is causal, the rest of its tree is masked.
        query_segments: Segment of every query [q], on the CPU.
        query_positions: Position of every query [q], on the model's device.
        cache: Cache of keys and values for later passes, or None in training.
        slots: Slots of this pass's keys in the cache [q].
        masks: Mask of each block and window that was asked for.
        calls: How often each layer has attended in this pass; some LMs' do so more than once.
    """

    forest: Forest
    blocks: list[KeyBlock]
    query_segments: Tensor
    query_positions: Tensor
    cache: "KeyValueCache | None" = None
    slots: Tensor | None = None
    masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)
    calls: Counter[int] = field(default_factory=Counter)

    @classmethod
    def whole(
        cls, forest: Forest, device: torch.device, cache: "KeyValueCache | None" = None
    ) -> "AttentionPlan":
        """Make the plan of a pass over the whole forest."""
        blocks = []
        for number, tree in enumerate(forest.trees):
            start, split, end = forest.starts[tree[0]], forest.end(tree[0]), forest.end(tree[-1])
            blocks.append(KeyBlock(number, slice(start, split), slice(start, split), causal=True))
            if split < end:
                seen = slice(start, end)
                blocks.append(KeyBlock(number, slice(split, end), seen, causal=False))
        positions = send(forest.positions, device)
        plan = cls(forest, blocks, forest.segments, positions, cache)
        if cache is not None:
            plan.slots = send(cache.slots(forest), device)
        if device.type != "cpu":
            _ = plan.paths  # before the first layer, which may be compiled
        return plan

    @cached_property
    def paths(self) -> Sequences:
        """A sequence for each segment: its tokens, and as keys those of its path from the root.

        The keys of roots alone are those of the row as they are.
        """
        forest = self.forest
        lengths = torch.tensor(forest.lengths)
        ends = torch.tensor(forest.depths) + lengths
        numbers = (int(lengths.max()), int(ends.max()))
        queries = _bounds(lengths)
        if not any(parent is not None for parent in forest.parents):
            queries = send(queries.int(), self.query_positions.device)
            return Sequences(queries, queries, *numbers)
        pieces = torch.tensor([each for i in range(len(lengths)) for each in forest.path(i)])
        index = _runs(torch.tensor(forest.starts)[pieces], lengths[pieces])
        counts = [len(queries), len(queries), len(index)]
        packed = torch.cat([queries, _bounds(ends), index]).int()
        queries, keys, index = send(packed, self.query_positions.device).split(counts)
        return Sequences(queries, keys, *numbers, index)

    def fuses(self, window: int | None) -> bool:
        """Whether one call of the kernel does for a layer with this sliding window."""
        return True

    def keep(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [1, h, q, d] to the cache; returns those that queries see."""
        self.written(layer, key, value)
        return key, value

    def written(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [1, h, q, d] to the cache; returns all of this call of the layer.

        Each call of a pass has keys and values of its own, which later passes' same call adds to.
        """
        assert self.cache is not None and self.slots is not None
        call = (layer, self.calls[layer])
        self.calls[layer] += 1
        return self.cache.keep(call, self.slots, key, value)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, window: int | None, scaling: float | None
    ) -> Tensor:
        """Attention of all queries [q, h, d] by the kernel; see `attend_paths`."""
        return attend_paths(query, key, value, self.paths, window, scaling)

    def mask(self, index: int, window: int | None) -> Tensor | None:
        """Mask of the keys that each query of block `index` may see [q, k]; None means causal.

        Args:
            index: The block.
            window: Sliding window of this layer: a query sees the `window` nearest positions.
        """
        if (index, window) not in self.masks:
            self.masks[index, window] = self._mask(self.blocks[index], window)
        return self.masks[index, window]

    def _mask(self, block: KeyBlock, window: int | None) -> Tensor | None:
        here = self.query_positions[block.queries]
        if block.causal and (window is None or len(here) <= window):
            return None
        there = send(self.forest.positions[block.keys], here.device)
        kin = self.forest.kinship[self.query_segments[block.queries]]
        kin = send(kin[:, self.forest.segments[block.keys]], here.device)
        distance = here[:, None] - there[None, :]
        seen = (distance >= 0) & kin
        return seen if window is None else seen & (distance < window)


def _bounds(lengths: Tensor) -> Tensor:
    """Where each of several runs begins, and where the last ends [n + 1]."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def _runs(starts: Tensor, lengths: Tensor) -> Tensor:
    """All numbers of several runs, one run after another [sum of lengths]."""
    shift = starts - _bounds(lengths)[:-1]
    return torch.arange(int(lengths.sum())) + shift.repeat_interleave(lengths)
