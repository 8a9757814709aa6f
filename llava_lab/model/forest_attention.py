"""9. Forest attention: queries, keys and values of a packed forest -> outputs, with a cache."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from llava_lab.data.forest import Forest

ATTENTION = "llava_lab_forest"


class KeyBlock(NamedTuple):
    """A block of queries that attend in one call, and the range of keys that they may see."""

    queries: slice
    keys: slice
    causal: bool


@dataclass
class AttentionPlan:
    """How the tokens of one forward pass attend; passed to every attention layer.

    Attributes:
        blocks: Blocks of queries, in order; a root is causal, the rest of its tree is masked.
        query_segments: Segment of every query [q].
        query_positions: Position of every query [q].
        key_segments: Segment of every key [k].
        key_positions: Position of every key [k].
        kinship: See `Forest.kinship`.
        cache: Cache of keys and values for later passes, or None in training.
        from_cache: Whether keys are read from the cache, not from this pass alone.
        slots: Slots of this pass's keys in the cache [q].
    """

    blocks: list[KeyBlock]
    query_segments: Tensor
    query_positions: Tensor
    key_segments: Tensor
    key_positions: Tensor
    kinship: Tensor
    cache: "KeyValueCache | None" = None
    from_cache: bool = False
    slots: Tensor | None = None
    masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    @classmethod
    def whole(
        cls, forest: Forest, device: torch.device, cache: "KeyValueCache | None" = None
    ) -> "AttentionPlan":
        """Make the plan of a pass over the whole forest."""
        blocks = []
        for tree in forest.trees:
            start, split, end = forest.starts[tree[0]], forest.end(tree[0]), forest.end(tree[-1])
            blocks.append(KeyBlock(slice(start, split), slice(start, split), causal=True))
            if split < end:
                blocks.append(KeyBlock(slice(split, end), slice(start, end), causal=False))
        segments, positions = forest.segments.to(device), forest.positions.to(device)
        kin = forest.kinship.to(device)
        slots = cache.slots(forest).to(device) if cache else None
        return cls(blocks, segments, positions, segments, positions, kin, cache=cache, slots=slots)

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
        distance = here[:, None] - self.key_positions[block.keys][None, :]
        kin = self.kinship[self.query_segments[block.queries]]
        seen = (distance >= 0) & kin[:, self.key_segments[block.keys]]
        return seen if window is None else seen & (distance < window)


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
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def slots(self, forest: Forest) -> Tensor:
        """Slots of all tokens of the first pass [t]."""
        shift = torch.tensor(self.room.starts) - torch.tensor(forest.starts)
        return torch.arange(forest.tokens) + shift[forest.segments]

    def keep(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [1, h, q, d] to their slots; returns all of the layer's."""
        if layer not in self.layers:
            shape = (*key.shape[:2], self.room.tokens, key.shape[3])
            self.layers[layer] = key.new_zeros(shape), value.new_zeros((*shape[:3], value.shape[3]))
        keys, values = self.layers[layer]
        keys[:, :, slots], values[:, :, slots] = key, value
        return keys, values

    def step(self, leaves: list[int], count: int, device: torch.device) -> AttentionPlan:
        """Make the plan of a pass over one new token in each of `leaves`, its `count`-th."""
        assert count < self.reserve, f"room for {self.reserve} new tokens only"
        slots = torch.tensor(
            [self.room.starts[leaf] + self.forest.lengths[leaf] + count for leaf in leaves]
        )
        blocks, begin, wanted = [], 0, set(leaves)
        for tree in self.room.trees:
            number = sum(segment in wanted for segment in tree)
            if number:
                keys = slice(self.room.starts[tree[0]], self.room.end(tree[-1]))
                blocks.append(KeyBlock(slice(begin, begin + number), keys, causal=False))
                begin += number
        segments, positions = self.room.segments.to(device), self.room.positions.to(device)
        slots = slots.to(device)
        return AttentionPlan(
            blocks,
            segments[slots],
            positions[slots],
            segments,
            positions,
            self.room.kinship.to(device),
            cache=self,
            from_cache=True,
            slots=slots,
        )


def forest_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    forest: AttentionPlan | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention over a packed forest, as transformers' attention interface calls it.

    Args:
        module: The LM's attention layer.
        query: [1, h, q, d].
        key: [1, h', k, d], with h' dividing h.
        value: [1, h', k, d].
        attention_mask: Must be None: the forest is the mask.
        scaling: Factor of the scores.
        dropout: Dropout of the attention weights.
        forest: The plan; an LM passes it if it passes keyword arguments on to its attention.
        sliding_window: Sliding window of this layer, or None.
        others: Other options of the layer; those that would change the scores are refused.

    Returns:
        [1, q, h, d], and no weights.
    """
    plan = _plan_of(type(module).__name__, forest, attention_mask, others)
    if plan.cache is not None:
        assert plan.slots is not None
        kept = plan.cache.keep(module.layer_idx, plan.slots, key, value)
        key, value = kept if plan.from_cache else (key, value)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    outputs = []
    for index, block in enumerate(plan.blocks):
        mask = plan.mask(index, sliding_window)
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, block.queries],
                key[:, :, block.keys],
                value[:, :, block.keys],
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scaling,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _plan_of(
    name: str, plan: AttentionPlan | None, attention_mask: Tensor | None, others: dict[str, Any]
) -> AttentionPlan:
    """Return the plan of a layer, or refuse a layer with a mask or scores of its own."""
    if plan is None or attention_mask is not None:
        raise ValueError(
            f"{name} does not take part in the packed forest: it brings its own mask or drops "
            "keyword arguments. Set the LM's `attention: padded`."
        )
    refused = [key for key in ("softcap", "s_aux", "position_bias") if others.get(key) is not None]
    if refused:
        raise ValueError(
            f"{name} wants {', '.join(refused)}, which the packed forest does not do. "
            "Set the LM's `attention: padded`."
        )
    return plan


AttentionInterface.register(ATTENTION, forest_attention)
