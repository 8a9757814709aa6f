"""4. timm's towers: built, measured without memory, filled with weights."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from llava_lab.model.encoder.tower import features_of, first_line, nearest, tensors_of, unreachable
from llava_lab.model.weights import check_values, misfit, read_weights, refuse_quantized


def create(name: str, arguments: Mapping[str, Any], **more: Any) -> Any:
    """A model of timm."""
    return timm.create_model(name, **arguments, **more)


def skeleton_of(
    name: str, image_size: int | None, arguments: dict[str, Any]
) -> tuple[Any, list[torch.Size]]:
    """A timm model without memory and the shapes of its blocks' features; completes `arguments`."""
    _check_name(name)
    for key, instead in (("img_size", "set image_size"), ("num_classes", "the head is dropped")):
        if key in arguments:
            raise ValueError(f"{name}: options has {key}; leave it out, {instead}")
    try:
        with torch.device("meta"):
            model = create(name, arguments)
            side = image_size or model.pretrained_cfg["input_size"][-1]
            if image_size and model.pretrained_cfg.get("fixed_input_size"):
                arguments["img_size"] = image_size
                model = create(name, arguments)
            features = features_of(model.eval(), torch.empty(1, 3, side, side))
    except OSError as error:
        raise unreachable(name, error, "Name a local folder: local-dir:FOLDER") from error
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        given = arguments | ({"image_size": image_size} if image_size else {})
        raise ValueError(f"timm's {name} with {given}: {first_line(error)}") from error
    return model, [feature.shape for feature in features]


def _check_name(name: str) -> None:
    """Refuse a name that timm does not know, with the nearest that it does."""
    if ":" in name:
        return
    stem, _, tag = name.partition(".")
    if not timm.is_model(stem):
        raise ValueError(f"timm has no model {stem}; nearest: {nearest(stem, timm.list_models())}")
    tags = timm.list_models(f"{stem}.*", include_tags=True)
    if tag and name not in tags:
        raise ValueError(f"timm has no weights {name}; it has {nearest(name, tags) or 'none'}")


def prune(model: Any, block: int) -> None:
    """Drop what the features of a block do not hang on."""
    model.prune_intermediate_layers([block], prune_norm=True, prune_head=True)
    # Before 1.0.31 timm leaves the norm of a head, and a class token that enters after the blocks
    # (XCiT, CaiT).
    if hasattr(model, "head"):
        model.head = nn.Identity()
    if not getattr(model, "cls_attn_blocks", getattr(model, "blocks_token_only", True)):
        model.cls_token = None


def has_cls(model: Any) -> bool:
    """Whether timm gives a CLS feature beside the patches of a model's blocks."""
    token = getattr(model, "cls_token", None) is not None or getattr(
        model, "has_class_token", False
    )
    return token and "return_prefix_tokens" in signature(model.forward_intermediates).parameters


def with_timms_weights(name: str, arguments: Mapping[str, Any]) -> Any:
    """A model of timm with the weights that timm has for it."""
    if name.startswith("local-dir:"):
        refuse_quantized(Path(name.removeprefix("local-dir:")))
    try:
        tower = create(name, arguments, pretrained=True)
    except OSError as error:
        raise unreachable(name, error, "Set `weights` to a local file") from error
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"timm's weights of {name}: {first_line(error)}") from error
    check_values(tower.state_dict(), name)
    return tower


def with_weights(
    name: str,
    arguments: Mapping[str, Any],
    weights: str,
    needed: Mapping[str, Tensor],
    known: Mapping[str, Tensor],
) -> Any:
    """A timm model with the weights of a file of the whole model or of the part that is kept.

    A file that does not fit as it is goes through timm's own conversion, which knows other names of
    the same tensors and interpolates position embeddings.
    """
    found = tensors_of(read_weights(weights), known)
    problem = misfit(found, needed, known)
    if not problem:
        tower = create(name, arguments)
        tower.load_state_dict({key: found[key] for key in needed}, strict=False)
        return tower
    if any(not value.is_floating_point() for key, value in found.items() if key in needed):
        raise ValueError(f"{weights} does not fit timm's {name}: {problem}")
    # timm would also resample patches of another size, which makes another encoder of it.
    patches = [k for k in found.keys() & needed.keys() if k.endswith("patch_embed.proj.weight")]
    if any(found[key].shape != needed[key].shape for key in patches if found[key].ndim == 4):
        raise ValueError(f"{weights} does not fit timm's {name}: {problem}")
    if found.keys() <= known.keys():  # blocks that are dropped anyway may be absent
        absent = known.keys() - needed.keys() - found.keys()
        found |= {key: torch.zeros(known[key].shape, device="cpu") for key in absent}
    overlay = {"state_dict": found, "source": "", "custom_load": False}
    try:
        tower = create(name, arguments, pretrained=True, pretrained_cfg_overlay=overlay)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"{weights} does not fit timm's {name}: {problem}") from error
    del tower.pretrained_cfg["state_dict"]  # or the file's tensors would live on
    return tower
