"""10. Cross-entropy: hidden states [m, d] and a head -> each target's loss, logits in blocks.

Logits are the largest tensor of a step where a vocabulary is large: of 8,192 targets over 152,064
words they are 5 GB in 32 bits, and as much again for their softmax and for their gradient. Here
so many are computed a block of words at a time, and once more in the backward pass.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Targets x words of a block. Logits that make one are computed whole, and not again.
BLOCK = 2**26


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Cross-entropy [m] of each target under softmax(hidden @ weight.T + bias).

    The softmax has 32 bits or more, whatever the logits have. What it takes beside its arguments
    and their gradients is bounded by `BLOCK`, whatever the number of targets and of words.

    Args:
        hidden: Hidden states [m, d].
        weight: Weight of the head [v, d].
        targets: The right words [m], each below v.
        bias: Bias of the head [v].
    """
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        low = torch.get_autocast_dtype(kind)
        hidden, weight = hidden.to(low), weight.to(low)
        bias = None if bias is None else bias.to(low)
    with torch.autocast(kind, enabled=False):
        if len(targets) * len(weight) > BLOCK:
            return _InBlocks.apply(hidden, weight, targets, bias)
        logits = functional.linear(hidden, weight, bias)
        return functional.cross_entropy(logits.to(_wide(logits)), targets, reduction="none")


class _InBlocks(torch.autograd.Function):
    """The losses, block by block of words.

    Blocks are of words and not of targets: so every block of the head's gradient is one product,
    which is rounded once and written into its place.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None
    ) -> Tensor:
        whole = right = hidden.new_zeros(len(targets), dtype=_wide(hidden))
        whole, right = whole - torch.inf, right + torch.nan
        for _, logits, place, here in _blocks(hidden, weight, targets, bias):
            top = logits.amax(1, keepdim=True).to(whole.dtype)
            sums = torch.sub(logits, top).exp_().sum(1)
            whole = torch.logaddexp(whole, sums.log_().add_(top[:, 0]))
            right = torch.where(here, logits.gather(1, place)[:, 0], right)
            del logits  # before the next are made
        ctx.save_for_backward(hidden, weight, targets, bias, whole)
        return whole - right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph=True
            raise RuntimeError("cross-entropy in blocks has no second derivative")
        hidden, weight, targets, bias, whole = ctx.saved_tensors
        needs_hidden, needs_weight, _, needs_bias = ctx.needs_input_grad
        of_hidden = torch.zeros_like(hidden, dtype=whole.dtype) if needs_hidden else None
        of_weight = torch.empty_like(weight) if needs_weight else None
        of_bias = torch.empty_like(bias) if needs_bias else None
        for words, logits, place, here in _blocks(hidden, weight, targets, bias):
            wrong = torch.sub(logits, whole[:, None]).exp_()
            wrong.scatter_add_(1, place, -here[:, None].to(wrong.dtype))
            wrong.mul_(gradients[0][:, None])
            if of_bias is not None:
                of_bias[words] = wrong.sum(0)
            wrong = wrong.to(logits.dtype)
            if of_hidden is not None:
                of_hidden += wrong @ weight[words]
            if of_weight is not None:
                torch.mm(wrong.T, hidden, out=of_weight[words])
            del logits, wrong
        of_hidden = None if of_hidden is None else of_hidden.to(hidden.dtype)
        return of_hidden, of_weight, None, of_bias


def _blocks(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Words, their logits [m, w], each target's place [m, 1] among them, and whether it is there.

    A multiple of 64 words, as products of other widths are slower in 16 bits on GPUs.
    """
    size = max(64, BLOCK // len(targets) // 64 * 64)
    for start in range(0, len(weight), size):
        words = slice(start, min(start + size, len(weight)))
        logits = functional.linear(hidden, weight[words], None if bias is None else bias[words])
        place = targets - start
        here = (place >= 0) & (place < logits.shape[1])
        yield words, logits, place.clamp(0, logits.shape[1] - 1)[:, None], here
        del logits


def _wide(tensor: Tensor) -> torch.dtype:
    """The type that sums of a tensor's values are taken in."""
    return torch.promote_types(tensor.dtype, torch.float32)
