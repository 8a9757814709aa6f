"""13e. Save: our model -> a folder that transformers, vLLM and SGLang load without any glue."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
)
from transformers.models.llava.image_processing_llava import LlavaImageProcessor
from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor

from llava_lab.data.anyres import AnyRes
from llava_lab.data.batch import Batch, Row, Segment
from llava_lab.data.chat import get_template
from llava_lab.data.image import Pad, Policy, Square
from llava_lab.data.sample import IMAGE_PLACEHOLDER, Turn
from llava_lab.data.templates import STYLES
from llava_lab.data.tokens import token_id
from llava_lab.disk import new_folder
from llava_lab.model.connector import MLP
from llava_lab.model.encoder import SiglipEncoder, TransformersEncoder
from llava_lab.model.llava import Llava

TOLERANCE = 1e-4  # of the largest logit, in float32
LEVELS = 3  # of 255


def export_model(model: Llava, policy: Policy, out: Path, verify: bool = True) -> Path:
    """Write a model for transformers, with its processor; returns the folder.

    It becomes a `LlavaNextForConditionalGeneration` where the policy is AnyRes, else a
    `LlavaForConditionalGeneration`.

    Args:
        model: The model.
        policy: How its images become views.
        out: Folder to make.
        verify: Load what was written and compare its logits with ours.

    Raises:
        ValueError: If transformers has no class for a part, or its logits differ; nothing is
            written then.
    """
    refuse(model, policy)
    with new_folder(out) as draft:
        _write(model, policy, draft)
        if verify:
            check(model, policy, draft)
    return out


def refuse(model: Llava, policy: Policy) -> None:
    """Say what transformers' class cannot express."""
    encoder, connector = model.encoder, model.connector
    problems = []
    if not isinstance(encoder, TransformersEncoder):
        problems.append(f"the encoder is a {type(encoder).__name__}; it takes CLIP and SigLIP")
    if not (isinstance(connector, MLP) and len(connector) == 3):
        problems.append("its connector is an MLP of depth 2 and no other")
    if isinstance(policy, AnyRes):
        if (policy.merge, policy.base, policy.max_tiles) != ("spatial_unpad", True, None):
            problems.append("its AnyRes is spatial_unpad with a base view and without max_tiles")
    elif not isinstance(policy, (Square, Pad)):
        problems.append(f"it has no {type(policy).__name__}")
    if model.llm.template not in STYLES:
        problems.append(f"the template {model.llm.template!r} is not one that can be written down")
    if problems:
        reasons = "; ".join(problems)
        raise ValueError(f"transformers' LLaVA cannot express this model: {reasons}")


def _write(model: Llava, policy: Policy, folder: Path) -> None:
    encoder: Any = model.encoder
    tokenizer, token = _tokenizer(model)
    cls = encoder.has_cls
    strategy = "default" if cls and not encoder.cls else "full"
    text = model.llm.model.config.to_dict()
    vocabulary = text["vocab_size"]
    if token >= vocabulary:
        vocabulary = -(-(token + 1) // 64) * 64
    values: dict[str, Any] = {
        "vision_config": encoder.whole.to_dict(),
        "text_config": {**text, "vocab_size": vocabulary},
        "image_token_index": token,
        "image_seq_length": Square().layout((1, 1), encoder.vision).tokens,
        "vision_feature_layer": encoder.layer,
        "vision_feature_select_strategy": strategy,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings")),
    }
    with torch.device("meta"):
        if isinstance(policy, AnyRes):
            pinpoints = _pinpoints(policy, encoder)
            config: Any = LlavaNextConfig(image_grid_pinpoints=pinpoints, **values)
            theirs: Any = LlavaNextForConditionalGeneration(config)
        else:
            theirs = LlavaForConditionalGeneration(LlavaConfig(**values))
    tensors = {**_tower(encoder, theirs.model.vision_tower), **_connector(model.connector)}
    tensors |= _llm(model, vocabulary)
    if model.newline.weight is not None:
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
    theirs.save_pretrained(folder)
    _processor(model, policy, tokenizer, strategy).save_pretrained(folder)


def _pinpoints(policy: AnyRes, encoder: Any) -> list[list[int]]:
    """Candidates as pairs that transformers, reading height and width, chooses from as we do."""
    pairs = policy.canvases(encoder.vision.image_size)
    return [[*pair] if policy.ties == "transformers" else [*pair[::-1]] for pair in pairs]


def _tokenizer(model: Llava) -> tuple[PreTrainedTokenizerBase, int]:
    """A copy of the tokenizer that knows the image placeholder, and its id."""
    tokenizer = type(model.llm.tokenizer).from_pretrained(model.llm.tokenizer_source)
    if tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([IMAGE_PLACEHOLDER], special_tokens=True)
    return tokenizer, token_id(IMAGE_PLACEHOLDER, tokenizer)


def _tower(encoder: Any, theirs: nn.Module) -> dict[str, Tensor]:
    """Tensors of the whole tower: blocks behind the chosen layer are never run, and are zero."""
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
    """Tensors of the LM, with rows for the placeholder where the vocabulary had no room.

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


def _processor(
    model: Llava, policy: Policy, tokenizer: PreTrainedTokenizerBase, strategy: str
) -> Any:
    encoder: Any = model.encoder
    vision, side = encoder.vision, encoder.vision.image_size
    colours = {"image_mean": list(vision.mean), "image_std": list(vision.std)}
    if isinstance(policy, Square) and policy.resize == "squash":
        images: Any = SiglipImageProcessor(
            size={"height": side, "width": side}, resample=Image.Resampling.BICUBIC, **colours
        )
    else:
        views = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        if isinstance(policy, AnyRes):
            pinpoints = _pinpoints(policy, encoder)
            images = LlavaNextImageProcessor(image_grid_pinpoints=pinpoints, **views, **colours)
        else:
            images = LlavaImageProcessor(do_pad=isinstance(policy, Pad), **views, **colours)
    kind: Any = LlavaNextProcessor if isinstance(policy, AnyRes) else LlavaProcessor
    return kind(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=side // vision.grid[0],
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=0 if isinstance(encoder, SiglipEncoder) else 1,
        chat_template=chat_template(model),
    )


def chat_template(model: Llava) -> str:
    """The LM's template as a chat template of transformers; images stand first in their turn."""
    style = get_template(model.llm.template)
    tokenizer = model.llm.tokenizer

    def written(pattern: str) -> tuple[str, str]:
        marks = {"{eos}": tokenizer.eos_token or "", "{bos}": tokenizer.bos_token or ""}
        for mark, text in marks.items():
            pattern = pattern.replace(mark, text)
        before, _, after = pattern.partition("{text}")
        return json.dumps(before), json.dumps(after)

    first = written(style.first_question or style.question)
    later, answer = written(style.question), written(style.answer)
    said = "text | trim" if style.strip else "text"
    return (
        f"{{{{ {json.dumps(style.system)} }}}}"
        "{% for message in messages %}"
        "{% if message['content'] is string %}{% set text = message['content'] %}"
        "{% else %}{% set ns = namespace(text='') %}"
        "{% for part in message['content'] if part['type'] == 'image' %}"
        f"{{% set ns.text = ns.text + '{IMAGE_PLACEHOLDER}\\n' %}}{{% endfor %}}"
        "{% for part in message['content'] if part['type'] == 'text' %}"
        "{% set ns.text = ns.text + part['text'] %}{% endfor %}"
        "{% set text = ns.text %}{% endif %}"
        "{% if message['role'] == 'user' %}"
        f"{{{{ ({first[0]} if loop.first else {later[0]}) + ({said}) + "
        f"({first[1]} if loop.first else {later[1]}) }}}}"
        "{% if not loop.last or add_generation_prompt %}"
        f"{{{{ {json.dumps(style.header)} }}}}{{% endif %}}"
        "{% else %}"
        f"{{{{ {answer[0]} + ({said}) + {answer[1]} + {json.dumps(style.after)} }}}}"
        "{% endif %}{% endfor %}"
    )


@torch.no_grad()
def check(model: Llava, policy: Policy, folder: Path) -> None:
    """Compare the exported model with ours: pixels, prompt and logits of one picture.

    Raises:
        ValueError: If they differ; says what and by how much.
    """
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    colours = np.random.default_rng(0).integers(0, 255, (3, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(colours).resize((200, 120), Image.Resampling.BICUBIC)
    question = "What is in the picture?"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(images=picture, text=prompt, return_tensors="pt")
    vision = model.encoder.vision
    layout, views = policy.layout(picture.size, vision), policy.pixels(picture, vision)
    ids = get_template(model.llm.template).prompt(
        [Turn("user", f"{IMAGE_PLACEHOLDER}\n{question}")],
        model.llm.tokenizer,
        [layout.tokens],
        "the export's check",
    )
    # Its processor scales with torchvision where ours scales with Pillow: levels round apart.
    pixels = inputs["pixel_values"].reshape(views.shape)
    levels = float((pixels - views).abs().max()) * 255 * min(vision.std)
    if levels > LEVELS:
        raise ValueError(f"the exported processor's pixels are {levels:.1f} levels from ours")
    placeholder = theirs.config.image_token_index
    said = [token if token >= 0 else placeholder for token in ids]
    if inputs["input_ids"][0].tolist() != said:
        raise ValueError(f"the exported processor writes another prompt than ours: {prompt!r}")
    batch = Batch.pack([Row([Segment(ids, ids)], views, [layout], "check")])
    ours = model.llm.head()(model(batch)).float()
    views = views.reshape(inputs["pixel_values"].shape)
    logits = theirs(**{**inputs, "pixel_values": views}).logits[0, :, : ours.shape[1]].float()
    apart = float((ours - logits).abs().max() / logits.abs().max())
    if apart > TOLERANCE:
        raise ValueError(
            f"the exported model's logits differ from ours by {apart:.1e} of the largest; "
            "this is a fault of llava_lab, please report it"
        )
