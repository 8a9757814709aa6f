"""13c. Released: a checkpoint that others made -> a folder of our parts and the YAML naming them.

Layouts: transformers' `Llava` classes, and the original of haotian-liu/LLaVA with its projector
files. The folder holds `model.yaml`, one .safetensors file a part, and the tokenizer.
"""

import ast
import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from llava_lab.data.anyres import AnyRes
from llava_lab.data.image import Pad, Square
from llava_lab.data.templates import STYLES
from llava_lab.data.video import Frames
from llava_lab.disk import new_folder
from llava_lab.exchange.files import find, read_json, read_tensors
from llava_lab.exchange.load import MODEL, load_model
from llava_lab.exchange.names import our_names
from llava_lab.exchange.processor import chat_template
from llava_lab.model.connector import MLP, Linear
from llava_lab.model.encoder import ClipEncoder, SiglipEncoder
from llava_lab.model.llm import CausalLM

ENCODERS = {"clip_vision_model": ClipEncoder, "siglip_vision_model": SiglipEncoder}
TOWER_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("image_size", "patch_size", "hidden_act", "layer_norm_eps"),
)
# Model types of the original layout, and the LM that each is made of.
HUB = ("llava", "llava_next", "llava_next_video")
ORIGINAL = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
}
# What a tokenizer's chat template of a template of ours contains.
TEMPLATE_MARKS = {
    "v1": "USER:",
    "llava_llama_3": "<|start_header_id|>",
    "mistral_instruct": "[INST]",
    "qwen_1_5": "<|im_start|>",
}
# Parts, and how the names of their tensors begin in our model.
PREFIXES = {
    "encoder": "encoder.",
    "connector": "connector.",
    "llm": "llm.model.",
    "newline": "newline.",
}
IDLE_CONFIG = ("transformers_version", "architectures", "_name_or_path", "dtype", "torch_dtype")


@dataclass
class Released:
    """A checkpoint in our terms.

    Attributes:
        tensors: Tensors under the names of our model.
        parts: `class_path` and `init_args` of encoder, connector, llm and policy; `newline`.
    """

    tensors: dict[str, Tensor]
    parts: dict[str, Any]


def import_checkpoint(source: str, out: Path, template: str | None = None) -> Path:
    """Turn a released checkpoint into a folder that experiments name; returns its model.yaml.

    Args:
        source: Folder or hub id.
        out: Folder to make.
        template: Chat template; null takes the one that the checkpoint's own resembles.

    Raises:
        ValueError: If a tensor is missing, left over or of another shape, or the model is one
            that our parts cannot be; nothing is written then.
    """
    with new_folder(out) as draft:
        folder = find(source)
        released = read_released(folder, template)
        _write_parts(released, folder, draft)
        released.tensors.clear()
        _write_yaml(released, draft, draft, source)
        load_model(draft)  # what is missing, left over or of another shape is refused here
        _write_yaml(released, draft, out.absolute(), source)
    return out / MODEL


def read_released(folder: Path, template: str | None = None) -> Released:
    """Read a checkpoint of any known layout."""
    config = read_json(folder / "config.json")
    found = read_tensors(folder)
    names = our_names(found, str(folder))
    tensors = {ours: found[name] for name, ours in names.items()}
    if "text_config" in config:
        parts = _hub_parts(folder, config)
    elif "mm_projector_type" in config or "mm_vision_tower" in config:
        parts = _original_parts(folder, config, tensors)
    else:
        raise ValueError(f"{folder / 'config.json'}: no LLaVA of a known layout")
    parts["llm"]["init_args"]["template"] = template or _template(folder)
    return Released(tensors, parts)


def _hub_parts(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Parts of a checkpoint in the layout of transformers."""
    if config.get("model_type") not in HUB:
        raise ValueError(
            f"{folder}: model_type {config.get('model_type')!r} is not read; {', '.join(HUB)} are"
        )
    whole = AutoConfig.from_pretrained(folder)
    if whole.projector_hidden_act != "gelu" or not whole.multimodal_projector_bias:
        raise ValueError(
            f"{folder}: projector_hidden_act {whole.projector_hidden_act!r} with bias "
            f"{whole.multimodal_projector_bias}; our MLP has an exact GELU and biases"
        )
    vision, layer = whole.vision_config, whole.vision_feature_layer
    if vision.model_type not in ENCODERS or not isinstance(layer, int):
        raise ValueError(
            f"{folder}: a tower of type {vision.model_type} with layer {layer}; towers are "
            f"{', '.join(ENCODERS)} with one layer"
        )
    encoder = ENCODERS[vision.model_type]
    cls = encoder.has_cls and whole.vision_feature_select_strategy == "full"
    text = whole.text_config.to_diff_dict()
    llm = {key: value for key, value in text.items() if key not in IDLE_CONFIG}
    return {
        "encoder": _class(
            encoder,
            name=None,
            layer=layer,
            cls=cls,
            pretrained=False,
            config={key: getattr(vision, key) for key in TOWER_KEYS},
        ),
        "connector": _class(MLP, depth=2),
        "llm": _class(CausalLM, name=None, pretrained=False, config=llm),
        "newline": config["model_type"] != "llava",
        "policy": _hub_policy(folder, whole),
    }


def _hub_policy(folder: Path, config: Any) -> dict[str, Any]:
    if config.model_type == "llava":
        return _policy(folder)
    # transformers reads the pairs as height and width.
    pictures = _class(AnyRes, grids=config.image_grid_pinpoints, ties="transformers")
    if config.model_type == "llava_next":
        return pictures
    if config.spatial_pool_mode not in ("average", "max"):
        raise ValueError(
            f"{folder}: spatial_pool_mode {config.spatial_pool_mode!r}; average and max are read"
        )
    return _class(
        Frames,
        stride=config.spatial_pool_stride,
        mode=config.spatial_pool_mode,
        position="before",
        newline="no_token",
        image=pictures,
    )


def _original_parts(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """Parts of a checkpoint in the original layout; a frozen tower is named, not contained."""
    kind = config.get("model_type", "")
    if kind not in ORIGINAL:
        raise ValueError(f"{folder}: model_type {kind!r}; known are {', '.join(ORIGINAL)}")
    tower = config.get("mm_vision_tower") or ""
    encoder = SiglipEncoder if "siglip" in tower else ClipEncoder
    cls = config.get("mm_vision_select_feature", "patch") == "cls_patch"
    layer = -2 if encoder is SiglipEncoder else config.get("mm_vision_select_layer", -2)
    aspect = config.get("image_aspect_ratio") or "square"
    if found := re.fullmatch(r"anyres(?:_max_(\d+))?", aspect):
        policy = _released_anyres(config, found[1])
    elif aspect in ("pad", "square"):
        policy = _class(Pad if aspect == "pad" else Square)
    else:
        raise ValueError(f"{folder}: image_aspect_ratio {aspect!r} is not read yet")
    llm: dict[str, Any] = {"name": config.get("_name_or_path")}
    if any(name.startswith("llm.") for name in tensors):
        known = AutoConfig.for_model(ORIGINAL[kind])
        own = {k: v for k, v in config.items() if hasattr(known, k) and k not in IDLE_CONFIG}
        llm = {"name": None, "config": {**own, "model_type": ORIGINAL[kind]}, "pretrained": False}
    layers = [found[1] for name in tensors if (found := re.match(r"connector\.(\d+)", name))]
    return {
        "encoder": _class(encoder, name=tower, layer=layer, cls=cls),
        "connector": _class(MLP, depth=int(max(layers)) // 2 + 1) if layers else _class(Linear),
        "llm": _class(CausalLM, **llm),
        "newline": "newline.weight" in tensors,
        "policy": policy,
    }


def _released_anyres(config: dict[str, Any], most: str | None) -> dict[str, Any]:
    """The policy of an original checkpoint with AnyRes."""
    if not (grids := config.get("image_grid_pinpoints")):
        raise ValueError("config.json: image_aspect_ratio is anyres, without image_grid_pinpoints")
    merge = config.get("mm_patch_merge_type", "flat")
    if isinstance(grids, str) and grids.lstrip().startswith("["):
        grids = [list(pair) for pair in ast.literal_eval(grids)]
    return _class(
        AnyRes,
        grids=grids,
        merge=merge.removesuffix("_nobase"),
        base="nobase" not in merge,
        max_tiles=None if most is None else int(most),
    )


def _class(kind: type, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"{kind.__module__}.{kind.__name__}", "init_args": arguments}


def _policy(folder: Path) -> dict[str, Any]:
    """The policy that does what the checkpoint's image processor does."""
    path = folder / "preprocessor_config.json"
    found = read_json(path) if path.is_file() else {}
    if not found and (folder / "processor_config.json").is_file():
        found = read_json(folder / "processor_config.json").get("image_processor", {})
    if found.get("do_pad"):
        return _class(Pad)
    squash = "height" in (found.get("size") or {})
    return _class(Square, resize="squash" if squash else "crop")


def _chat_template(folder: Path) -> str:
    """The checkpoint's own chat template, wherever it stands; empty if it has none."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        if found is not None:
            return found if isinstance(found, str) else str(found[0]["template"])
    return ""


def _tokenizer(folder: Path) -> Any:
    """The tokenizer; it puts the beginning-of-sequence token where the chat template writes it."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    bos = re.escape(tokenizer.bos_token or "bos_token")
    if re.match(rf"\s*\{{\{{-?\s*(bos_token\b|['\"]{bos})", _chat_template(folder)):
        tokenizer.add_bos_token = True
    return tokenizer


def _template(folder: Path) -> str:
    """The template of ours that the checkpoint's chat template is, or else resembles."""
    if text := _chat_template(folder):
        tokenizer = _tokenizer(folder)
        same = [name for name in STYLES if text == chat_template(name, tokenizer)]
        same += [name for name, mark in TEMPLATE_MARKS.items() if mark in text]
        if same:
            return same[0]
    raise ValueError(
        f"{folder}: says nothing of its chat template; give --template, one of {', '.join(STYLES)}"
    )


def _write_parts(released: Released, folder: Path, draft: Path) -> None:
    """Write one file a part, and the tokenizer where the checkpoint has an LM."""
    for part, prefix in PREFIXES.items():
        own = {
            name.removeprefix(prefix): tensor.contiguous()
            for name, tensor in released.tensors.items()
            if name.startswith(prefix)
        }
        if own:
            save_file(own, draft / f"{part}.safetensors")
    if (draft / "llm.safetensors").is_file():
        _tokenizer(folder).save_pretrained(draft / "tokenizer")


def _write_yaml(released: Released, draft: Path, place: Path, source: str) -> None:
    """Write the YAML that names the parts by their place."""
    model: dict[str, Any] = {name: copy.deepcopy(released.parts[name]) for name in PREFIXES}
    for part in PREFIXES:
        if (draft / f"{part}.safetensors").is_file():
            keys = model[part]["init_args"] if part in ("encoder", "llm") else model
            name = {"connector": "connector_weights", "newline": "newline"}.get(part, "weights")
            keys[name] = str(place / f"{part}.safetensors")
    if (draft / "tokenizer").is_dir():
        model["llm"]["init_args"]["tokenizer"] = str(place / "tokenizer")
    written = {"scale": "imported", "model": model, "data": {"policy": released.parts["policy"]}}
    text = yaml.safe_dump(written, sort_keys=False)
    (draft / MODEL).write_text(f"# Imported from {source}.\n{text}", "utf-8")
