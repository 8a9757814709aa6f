"""13e. Save: our model -> a folder that transformers, vLLM and SGLang load without any glue."""

import json
from collections.abc import Iterator, Sequence
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
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
)
from transformers.models.llava.image_processing_llava import LlavaImageProcessor
from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor

from llava_lab.data.anyres import AnyRes
from llava_lab.data.batch import Batch, Row, Segment
from llava_lab.data.chat import get_template
from llava_lab.data.clip import Clip
from llava_lab.data.fields import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from llava_lab.data.image import Pad, Policy, Square, Vision
from llava_lab.data.sample import Turn
from llava_lab.data.templates import STYLES
from llava_lab.data.tokens import token_id
from llava_lab.data.video import Frames
from llava_lab.disk import new_folder
from llava_lab.model.connector import MLP
from llava_lab.model.encoder import SiglipEncoder, TransformersEncoder
from llava_lab.model.llava import Llava

TOLERANCE = 1e-4  # of the largest logit, in float32
LEVELS = 3  # of 255


def export_model(model: Llava, policy: Policy, out: Path, verify: bool = True) -> Path:
    """Write a model for transformers, with its processor; returns the folder.

    It becomes a `LlavaNextVideoForConditionalGeneration` where the policy is Frames, a
    `LlavaNextForConditionalGeneration` where it is AnyRes, else a `LlavaForConditionalGeneration`.
    Which frames of a video are taken is the caller's there: its processor takes all it is given.

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
    if isinstance(policy, Frames):
        problems += _video_problems(policy, encoder.vision)
    pictures = image_policy(policy)
    if isinstance(pictures, AnyRes):
        if (pictures.merge, pictures.base, pictures.max_tiles) != ("spatial_unpad", True, None):
            problems.append("its AnyRes is spatial_unpad with a base view and without max_tiles")
    elif not isinstance(pictures, (Square, Pad)):
        problems.append(f"it has no {type(pictures).__name__}")
    if model.llm.template not in STYLES:
        problems.append(f"the template {model.llm.template!r} is not one that can be written down")
    if problems:
        reasons = "; ".join(problems)
        raise ValueError(f"transformers' LLaVA cannot express this model: {reasons}")


def _video_problems(policy: Frames, vision: Vision) -> Iterator[str]:
    rows, columns = vision.grid
    if policy.tokens(1, vision) != rows * columns // 4:
        yield "its processor counts a quarter of a frame's features, as for stride 2 of even sides"
    if not isinstance(policy.image, AnyRes):
        yield f"pictures beside videos are AnyRes, not {type(policy.image).__name__}"
    if not (isinstance(policy.frame, Square) and policy.frame.resize == "crop"):
        yield "frames are cut to their centre (Square, crop)"
    if policy.mode == "bilinear" or (policy.position == "after" and policy.stride > 1):
        yield "frames are pooled before the connector, average or max"
    if policy.newlines != "no_token" or policy.time_instruction:
        yield "videos have no newline and no time instruction"


def image_policy(policy: Policy) -> Policy:
    """The policy of pictures."""
    return policy.image if isinstance(policy, Frames) else policy


def _write(model: Llava, policy: Policy, folder: Path) -> None:
    encoder: Any = model.encoder
    pictures = image_policy(policy)
    marks = [IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER][: 1 + isinstance(policy, Frames)]
    tokenizer, tokens = _tokenizer(model, marks)
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
        "image_seq_length": Square().layout((1, 1), encoder.vision).tokens,
        "vision_feature_layer": encoder.layer,
        "vision_feature_select_strategy": strategy,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings")),
    }
    with torch.device("meta"):
        if isinstance(pictures, AnyRes):
            values["image_grid_pinpoints"] = _pinpoints(pictures, encoder)
        if isinstance(policy, Frames):
            values["video_token_index"] = tokens[1]
            values |= {"spatial_pool_mode": policy.mode, "spatial_pool_stride": policy.stride}
            video: Any = LlavaNextVideoConfig(**values)
            theirs: Any = LlavaNextVideoForConditionalGeneration(video)
        elif isinstance(pictures, AnyRes):
            theirs = LlavaNextForConditionalGeneration(LlavaNextConfig(**values))
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


def _tokenizer(model: Llava, marks: Sequence[str]) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """A copy of the tokenizer that knows the placeholders, and their ids."""
    tokenizer = type(model.llm.tokenizer).from_pretrained(model.llm.tokenizer_source)
    for mark in marks:
        if tokenizer.convert_tokens_to_ids(mark) in (None, tokenizer.unk_token_id):
            tokenizer.add_tokens([mark], special_tokens=True)
    return tokenizer, [token_id(mark, tokenizer) for mark in marks]


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
    pictures = image_policy(policy)
    if isinstance(pictures, Square) and pictures.resize == "squash":
        images: Any = SiglipImageProcessor(
            size={"height": side, "width": side}, resample=Image.Resampling.BICUBIC, **colours
        )
    else:
        views = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        if isinstance(pictures, AnyRes):
            pinpoints = _pinpoints(pictures, encoder)
            images = LlavaNextImageProcessor(image_grid_pinpoints=pinpoints, **views, **colours)
        else:
            images = LlavaImageProcessor(do_pad=isinstance(pictures, Pad), **views, **colours)
    kind: Any = LlavaNextProcessor if isinstance(pictures, AnyRes) else LlavaProcessor
    more: dict[str, Any] = {}
    if isinstance(policy, Frames):
        kind = LlavaNextVideoProcessor
        square = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        more["video_processor"] = LlavaNextVideoVideoProcessor(**square, **colours)
    return kind(
        image_processor=images,
        **more,
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
        "{% for part in message['content'] if part['type'] == 'video' %}"
        f"{{% set ns.text = ns.text + '{VIDEO_PLACEHOLDER}\\n' %}}{{% endfor %}}"
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


def check(model: Llava, policy: Policy, folder: Path) -> None:
    """Compare the exported model with ours: pixels, prompt and logits of a picture, and a clip.

    Raises:
        ValueError: If they differ; says what and by how much.
    """
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    picture, *frames = [
        Image.fromarray(levels).resize((200, 120), Image.Resampling.BICUBIC)
        for levels in np.random.default_rng(0).integers(0, 255, (4, 3, 5, 3), dtype=np.uint8)
    ]
    _compare(model, policy, theirs, processor, picture)
    if isinstance(policy, Frames):
        _compare(model, policy, theirs, processor, Clip(frames, [0.0, 1.0, 2.0], 3.0))


@torch.no_grad()
def _compare(
    model: Llava, policy: Policy, theirs: Any, processor: Any, shown: Image.Image | Clip
) -> None:
    video = isinstance(shown, Clip)
    kind, key = ("video", "pixel_values_videos") if video else ("image", "pixel_values")
    question = f"What is in the {kind}?"
    content = [{"type": kind}, {"type": "text", "text": question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    media = (
        {"videos": [np.stack([np.asarray(frame) for frame in shown.frames])]}
        if video
        else {"images": shown}
    )
    inputs = processor(**media, text=prompt, return_tensors="pt")
    vision = model.encoder.vision
    layout, views = policy.layout(shown.size, vision), policy.pixels(shown, vision)
    ids = get_template(model.llm.template).prompt(
        [Turn("user", f"{IMAGE_PLACEHOLDER}\n{question}")],
        model.llm.tokenizer,
        [layout.tokens],
        "the export's check",
    )
    # Its processor scales with torchvision where ours scales with Pillow: levels round apart.
    pixels = inputs[key].reshape(views.shape)
    levels = float((pixels - views).abs().max()) * 255 * min(vision.std)
    if levels > LEVELS:
        raise ValueError(f"the exported processor's pixels are {levels:.1f} levels from ours")
    placeholder = theirs.config.video_token_index if video else theirs.config.image_token_index
    said = [token if token >= 0 else placeholder for token in ids]
    if inputs["input_ids"][0].tolist() != said:
        raise ValueError(f"the exported processor writes another prompt than ours: {prompt!r}")
    batch = Batch.pack([Row([Segment(ids, ids)], views, [layout], "check")])
    ours = model.llm.head()(model(batch)).float()
    views = views.reshape(inputs[key].shape)
    logits = theirs(**{**inputs, key: views}).logits[0, :, : ours.shape[1]].float()
    apart = float((ours - logits).abs().max() / logits.abs().max())
    if apart > TOLERANCE:
        raise ValueError(
            f"the exported model's logits differ from ours ({kind}) by {apart:.1e} of the largest; "
            "this is a fault of llava_lab, please report it"
        )
