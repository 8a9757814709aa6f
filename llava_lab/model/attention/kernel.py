"""9. Kernel: sequences of queries and keys of unlike lengths, attended in one call on a GPU."""

from collections.abc import Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

# cuDNN builds a plan, which takes about a second, for every shape that it has not seen, and a
# packed row's shape is new in every step. Whatever computes attention here (LM and encoders, in
# training, `answer` and `caption`) has imported this module, so it is said once.
torch.backends.cuda.enable_cudnn_sdp(False)

# Torch 2.11 has no such argument and takes grouped keys as they are; later releases want it. Torch
# 2.14 chooses cuDNN in `varlen_attn` by shape, but not with it; 2.15 asks the switch above.
GROUPED: dict[str, Any] = {"enable_gqa": True}
if "enable_gqa" not in signature(varlen_attn).parameters:
    GROUPED = {}


class Sequences(NamedTuple):
    """Sequences of one call: the queries of each see the keys of the same sequence only.

    Attributes:
        queries: First query of each sequence, and after all the number of queries, int32 [s + 1].
        keys: First key of each sequence, and the end of the last, int32 [s + 1].
        most_queries: Queries of the longest sequence.
        most_keys: Keys of the longest sequence.
        index: The keys' tokens where they are gathered [k]; None takes all in their order.
        blind: Queries of sequences without keys [q], or None where every sequence has some.
    """

    queries: Tensor
    keys: Tensor
    most_queries: int
    most_keys: int
    index: Tensor | None = None
    blind: Tensor | None = None

    def times(self, group: int) -> "Sequences":
        """The same with `group` queries in place of each."""
        blind = None if self.blind is None else self.blind.repeat_interleave(group)
        most = self.most_queries * group
        return self._replace(queries=self.queries * group, most_queries=most, blind=blind)


def takes(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether flash attention computes these heads; what it refuses goes by blocks.

    It runs on NVIDIA GPUs since Ampere, in bfloat16 and float16 alone, on heads of up to 256
    numbers in steps of 8 whose values are as wide as their keys, and without dropout: those are
    the checks of torch's `flash_api.cpp` and what `varlen_attn` can pass on to it.

    Args:
        query: [1, h, q, d].
        value: [1, h', k, d'].
        dropout: Dropout of the attention weights.
    """
    return (
        query.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_properties(query.device).major >= 8
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= 256
        and query.shape[-1] % 8 == 0
        and dropout == 0
    )


def attend_paths(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: Sequences,
    window: int | None,
    scaling: float | None,
) -> Tensor:
    """Attention in one call: a segment's queries see its path, aligned at the path's end [q, h, d].

    Flash attention aligns causal masks and windows at the bottom right: the last query of a
    sequence sees all its keys, and the one before it all but the last.

    Args:
        query: [q, h, d].
        key: [k, h', d], with h' dividing h.
        value: [k, h', d].
        sequences: A sequence for each segment.
        window: A query sees the `window` nearest positions, its own included; None sees all.
        scaling: Factor of the scores.
    """
    if sequences.index is not None:
        key, value = key.index_select(0, sequences.index), value.index_select(0, sequences.index)
    sides = (-1 if window is None else window - 1, 0)
    attended = varlen_attn(
        query, key, value, *sequences[:4], scale=scaling, window_size=sides, **GROUPED
    )
    assert isinstance(attended, Tensor)
    return attended


def attend_levels(
    query: Tensor, key: Tensor, value: Tensor, levels: Sequence[Sequences], scaling: float | None
) -> Tensor:
    """Attention of one new token of each answer, in one call for each level of a tree [q, h, d].

    All answers below a segment are the queries of one sequence, so that a picture's keys are read
    once for all its questions; and so are the heads that share keys. What the levels give is
    weighted by the share of the softmax's sum that each of them has.

    Args:
        query: [q, h, d].
        key: [k, h', d], with h' dividing h.
        value: [k, h', d].
        levels: The sequences of every level, each of h / h' queries for one token.
        scaling: Factor of the scores.
    """
    (tokens, heads, width), shared = query.shape, key.shape[1]
    query = query.view(tokens, shared, -1, width).transpose(1, 2).reshape(-1, shared, width)
    parts = [_attend_level(query, key, value, level, scaling) for level in levels]
    merged = _merge(parts).view(tokens, -1, shared, width).transpose(1, 2)
    return merged.reshape(tokens, heads, width).to(query.dtype)


def _attend_level(
    query: Tensor, key: Tensor, value: Tensor, level: Sequences, scaling: float | None
) -> tuple[Tensor, Tensor]:
    """One level's attention [q, h', d], and the logarithm of its sum of exponentials [q, h', 1]."""
    aux = AuxRequest(lse=True)
    attended, log_sums = varlen_attn(
        query, key, value, *level[:4], return_aux=aux, scale=scaling, **GROUPED
    )
    sums = log_sums.transpose(0, 1)[..., None]
    if level.blind is not None:  # flash attention gives infinity where there are no keys
        sums = sums.masked_fill(level.blind[:, None, None], float("-inf"))
    return attended, sums


def _merge(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over all keys from that over each part of them."""
    merged, sums = parts[0]
    for attended, more in parts[1:]:
        merged = torch.lerp(merged.float(), attended.float(), (more - sums).sigmoid())
        sums = torch.logaddexp(sums, more)
    return merged


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to a device, where neither waits for the other."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
