"""Recompute: which of a layer's activations gradient checkpointing keeps."""

from typing import Any

import torch
import torch.nn.attention.varlen  # registers its operation
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

aten = torch.ops.aten
ATTENTIONS = (
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
)


def keep_products() -> Any:
    """Contexts of a checkpointed layer that keep attention and wide matrix products."""
    return create_selective_checkpoint_contexts(_is_expensive)


def _is_expensive(
    context: Any, operation: Any, *arguments: Any, **options: Any
) -> CheckpointPolicy:
    """Attention, and matrix products; but not those that come out narrower than they went in.

    Keys and values of few heads are cheap, and nothing in its layer needs the last product.
    """
    product = operation in (aten.mm.default, aten.addmm.default)
    narrow = product and arguments[-1].shape[1] < arguments[-2].shape[1]
    if operation in ATTENTIONS or (product and not narrow):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
