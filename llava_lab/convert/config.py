"""Config: a released configuration -> one for this transformers; unknown keys are refused.

Version 4 of transformers wrote `rope_theta`, `rope_scaling` and `torch_dtype` where 5 writes
`rope_parameters` and `dtype`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llava_lab.model.lm_files import made


def words(text: str) -> frozenset[str]:
    """Split a text into words."""
    return frozenset(text.split())


# Keys that transformers writes into every configuration and no forward pass reads: origin of the
# model, options of `generate`, heads of other tasks, how it is run.
ANY = words("""
    _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled
    _name_or_path _experts_implementation architectures attn_implementation auto_map
    bad_words_ids begin_suppress_tokens chunk_size_feed_forward decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    id2label initializer_factor initializer_range label2id length_penalty max_length min_length
    model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores prefix pretraining_tp problem_type
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tokenizer_class top_k top_p
    torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache
    """)
# Keys without effect on the LM, left out of a file that people read.
IDLE = ("transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype")
ROPE = ("rope_theta", "rope_scaling")


def refuse_unknown(
    config: Mapping[str, Any], known: Iterable[str], place: str, neutral: Iterable[str] = ()
) -> None:
    """Refuse keys that are neither converted nor known to be without effect, unless they are off.

    Args:
        config: The configuration.
        known: Keys that are converted.
        place: Its file, for the message.
        neutral: Keys without effect, in addition to those of every configuration.
    """
    fine = ANY.union(known, neutral)
    unknown = [
        f"{key} ({value!r})"
        for key, value in config.items()
        if key not in fine and value is not None and value is not False
    ]
    if unknown:
        raise ValueError(
            f"{place}: {len(unknown)} keys that are not converted, and may change what the model "
            f"computes: {', '.join(unknown)}. Take out what has no effect in a copy of the file"
        )


def require(config: Mapping[str, Any], key: str, kind: type | tuple[type, ...], place: str) -> Any:
    """Read a value of the right type, or None if the key is missing."""
    value = config.get(key)
    whole = kind in (int, float) and isinstance(value, bool)
    if value is None or (isinstance(value, kind) and not whole):
        return value
    kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
    raise ValueError(f"{place}: {key} is {value!r}, not {kinds}")


def lm_config(found: Mapping[str, Any], kind: str, place: str) -> dict[str, Any]:
    """Convert an LM's configuration of any version of transformers to that of this one.

    Args:
        found: The LM's keys.
        kind: The LM's model type.
        place: The file, for messages.

    Raises:
        ValueError: If the LM does not know a key, or cannot have its value.
    """
    try:
        plain = AutoConfig.for_model(kind)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{place}: transformers knows no LM of type {kind!r}") from error
    fields = {*type(plain).__dataclass_fields__, *plain.attribute_map}
    if "rope_parameters" in fields:
        fields.update((*ROPE, "partial_rotary_factor"))
    values = {k: v for k, v in found.items() if k in fields and k not in ("model_type", *IDLE)}
    head = _head_width(found)
    refuse_unknown({k: v for k, v in found.items() if (k, v) != ("head_dim", head)}, fields, place)
    if found.get("quantization_config"):
        raise ValueError(
            f"{place}: quantization_config: the weights are quantized; take the checkpoint that "
            "they were made from"
        )
    if rope := _rope(found, place):
        values = {key: value for key, value in values.items() if key not in ROPE}
        values["rope_parameters"] = rope
    config = made(kind, values, place)
    return {key: value for key, value in config.to_diff_dict().items() if key not in IDLE}


def _rope(found: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Convert version 4's keys of the rotary embedding to version 5's."""
    theta = require(found, "rope_theta", (int, float), place)
    scaling = require(found, "rope_scaling", dict, place)
    rope = dict(require(found, "rope_parameters", dict, place) or scaling or {})
    if scaling and found.get("rope_parameters"):
        raise ValueError(f"{place}: holds rope_scaling and rope_parameters; one of them has to go")
    if "type" in rope:
        rope.setdefault("rope_type", rope["type"])
        del rope["type"]
    kind = rope.get("rope_type", "default")
    if kind != "default" and kind not in ROPE_INIT_FUNCTIONS:
        raise ValueError(
            f"{place}: rope_scaling or rope_parameters is of type {kind!r}; transformers has "
            f"{', '.join(ROPE_INIT_FUNCTIONS)}"
        )
    if theta is not None and rope.setdefault("rope_theta", theta) != theta:
        raise ValueError(
            f"{place}: rope_theta is {theta}, and {rope['rope_theta']} in rope_parameters; one of "
            "them has to go"
        )
    return rope


def _head_width(config: Mapping[str, Any]) -> int | None:
    """Width of a head by the other keys: the one `head_dim` of LMs that do not read that key."""
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return width // heads if isinstance(width, int) and isinstance(heads, int) and heads else None
