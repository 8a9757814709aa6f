"""Save: our model -> a folder that transformers, vLLM and SGLang load as it is."""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
)

from llava_lab.convert.classes import expressed, image_views
from llava_lab.convert.names import hub_name
from llava_lab.convert.processor import make_processor, marked_tokenizer, pinpoints
from llava_lab.convert.verify import check
from llava_lab.core.atomic import new_folder
from llava_lab.data.chat import get_template
from llava_lab.data.fields import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.model.llava import Llava


def export_model(
    model: Llava, views: Views, out: Path, verify: bool = True, nearest: bool = False
) -> list[str]:
    """Write a model and its processor for transformers; returns how they depart from ours.

    There, the caller samples the frames of a video; the processor takes all that it is given.

    Args:
        model: The model.
        views: How its images become views.
        out: Folder to make.
        verify: Load the folder again and compare its logits with ours; the model is then on the
            CPU, in float32.
        nearest: If no class has our views, write the nearest one: the weights are the same, but
            their views or visual tokens are not those of training.

    Raises:
        ValueError: If transformers has no class for a part, or its logits differ; nothing is
            written then.
    """
    near, departures = expressed(model, views, nearest)
    with new_folder(out) as draft:
        _write(model, near, draft)
        if verify:
            check(model, near, draft)
    return departures


def _write(model: Llava, views: Views, folder: Path) -> None:
    encoder: Any = model.encoder
    pictures = image_views(views)
    markers = [IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER][: 1 + isinstance(views, Frames)]
    tokenizer, tokens = marked_tokenizer(model, markers)
    token = tokens[0]
    cls = encoder.has_cls
    strategy = "default" if cls and not encoder.cls else "full"
    text = model.llm.model.config.to_dict()
    vocabulary = text["vocab_size"]
    if max(tokens) >= vocabulary:
        vocabulary = -(-(max(tokens) + 1) // 64) * 64
    values: dict[str, Any] = {
        "vision_config": encoder.whole.to_dict(),
        "text_config": {**text, "vocab_size": vocabulary},
        "image_token_index": token,
        "image_seq_length": Square().layout((1, 1), encoder.view_spec).tokens,
        "vision_feature_layer": encoder.layer,
        "vision_feature_select_strategy": strategy,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings")),
    }
    with torch.device("meta"):
        if isinstance(pictures, AnyRes):
            values["image_grid_pinpoints"] = pinpoints(pictures, encoder)
        if isinstance(views, Frames):
            values["video_token_index"] = tokens[1]
            values |= {"spatial_pool_mode": views.mode, "spatial_pool_stride": views.stride}
            video: Any = LlavaNextVideoConfig(**values)
            theirs: Any = LlavaNextVideoForConditionalGeneration(video)
        elif isinstance(pictures, AnyRes):
            theirs = LlavaNextForConditionalGeneration(LlavaNextConfig(**values))
        else:
            theirs = LlavaForConditionalGeneration(LlavaConfig(**values))
    tensors = {**_tower(encoder, theirs.model.vision_tower), **_connector(model.connector)}
    tensors |= _llm(model, vocabulary)
    if isinstance(pictures, AnyRes):
        assert model.newline.weight is not None
        tensors["model.image_newline"] = model.newline.weight
    theirs.load_state_dict(tensors, strict=True, assign=True)
    theirs.tie_weights()
    template = get_template(model.llm.template)
    stops = sorted(template.stop_ids(model.llm.tokenizer))
    theirs.generation_config = GenerationConfig(
        eos_token_id=stops,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0],
        do_sample=False,
    )
    theirs.config.architectures = [type(theirs).__name__]
    theirs.config.dtype = theirs.dtype
    theirs.config.save_pretrained(folder)
    theirs.generation_config.save_pretrained(folder)
    if theirs.config.tie_word_embeddings:
        tensors = {key: value for key, value in tensors.items() if not key.startswith("lm_head")}
    save_torch_state_dict({hub_name(key): value for key, value in tensors.items()}, folder)
    make_processor(model, views, tokenizer, strategy).save_pretrained(folder)


def _tower(encoder: Any, theirs: nn.Module) -> dict[str, Tensor]:
    """Tensors of the whole tower; blocks behind the chosen layer are never run, and are zero."""
    own = encoder.tower.state_dict()
    dtype = next(iter(own.values())).dtype
    return {
        f"model.vision_tower.{key}": own.get(key, torch.zeros(value.shape, dtype=dtype))
        for key, value in theirs.state_dict().items()
    }


def _connector(connector: nn.Module) -> dict[str, Tensor]:
    names = {"0": "linear_1", "2": "linear_2"}
    return {
        f"model.multi_modal_projector.{names[key[0]]}{key[1:]}": value
        for key, value in connector.state_dict().items()
    }


def _llm(model: Llava, vocabulary: int) -> dict[str, Tensor]:
    """Tensors of the LM, with new rows for the placeholder if the vocabulary has no room.

    A new row is the mean of all others: its logit is the mean logit, which never wins.
    """
    tensors, whole = {}, model.llm.model
    ends = (whole.get_input_embeddings(), whole.get_output_embeddings())
    outer = {name for name, module in whole.named_modules() if module in ends}
    for key, value in whole.state_dict().items():
        if key.rpartition(".")[0] in outer and len(value) < vocabulary:
            rows = value.mean(0, keepdim=True).expand(vocabulary - len(value), *value.shape[1:])
            value = torch.cat([value, rows])
        # Our "model.layers" is their "model.language_model.layers".
        tensors[key if key.startswith("lm_head") else f"model.language_{key}"] = value
    return tensors
