"""Processor: a model's views, tokenizer and template -> a processor of transformers.

Its chat template writes the beginning-of-sequence token, and its tokenizer adds none: rendering and
tokenizing a conversation, in one step or two, gives our prompt.
"""

import json
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from PIL import Image
from transformers import (
    LlavaNextProcessor,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    SiglipImageProcessor,
)
from transformers.models.llava.image_processing_llava import LlavaImageProcessor
from transformers.models.llava_next.image_processing_llava_next import LlavaNextImageProcessor

from llava_lab.convert.classes import image_views
from llava_lab.data.chat import get_template
from llava_lab.data.fields import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from llava_lab.data.tokens import adds_bos, token_id
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.model.encoder.siglip import SiglipEncoder
from llava_lab.model.llava import Llava


def pinpoints(views: AnyRes, encoder: Any) -> list[list[int]]:
    """Canvas sizes as pairs from which transformers, reading height first, chooses as we do."""
    pairs = views.canvases(encoder.view_spec.image_size)
    return [[*pair] if views.ties == "transformers" else [*pair[::-1]] for pair in pairs]


def marked_tokenizer(
    model: Llava, markers: Sequence[str]
) -> tuple[PreTrainedTokenizerBase, list[int]]:
    """Copy the tokenizer, add placeholders and drop its BOS; returns it and their ids."""
    tokenizer: Any = deepcopy(model.llm.tokenizer)
    if adds_bos(tokenizer):
        tokenizer.add_bos_token = False
    for marker in markers:
        if tokenizer.convert_tokens_to_ids(marker) in (None, tokenizer.unk_token_id):
            tokenizer.add_tokens([marker], special_tokens=True)
    return tokenizer, [token_id(marker, tokenizer) for marker in markers]


def make_processor(
    model: Llava, views: Views, tokenizer: PreTrainedTokenizerBase, strategy: str
) -> Any:
    """Make the processor of images, and of videos if the views take them."""
    encoder: Any = model.encoder
    view_spec, side = encoder.view_spec, encoder.view_spec.image_size
    colours = {"image_mean": list(view_spec.mean), "image_std": list(view_spec.std)}
    pictures = image_views(views)
    if isinstance(pictures, Square) and pictures.resize == "squash":
        images: Any = SiglipImageProcessor(
            size={"height": side, "width": side}, resample=Image.Resampling.BICUBIC, **colours
        )
    else:
        sizes = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        if isinstance(pictures, AnyRes):
            grids = pinpoints(pictures, encoder)
            images = LlavaNextImageProcessor(image_grid_pinpoints=grids, **sizes, **colours)
        else:
            images = LlavaImageProcessor(do_pad=isinstance(pictures, Pad), **sizes, **colours)
    kind: Any = LlavaNextProcessor if isinstance(pictures, AnyRes) else LlavaProcessor
    more: dict[str, Any] = {}
    if isinstance(views, Frames):
        kind = LlavaNextVideoProcessor
        square = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        more["video_processor"] = LlavaNextVideoVideoProcessor(**square, **colours)
    return kind(
        image_processor=images,
        **more,
        tokenizer=tokenizer,
        patch_size=side // view_spec.grid[0],
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=0 if isinstance(encoder, SiglipEncoder) else 1,
        chat_template=chat_template(model.llm.template, model.llm.tokenizer),
    )


def chat_template(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Convert a template of ours to a chat template of transformers; images come first in a turn.

    Args:
        name: Name of the template.
        tokenizer: Tokenizer of the LM, whose special tokens it writes.
    """
    style = get_template(name)
    bos = tokenizer.bos_token if adds_bos(tokenizer) else ""

    def written(pattern: str) -> tuple[str, str]:
        markers = {"{eos}": tokenizer.eos_token or "", "{bos}": bos}
        for marker, text in markers.items():
            pattern = pattern.replace(marker, text)
        before, _, after = pattern.partition("{text}")
        return json.dumps(before), json.dumps(after)

    first = written(style.first_question or style.question)
    later, answer = written(style.question), written(style.answer)
    content = "text | trim" if style.strip else "text"
    return (
        f"{{{{ {json.dumps((bos if style.bos else '') + style.system)} }}}}"
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
        f"{{{{ ({first[0]} if loop.first else {later[0]}) + ({content}) + "
        f"({first[1]} if loop.first else {later[1]}) }}}}"
        "{% if not loop.last or add_generation_prompt %}"
        f"{{{{ {json.dumps(style.header)} }}}}{{% endif %}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ {answer[0]} + ({content}) + {answer[1]} + {json.dumps(style.after)} }}}}"
        "{% else %}{{ raise_exception('This model was trained on user and assistant turns alone, '"
        " + 'not on one of role ' + message['role']) }}"
        "{% endif %}{% endfor %}"
    )
