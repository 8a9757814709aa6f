"""Hub: a configuration of transformers' Llava, LlavaNext or LlavaNextVideo -> our parts."""

from pathlib import Path
from typing import Any

from llava_lab.convert.config import lm_config, made, refuse_unknown, require, words
from llava_lab.convert.files import read_json
from llava_lab.convert.parts import class_of
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.clip import ClipEncoder
from llava_lab.model.encoder.siglip import SiglipEncoder
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
# Ids and counts for its processor, which our chat and layouts compute; whether embeddings are tied,
# which the LM's own configuration decides.
NEUTRAL = words("""
    bos_token_id eos_token_id hidden_size ignore_index image_seq_length image_token_id
    image_token_index pad_token_id tie_word_embeddings use_image_newline_parameter video_seq_length
    video_token_id video_token_index vocab_size
    """)
# Keys of a tower without effect here: text tower, dropout in training, pooled output.
TOWER_NEUTRAL = words("attention_dropout dropout num_channels projection_dim vision_use_head")
TOWER_NEUTRAL |= {"bos_token_id", "eos_token_id", "pad_token_id", "vocab_size"}


def hub_parts(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Convert a configuration to our parts.

    Args:
        path: File of the configuration.
        config: Its content.

    Raises:
        ValueError: If our parts cannot have the value of a key.
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
    encoder = _encoder(whole, config.get("vision_config") or {}, place)
    views = _views(path, whole)
    _check_processor(path.parent, whole, ENCODERS[whole.vision_config.model_type])
    return {
        "encoder": encoder,
        "connector": class_of(MLP, depth=2),
        "llm": class_of(CausalLM, name=None, pretrained=False, config=llm),
        "newline": kind != "llava",
        "views": views,
    }


def _encoder(whole: Any, given: dict[str, Any], place: str) -> dict[str, Any]:
    view_spec, layer = whole.vision_config, whole.vision_feature_layer
    if view_spec.model_type not in ENCODERS or not isinstance(layer, int):
        raise ValueError(
            f"{place}: a tower of type {view_spec.model_type} with layer {layer}; towers are "
            f"{', '.join(ENCODERS)} with one layer"
        )
    refuse_unknown(given, TOWER_KEYS, f"{place}, vision_config", TOWER_NEUTRAL)
    if (channels := getattr(view_spec, "num_channels", 3)) != 3:
        raise ValueError(f"{place}: vision_config.num_channels is {channels}; pictures have 3")
    strategy = whole.vision_feature_select_strategy
    if strategy not in ("default", "full"):
        raise ValueError(f"{place}: vision_feature_select_strategy {strategy!r} is not read")
    encoder = ENCODERS[view_spec.model_type]
    if strategy == "default" and not encoder.has_cls:
        raise ValueError(
            f"{place}: vision_feature_select_strategy 'default' drops a {view_spec.model_type}'s "
            "first patch, for it has no CLS feature; 'full' is read"
        )
    return class_of(
        encoder,
        name=None,
        layer=layer,
        cls=encoder.has_cls and strategy == "full",
        pretrained=False,
        config={key: getattr(view_spec, key) for key in TOWER_KEYS},
    )


def _views(path: Path, whole: Any) -> dict[str, Any]:
    if whole.model_type == "llava":
        found, _ = _image_processor(path.parent)
        size = found.get("size")
        squash = isinstance(size, dict) and "height" in size
        pads = found.get("do_pad")
        return class_of(Pad) if pads else class_of(Square, resize="squash" if squash else "crop")
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


def _image_processor(folder: Path) -> tuple[dict[str, Any], str]:
    """Read the image processor's configuration, of either version of transformers; and its file."""
    path = folder / "preprocessor_config.json"
    if path.is_file():
        return read_json(path), str(path)
    path = folder / "processor_config.json"
    if not path.is_file():
        return {}, str(path)
    return require(read_json(path), "image_processor", dict, str(path)) or {}, str(path)


def _check_processor(folder: Path, whole: Any, encoder: Any) -> None:
    """Refuse an image processor that prepares images in another way than our views.

    Raises:
        ValueError: If colours, sizes, steps or grids differ from the model's.
    """
    found, place = _image_processor(folder)
    side = whole.vision_config.image_size
    wanted: dict[str, tuple[Any, ...]] = {
        "image_mean": (list(encoder.mean),),
        "image_std": (list(encoder.std),),
        "resample": (3,),  # bicubic
        "rescale_factor": (1 / 255,),
        "size": (side, {"shortest_edge": side}, {"height": side, "width": side}),
        "crop_size": (side, {"height": side, "width": side}),
        **{f"do_{step}": (True,) for step in ("resize", "rescale", "normalize")},
    }
    if "size" not in found or "shortest_edge" in (require(found, "size", (dict, int), place) or {}):
        wanted["do_center_crop"] = (True,)
    if hasattr(whole, "image_grid_pinpoints"):
        wanted["image_grid_pinpoints"] = (whole.image_grid_pinpoints,)
    for key, values in wanted.items():
        value = found.get(key)
        if value is not None and not any(_same(value, each) for each in values):
            raise ValueError(
                f"{place}: {key} is {value!r}, and the model sees by {values[0]!r}; no views of "
                "ours does both"
            )


def _same(value: Any, wanted: Any) -> bool:
    """Whether JSON values are equal, numbers to the precision of files."""
    if isinstance(value, list) and isinstance(wanted, (list, tuple)):
        return len(value) == len(wanted) and all(map(_same, value, wanted))
    if isinstance(value, float) and isinstance(wanted, float):
        return abs(value - wanted) < 1e-6
    return type(value) is type(wanted) and value == wanted
