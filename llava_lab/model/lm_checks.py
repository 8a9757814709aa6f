"""9. LM checks: what of an LM the packed forest and the losses cannot compute, refused by name."""

from typing import Any

from torch import nn

# By what LMs scale or cap their logits.
SCALES = (
    *("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier"),
    *("logits_soft_cap", "output_logit_soft_cap", "logits_mup_width_multiplier"),
)
# Kinds of layers in which a token sees what attention lets it see, and nothing else.
ATTENDING = {"attention", "full_attention", "sliding_attention"}


def check_lm(model: Any, attention: str) -> None:
    """Refuse an LM whose logits or whose attention would come out as another's.

    Args:
        model: An LM of transformers.
        attention: See `CausalLM`.

    Raises:
        ValueError: Says what it is, and what to set where anything helps.
    """
    kind, config = type(model).__name__, model.config
    for key in SCALES:
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise ValueError(f"{kind} scales its logits ({key}), which losses here do not do")
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    known = {id(weight) for part in (decoder, head) for weight in part.parameters()}
    between = [name for name, weight in model.named_parameters() if id(weight) not in known]
    if between or decoder is model:
        raise ValueError(
            f"{kind} has more than a decoder and an output layer ({between[:1] or kind}), which "
            "losses here would leave out"
        )
    if attention != "forest":
        return
    if not getattr(model, "_supports_attention_backend", False):
        raise ValueError(
            f"{kind} does not use transformers' attention interface, so the packed forest "
            "cannot reach it. Set model.llm.attention to padded."
        )
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    if capped or any(name.endswith("sinks") for name, _ in model.named_parameters()):
        own = "caps its attention's scores" if capped else "has attention sinks"
        raise ValueError(
            f"{kind} {own}, which the packed forest does not do. Set model.llm.attention to padded."
        )
    others = set(getattr(config.get_text_config(), "layer_types", None) or ()) - ATTENDING
    if not others and _mixes(decoder):  # releases of transformers name layers otherwise, or not
        others = {"convolution"}
    if others:
        raise ValueError(
            f"{kind} has layers of {', '.join(sorted(others))}, in which tokens of a packed row "
            "would see the rows before theirs. Set model.llm.attention to padded."
        )


def _mixes(decoder: nn.Module) -> bool:
    """Whether a layer convolves tokens with those before them, as recurrent layers do."""
    stacks = [each for each in decoder.children() if isinstance(each, nn.ModuleList)]
    modules = (module for stack in stacks for module in stack.modules())
    return any(isinstance(each, nn.Conv1d) and each.kernel_size != (1,) for each in modules)


def rope_window(config: Any) -> int | None:
    """Longest row whose rotary frequencies are its own; None where those of any row are.

    `longrope` and `dynamic` RoPE choose the frequencies of a pass by its longest row.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [each for each in rope.values() if each]
    windows = [
        each["original_max_position_embeddings"]
        if each["rope_type"] == "longrope"
        else config.max_position_embeddings
        for each in kinds
        if each["rope_type"] in ("longrope", "dynamic")
    ]
    return min(windows, default=None)


def lost_window(layer: Any, passed: int | None) -> bool:
    """Whether a layer has a sliding window that it leaves to a mask, and tells attention nothing.

    Args:
        layer: An attention layer.
        passed: The window that it hands to attention.
    """
    config = getattr(layer, "config", None)
    if passed is not None or not getattr(config, "sliding_window", None):
        return False
    kinds = getattr(config, "layer_types", None)
    return kinds is None or kinds[layer.layer_idx] == "sliding_attention"
