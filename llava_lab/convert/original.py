"""Original: a configuration of haotian-liu/LLaVA or LLaVA-NeXT -> our parts.

It holds the LM's keys beside the multimodal ones. Each key is converted, known to be without effect
on a trained model, or refused by its name.
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from llava_lab.convert.config import ANY, lm_config, require, words
from llava_lab.convert.parts import class_of
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames, Newlines
from llava_lab.model.connector.linear import Linear
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.base import Encoder
from llava_lab.model.encoder.clip import ClipEncoder
from llava_lab.model.encoder.siglip import SiglipEncoder
from llava_lab.model.llm import CausalLM

# Model types -> the type of their LM.
MODELS = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}
# Keys of videos: one that says something gives the model views of them.
VIDEO = words("""
    add_time_instruction mm_newline_position mm_pooling_position mm_spatial_pool_mode
    mm_spatial_pool_stride
    """)
CONVERTED = VIDEO | words("""
    image_aspect_ratio image_grid_pinpoints mm_patch_merge_type mm_projector_type mm_resampler_type
    mm_tunable_parts mm_vision_select_feature mm_vision_select_layer mm_vision_tower
    tokenizer_model_max_length unfreeze_mm_vision_tower
    """)
# Keys of training, keys that follow from the tensors (widths), and keys of modes that are refused.
# `mm_use_im_patch_token` adds a token to the vocabulary that no prompt has.
NEUTRAL = words("""
    faster_token_stride force_sample freeze_backbone freeze_mm_mlp_adapter
    freeze_mm_vision_resampler image_crop_resolution image_split_resolution max_sequence_length
    mm_hidden_size mm_projector_lr mm_spatial_pool_out_channels mm_use_im_patch_token
    mm_vision_tower_lr pos_skipping_range pretrain_mm_mlp_adapter tokenizer_padding_side
    tune_mm_mlp_adapter tune_mm_vision_resampler tune_mm_vision_tower use_mm_proj
    use_pos_skipping vision_tower_pretrained
    """)
# Features that our parts lack, and the values that switch them off.
REFUSED = {
    "mm_use_im_start_end": ("marks of their own around a picture", (None, False)),
    "sep_image_conv_front": ("a picture before the conversation", (None, False)),
    "patchify_video_feature": ("frames cut into patches", (None, False)),
    "add_faster_video": ("two rates of frames", (None, False)),
    "mm_resampler_type": ("that resampler", (None, "identity", "spatial_pool")),
    "mm_vision_select_feature": ("those features", (None, "patch", "cls_patch")),
    "mm_patch_merge_type": (
        "tiles put together so",
        (None, *(f"{m}{n}" for m in ("flat", "spatial", "spatial_unpad") for n in ("", "_nobase"))),
    ),
}


def original_parts(
    path: Path, config: dict[str, Any], tensors: Mapping[str, Any]
) -> dict[str, Any]:
    """Convert a configuration to our parts; a frozen tower is named, not contained.

    Args:
        path: File of the configuration.
        config: Its content.
        tensors: Tensors of the checkpoint, under our names.

    Raises:
        ValueError: If our parts cannot have the value of a key.
    """
    place = str(path)
    kind = require(config, "model_type", str, place)
    if kind not in MODELS:
        raise ValueError(f"{place}: model_type {kind!r}; known are {', '.join(MODELS)}")
    for key, (what, harmless) in REFUSED.items():
        if not any(config.get(key) is value or config.get(key) == value for value in harmless):
            raise ValueError(f"{place}: {key} is {config[key]!r}: {what} is not converted")
    tower = require(config, "mm_vision_tower", str, place)
    if not tower:
        raise ValueError(f"{place}: mm_vision_tower is missing, so the vision tower is not known")
    _refuse_lost_parts(config, tensors, place)
    encoder = SiglipEncoder if "siglip" in tower else ClipEncoder
    layer = require(config, "mm_vision_select_layer", int, place)
    if encoder is SiglipEncoder or layer is None:
        layer = -2  # the released code drops SigLIP's last block, whatever the key says
    return {
        "encoder": class_of(
            encoder,
            name=tower,
            layer=layer,
            cls=config.get("mm_vision_select_feature") == "cls_patch",
        ),
        "connector": _connector(config, tensors, place),
        "llm": class_of(CausalLM, **_llm(config, MODELS[kind], tensors, place)),
        "newline": "newline.weight" in tensors,
        "views": _views(config, encoder, place),
    }


def _refuse_lost_parts(config: dict[str, Any], names: Iterable[str], place: str) -> None:
    """Refuse a tower or an LM that was trained but is missing in the checkpoint."""
    parts = require(config, "mm_tunable_parts", str, place) or ""
    tower = config.get("unfreeze_mm_vision_tower") or "mm_vision_tower" in parts
    if tower and not any(name.startswith("encoder.") for name in names):
        raise ValueError(
            f"{place}: unfreeze_mm_vision_tower or mm_tunable_parts says that the tower was "
            "trained, and the checkpoint holds no tensor of it; its answers would be another's"
        )
    # Code before mm_tunable_parts trained the LM unless it was told not to.
    unfrozen = config.get("tune_mm_mlp_adapter") is False and not config.get("freeze_backbone")
    lm = "mm_language_model" in parts if parts else unfrozen
    if lm and not any(name.startswith("llm.") for name in names):
        raise ValueError(
            f"{place}: {'mm_tunable_parts' if parts else 'tune_mm_mlp_adapter: false'} says that "
            "the LM was trained, and the checkpoint holds no tensor of it; its base LM would "
            "answer. Fetch all weights of the checkpoint"
        )


def _connector(config: dict[str, Any], names: Iterable[str], place: str) -> dict[str, Any]:
    """Connector of the configuration, with the depth of its tensors."""
    kind = require(config, "mm_projector_type", str, place) or "linear"
    found = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if kind != "linear" and not found:
        raise ValueError(f"{place}: mm_projector_type {kind!r}; linear and mlpNx_gelu are read")
    layers = [int(m[1]) for name in names if (m := re.match(r"connector\.(\d+)", name))]
    there = max(layers) // 2 + 1 if layers else 1
    if there != (named := int(found[1]) if found else 1):
        raise ValueError(
            f"{place}: mm_projector_type {kind!r} has {named} layers, the checkpoint's {there}"
        )
    return class_of(MLP, depth=there) if layers else class_of(Linear)


def _llm(config: dict[str, Any], kind: str, names: Iterable[str], place: str) -> dict[str, Any]:
    """Arguments of the LM: its configuration, or the name of its base LM."""
    multimodal = CONVERTED | NEUTRAL | REFUSED.keys()
    found = {key: value for key, value in config.items() if key not in multimodal - ANY}
    converted = lm_config(found, kind, place)
    length = require(config, "tokenizer_model_max_length", int, place)
    most = {} if length is None else {"max_length": length}
    if any(name.startswith("llm.") for name in names):
        return {"name": None, "config": converted, "pretrained": False, **most}
    return {"name": config.get("_name_or_path"), **most}


def _views(config: dict[str, Any], encoder: type[Encoder], place: str) -> dict[str, Any]:
    """Views of images; and of videos, if the configuration says anything of them."""
    square = class_of(Square, resize=encoder.resize)
    aspect = require(config, "image_aspect_ratio", str, place) or "square"
    merge = config.get("mm_patch_merge_type") or "flat"
    if found := re.fullmatch(r"anyres(?:_max_(\d+))?", aspect):
        pictures = _anyres(config, merge, found[1], place)
    elif aspect not in ("pad", "square"):
        raise ValueError(f"{place}: image_aspect_ratio {aspect!r} is not read yet")
    elif "unpad" in merge:
        raise ValueError(
            f"{place}: mm_patch_merge_type {merge!r} with image_aspect_ratio {aspect!r}: "
            "LLaVA-NeXT ends such a picture with a newline, which no views of ours does. Set it to "
            "'flat' in a copy of the file if the model was trained by code without, as LLaVA's"
        )
    else:
        pictures = class_of(Pad) if aspect == "pad" else square
    pooled = config.get("mm_resampler_type") == "spatial_pool"
    if not pooled and not any(config.get(key) for key in VIDEO):
        return pictures
    # The first released code pooled with a resampler, before the projector and without newlines;
    # later code does neither.
    mode = _one_of(config, "mm_spatial_pool_mode", ("average", "max", "bilinear"), place)
    position = _one_of(config, "mm_pooling_position", ("before", "after"), place)
    newline = _one_of(config, "mm_newline_position", get_args(Newlines), place)
    newline = newline or ("no_token" if pooled else "one_token")
    return class_of(
        Frames,
        stride=_stride(config, pooled, place),
        mode=mode or "average",
        position=position or ("before" if pooled else "after"),
        newline=newline if "unpad" in merge else "no_token",  # where there is no newline to put
        time_instruction=bool(require(config, "add_time_instruction", bool, place)),
        frame=square,
        image=pictures,
    )


def _one_of(config: dict[str, Any], key: str, known: Sequence[str], place: str) -> str | None:
    """The value of a key, one of those that are known; None where it says nothing."""
    value = require(config, key, str, place) or None
    if value is not None and value not in known:
        raise ValueError(f"{place}: {key} {value!r}; {', '.join(known)} are read")
    return value


def _stride(config: dict[str, Any], pooled: bool, place: str) -> int:
    """Pooling of frames: the resampler's, or the 2 of later code, which reads no key for it."""
    stride = require(config, "mm_spatial_pool_stride", int, place)
    if stride is None or stride == 2 or pooled:
        return 2 if stride is None else stride
    raise ValueError(
        f"{place}: mm_spatial_pool_stride is {stride}, and without a resampler the released code "
        "pools frames by 2, whatever it says. Set it to 2 in a copy of the file; --stride, or "
        "data.views.stride, takes another"
    )


def _anyres(config: dict[str, Any], merge: str, most: str | None, place: str) -> dict[str, Any]:
    grids = require(config, "image_grid_pinpoints", (str, list), place)
    if not grids:
        raise ValueError(f"{place}: image_aspect_ratio is anyres, without image_grid_pinpoints")
    try:
        if isinstance(grids, str) and grids.lstrip().startswith("["):
            grids = ast.literal_eval(grids)
        if not isinstance(grids, str):
            grids = [[int(side) for side in pair] for pair in grids]
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"{place}: image_grid_pinpoints {str(grids)[:80]!r} are no pairs of pixels"
        ) from error
    return class_of(
        AnyRes,
        grids=grids,
        merge=merge.removesuffix("_nobase"),
        base="nobase" not in merge,
        max_tiles=int(most) if most is not None and "unpad" in merge else None,
    )
