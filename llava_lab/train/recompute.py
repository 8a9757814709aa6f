"""Recompute: which of a layer's activations gradient checkpointing keeps."""

import inspect
from typing import Any, Literal

import torch
import torch.nn.attention.varlen  # registers its operation
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers.modeling_layers import GradientCheckpointingLayer

aten = torch.ops.aten
ATTENTIONS = (
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
)


def recompute(lm: Any, kept: bool | Literal["products"]) -> None:
    """Have an LM of transformers recompute its activations, or keep them all.

    Args:
        lm: The LM.
        kept: `gradient_checkpointing` of a stage.
    """
    if kept:
        options = {"context_fn": keep_products} if kept == "products" else {}
        lm.gradient_checkpointing_enable({"use_reentrant": False, **options})
    elif any(getattr(each, "gradient_checkpointing", False) for each in lm.modules()):
        lm.gradient_checkpointing_disable()


def recompute_frozen(lm: Any) -> None:
    """Have frozen layers recomputed, too: transformers asks for the mode of a layer.

    What is in a layer stays in evaluation mode, so that nothing is computed otherwise; a layer that
    asks for its own mode stays in it, too.
    """
    for layer in lm.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            forward = inspect.unwrap(type(layer).forward)
            layer.training |= "self.training" not in inspect.getsource(forward)


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
