"""Verify: an exported folder and its model -> whether transformers computes the same."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from llava_lab.data.chat import get_template
from llava_lab.data.fields import IMAGE_PLACEHOLDER
from llava_lab.data.media.clip import Clip
from llava_lab.data.packing import Batch, EncodedSample, Segment
from llava_lab.data.sample import Turn
from llava_lab.data.views.base import Views
from llava_lab.data.views.video import Frames
from llava_lab.model.llava import Llava

TOLERANCE = 1e-4  # of the largest logit, in float32
LEVELS = 3  # of 255


def check(model: Llava, views: Views, folder: Path) -> None:
    """Compare the exported model with ours: pixels, prompt and logits of a picture, and a clip.

    Both are compared on the CPU in float32, where ours is then: a second copy of it may not fit.

    Raises:
        ValueError: If they differ; names what and by how much.
    """
    model = model.to("cpu", torch.float32)
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = AutoProcessor.from_pretrained(folder)
    picture, *frames = [
        Image.fromarray(levels).resize((200, 120), Image.Resampling.BICUBIC)
        for levels in np.random.default_rng(0).integers(0, 255, (4, 3, 5, 3), dtype=np.uint8)
    ]
    _compare(model, views, theirs, processor, picture)
    if isinstance(views, Frames):
        _compare(model, views, theirs, processor, Clip(frames, [0.0, 1.0, 2.0], 3.0))


@torch.no_grad()
def _compare(
    model: Llava, views: Views, theirs: Any, processor: Any, shown: Image.Image | Clip
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
    view_spec = model.view_spec
    layout, pixels = views.layout(shown.size, view_spec), views.pixels(shown, view_spec)
    ids = get_template(model.llm.template).prompt(
        [Turn("user", f"{IMAGE_PLACEHOLDER}\n{question}")],
        model.llm.tokenizer,
        [layout.tokens],
        "the export's check",
    )
    # Its processor scales with torchvision where ours scales with Pillow: levels round apart.
    theirs_pixels = inputs[key].reshape(pixels.shape)
    levels = float((theirs_pixels - pixels).abs().max()) * 255 * min(view_spec.std)
    if levels > LEVELS:
        raise ValueError(f"the exported processor's pixels are {levels:.1f} levels from ours")
    placeholder = theirs.config.video_token_index if video else theirs.config.image_token_index
    expected = [token if token >= 0 else placeholder for token in ids]
    if inputs["input_ids"][0].tolist() != expected:
        raise ValueError(f"the exported processor writes another prompt than ours: {prompt!r}")
    batch = Batch.pack([EncodedSample([Segment(ids, ids)], pixels, [layout], "check")])
    ours = model.llm.head()(model(batch)).float()
    pixels = pixels.reshape(inputs[key].shape)
    logits = theirs(**{**inputs, key: pixels}).logits[0, :, : ours.shape[1]].float()
    apart = float((ours - logits).abs().max() / logits.abs().max())
    if apart > TOLERANCE:
        raise ValueError(
            f"the exported model's logits differ from ours ({kind}) by {apart:.1e} of the largest; "
            "this is a fault of llava_lab, please report it"
        )
