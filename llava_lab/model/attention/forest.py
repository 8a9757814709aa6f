"""9. Forest attention: queries, keys and values of a packed forest -> outputs, with a cache."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from llava_lab.model.attention.cache import LayerKind
from llava_lab.model.attention.kernel import takes
from llava_lab.model.attention.plan import AttentionPlan
from llava_lab.model.lm_checks import lost_window

ATTENTION = "llava_lab_forest"


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

    Where flash attention takes the heads, one call computes all of them. Elsewhere (CPUs, float32,
    dropout), every block of the plan is a call of its own.

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
    if lost_window(module, sliding_window):
        raise ValueError(
            f"{type(module).__name__} has a sliding window that it leaves to a mask, which the "
            "packed forest does not take. Set the LM's `attention: padded`."
        )
    if query.is_cuda and torch.is_autocast_enabled("cuda"):  # which knows torch's attention only
        dtype = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    fused = plan.fuses(sliding_window) and takes(query, value, dropout)
    if plan.cache is not None:
        layer = LayerKind(query.shape[1] // key.shape[1], sliding_window, fused)
        plan.cache.kinds.add(layer)
        key, value = plan.keep(module.layer_idx, key, value)
    if fused:
        q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
        return plan.attend(q, k, v, sliding_window, scaling)[None], None
    outputs = _blocks(plan, query, key, value, sliding_window, dropout, scaling)
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _blocks(
    plan: AttentionPlan,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    window: int | None,
    dropout: float,
    scaling: float | None,
) -> list[Tensor]:
    """Attention of each block of the plan [1, h, q, d].

    Tokens are split, not sliced: a slice's gradient is a tensor of zeros as long as the row, and
    a split's is one concatenation.
    """
    grouped = query.device.type == "cpu" and not torch.is_grad_enabled()
    if not grouped:  # gradients of grouped heads would be summed in another order
        groups = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (key, value))
    trees = [sum(plan.forest.lengths[i] for i in tree) for tree in plan.forest.trees]
    keys, values = key.split(trees, 2), value.split(trees, 2)
    queries = query.split([block.queries.stop - block.queries.start for block in plan.blocks], 2)
    outputs = []
    for index, (block, own) in enumerate(zip(plan.blocks, queries, strict=True)):
        seen, mask = block.keys.stop - block.keys.start, plan.mask(index, window)
        pair = [keys[block.tree], values[block.tree]]
        if seen < trees[block.tree]:
            pair = [each[:, :, :seen] for each in pair]
        outputs.append(
            scaled_dot_product_attention(
                own,
                *pair,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return outputs


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
