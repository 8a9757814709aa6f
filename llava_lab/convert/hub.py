"""Hub: a configuration of transformers' Llava, LlavaNext or LlavaNextVideo -> our parts."""

from pathlib import Path
from typing import Any

from llava_lab.convert.config import lm_config, refuse_unknown, require, words
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
from llava_lab.model.lm_files import made

# Files of a processor of images or videos, beside processor_config.json.
PROCESSORS = {
    "image": ("preprocessor_config.json",),
    "video": ("video_preprocessor_config.json", "preprocessor_config.json"),
}
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
        FileNotFoundError: If no file of a processor stands beside it.
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
    return {
        "encoder": encoder,
        "connector": class_of(MLP, depth=2),
        "llm": class_of(CausalLM, name=None, pretrained=False, config=llm),
        "newline": kind != "llava",
        "views": _views(path, whole),
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
    """Views of the processors beside the configuration, which are checked."""
    encoder = ENCODERS[whole.vision_config.model_type]
    found, place = _processor(path.parent, "image")
    _check_processor(found, place, whole, encoder)
    if whole.model_type == "llava":
        return class_of(Pad) if _pads(found) else _square(found, place)
    # transformers reads the pairs as height and width.
    pictures = class_of(AnyRes, grids=whole.image_grid_pinpoints, ties="transformers")
    if whole.model_type == "llava_next":
        return pictures
    if whole.spatial_pool_mode not in ("average", "max"):
        raise ValueError(
            f"{path}: spatial_pool_mode {whole.spatial_pool_mode!r}; average and max are read"
        )
    found, place = _processor(path.parent, "video")
    _check_processor(found, place, whole, encoder)
    return class_of(
        Frames,
        stride=whole.spatial_pool_stride,
        mode=whole.spatial_pool_mode,
        position="before",
        newline="no_token",
        frame=_square(found, place),
        image=pictures,
    )


def _processor(folder: Path, kind: str) -> tuple[dict[str, Any], str]:
    """Read the configuration of the processor of images or videos, and name its file.

    Files are looked for as transformers does: its version 5 writes both into one file.

    Raises:
        FileNotFoundError: If there is none.
    """
    both, key = folder / "processor_config.json", f"{kind}_processor"
    found = require(read_json(both), key, dict, str(both)) if both.is_file() else None
    alone = (folder / name for name in PROCESSORS[kind])
    path = both if found is not None else next((each for each in alone if each.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder}: holds neither {' nor '.join(PROCESSORS[kind])}, nor processor_config.json "
            f"with {key}, one of which says how the model sees a {kind}. Fetch it, too"
        )
    found = read_json(path) if found is None else found
    # As transformers reads whole numbers.
    if type(found.get("size")) is int:
        found["size"] = {"shortest_edge": found["size"]}
    if type(found.get("crop_size")) is int:
        found["crop_size"] = {"height": found["crop_size"], "width": found["crop_size"]}
    return found, str(path)


def _pads(found: dict[str, Any]) -> bool:
    """Whether a processor pads pictures to squares: of those with `do_pad` only LLaVA's does."""
    kind = found.get("image_processor_type") or found.get("feature_extractor_type") or "Llava"
    return bool(found.get("do_pad")) and str(kind).startswith("Llava")


def _square(found: dict[str, Any], place: str) -> dict[str, Any]:
    """The square view that a processor makes: it is cropped by its shorter edge, or squashed."""
    if found.get("size") is None:
        raise ValueError(
            f"{place}: has no size, which says whether pictures are cropped (shortest_edge) or "
            "squashed (height and width). Write it there"
        )
    return class_of(Square, resize="crop" if "shortest_edge" in found["size"] else "squash")


def _check_processor(found: dict[str, Any], place: str, whole: Any, encoder: Any) -> None:
    """Refuse a processor that prepares images in another way than our views.

    Raises:
        ValueError: If colours, sizes, steps or grids differ from the model's.
    """
    side = whole.vision_config.image_size
    wanted: dict[str, tuple[Any, ...]] = {
        "image_mean": (list(encoder.mean),),
        "image_std": (list(encoder.std),),
        "resample": (3,),  # bicubic
        "rescale_factor": (1 / 255,),
        "size": ({"shortest_edge": side}, {"height": side, "width": side}),
        "crop_size": ({"height": side, "width": side},),
        **{f"do_{step}": (True,) for step in ("resize", "rescale", "normalize")},
    }
    if (size := found.get("size")) is None or (isinstance(size, dict) and "shortest_edge" in size):
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
