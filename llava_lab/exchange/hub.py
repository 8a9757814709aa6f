"""13c. Hub: a configuration of transformers' Llava, LlavaNext or LlavaNextVideo -> our parts."""

from pathlib import Path
from typing import Any

from llava_lab.data.anyres import AnyRes
from llava_lab.data.image import Pad, Square
from llava_lab.data.video import Frames
from llava_lab.exchange.config import lm_config, made, refuse_unknown, require, words
from llava_lab.exchange.files import read_json
from llava_lab.exchange.parts import class_of
from llava_lab.model.connector import MLP
from llava_lab.model.encoder import ClipEncoder, SiglipEncoder
from llava_lab.model.llm import CausalLM

MODELS = ("llava", "llava_next", "llava_next_video")
ENCODERS = {"clip_vision_model": ClipEncoder, "siglip_vision_model": SiglipEncoder}
TOWER_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size", "hidden_act", "layer_norm_eps"),
)
CONVERTED = words("""
    image_grid_pinpoints multimodal_projector_bias projector_hidden_act spatial_pool_mode
    spatial_pool_stride text_config vision_config vision_feature_layer
    vision_feature_select_strategy
    """)
# Ids and counts that its processor needs and our own chat and layouts have; whether embeddings are
# tied, which the LM's own configuration decides.
NEUTRAL = words("""
    bos_token_id eos_token_id hidden_size ignore_index image_seq_length image_token_id
    image_token_index pad_token_id tie_word_embeddings use_image_newline_parameter video_seq_length
    video_token_id video_token_index vocab_size
    """)
# Of a tower: the text tower beside it, dropout in training, the pooled output.
TOWER_NEUTRAL = words("attention_dropout dropout num_channels projection_dim vision_use_head")
TOWER_NEUTRAL |= {"bos_token_id", "eos_token_id", "pad_token_id", "vocab_size"}


def hub_parts(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Parts of a checkpoint.

    Args:
        path: The configuration's file.
        config: What it holds.

    Raises:
        ValueError: If a key holds what our parts cannot be.
    """
    place = str(path)
    kind = require(config, "model_type", str, place)
    if kind not in MODELS:
        raise ValueError(f"{place}: model_type {kind!r} is not read; {', '.join(MODELS)} are")
    refuse_unknown(config, CONVERTED, place, NEUTRAL)
    for key in ("text_config", "vision_config"):
        require(config, key, dict, place)
    if config.get("quantization_config"):
        raise ValueError(f"{place}: quantization_config: take the checkpoint it was made from")
    values = {key: value for key, value in config.items() if key in CONVERTED}
    whole = made(kind, values, place)
    if whole.projector_hidden_act != "gelu" or not whole.multimodal_projector_bias:
        raise ValueError(
            f"{place}: projector_hidden_act {whole.projector_hidden_act!r} with bias "
            f"{whole.multimodal_projector_bias}; our MLP has an exact GELU and biases"
        )
    text = config["text_config"] or {}
    family = require(text, "model_type", str, place) or whole.text_config.model_type
    llm = lm_config(text, family, f"{place}, text_config")
    return {
        "encoder": _encoder(whole, config.get("vision_config") or {}, place),
        "connector": class_of(MLP, depth=2),
        "llm": class_of(CausalLM, name=None, pretrained=False, config=llm),
        "newline": kind != "llava",
        "policy": _policy(path, whole),
    }


def _encoder(whole: Any, given: dict[str, Any], place: str) -> dict[str, Any]:
    vision, layer = whole.vision_config, whole.vision_feature_layer
    if vision.model_type not in ENCODERS or not isinstance(layer, int):
        raise ValueError(
            f"{place}: a tower of type {vision.model_type} with layer {layer}; towers are "
            f"{', '.join(ENCODERS)} with one layer"
        )
    refuse_unknown(given, TOWER_KEYS, f"{place}, vision_config", TOWER_NEUTRAL)
    if (channels := getattr(vision, "num_channels", 3)) != 3:
        raise ValueError(f"{place}: vision_config.num_channels is {channels}; pictures have 3")
    strategy = whole.vision_feature_select_strategy
    if strategy not in ("default", "full"):
        raise ValueError(f"{place}: vision_feature_select_strategy {strategy!r} is not read")
    encoder = ENCODERS[vision.model_type]
    if strategy == "default" and not encoder.has_cls:
        raise ValueError(
            f"{place}: vision_feature_select_strategy 'default' drops a {vision.model_type}'s "
            "first patch, for it has no CLS feature; 'full' is read"
        )
    return class_of(
        encoder,
        name=None,
        layer=layer,
        cls=encoder.has_cls and strategy == "full",
        pretrained=False,
        config={key: getattr(vision, key) for key in TOWER_KEYS},
    )


def _policy(path: Path, whole: Any) -> dict[str, Any]:
    if whole.model_type == "llava":
        return _as_processor(path.parent)
    # transformers reads the pairs as height and width.
    pictures = class_of(AnyRes, grids=whole.image_grid_pinpoints, ties="transformers")
    if whole.model_type == "llava_next":
        return pictures
    if whole.spatial_pool_mode not in ("average", "max"):
        raise ValueError(
            f"{path}: spatial_pool_mode {whole.spatial_pool_mode!r}; average and max are read"
        )
    return class_of(
        Frames,
        stride=whole.spatial_pool_stride,
        mode=whole.spatial_pool_mode,
        position="before",
        newline="no_token",
        image=pictures,
    )


def _as_processor(folder: Path) -> dict[str, Any]:
    """The policy that does what the checkpoint's image processor does."""
    path = folder / "preprocessor_config.json"
    found = read_json(path) if path.is_file() else {}
    if not found and (folder / "processor_config.json").is_file():
        path = folder / "processor_config.json"
        found = require(read_json(path), "image_processor", dict, str(path)) or {}
    size = require(found, "size", (dict, int), str(path))
    if found.get("do_pad"):
        return class_of(Pad)
    squash = isinstance(size, dict) and "height" in size
    return class_of(Square, resize="squash" if squash else "crop")
