"""13f. Classes: a model of ours -> which of transformers' LLaVA classes it is, or why none.

`LlavaNextVideo` where the policy is Frames, `LlavaNext` where it is AnyRes, else `Llava`.
"""

from collections.abc import Iterator
from copy import copy

from llava_lab.data.anyres import AnyRes
from llava_lab.data.image import Pad, Policy, Square, Vision
from llava_lab.data.templates import STYLES
from llava_lab.data.video import Frames
from llava_lab.model.connector import MLP
from llava_lab.model.encoder import TransformersEncoder
from llava_lab.model.llava import Llava


def expressed(model: Llava, policy: Policy, nearest: bool) -> tuple[Policy, list[str]]:
    """The policy that transformers' class follows, and in what it departs from ours.

    Args:
        model: The model.
        policy: How its images become views.
        nearest: Take the class that comes nearest where none does what our policy does.

    Raises:
        ValueError: If no class has such a part, or one comes near and `nearest` is false.
    """
    near, departures = nearest_policy(policy)
    problems = list(_problems(model, near))
    if problems or (departures and not nearest):
        reasons = "; ".join(problems + departures)
        way_out = (
            "" if problems else ". With --nearest it is exported all the same, and sees otherwise"
        )
        raise ValueError(f"transformers' LLaVA cannot express this model: {reasons}{way_out}")
    return near, departures


def nearest_policy(policy: Policy) -> tuple[Policy, list[str]]:
    """The nearest policy that one of transformers' classes has, and in what it departs."""
    if isinstance(policy, AnyRes):
        if (policy.merge, policy.base, policy.max_tiles) == ("spatial_unpad", True, None):
            return policy, []
        near = AnyRes(policy.grids, ties=policy.ties, upright=policy.upright)
        return near, ["its AnyRes is spatial_unpad with a base view and without max_tiles"]
    if not isinstance(policy, Frames):
        return policy, []
    near = copy(policy)
    near.image, departures = nearest_policy(policy.image)
    if policy.stride != 2:
        near.stride = 2
        departures.append(
            "its processor counts a quarter of a frame's features, as for stride 2 of even sides"
        )
    if not (isinstance(policy.frame, Square) and policy.frame.resize == "crop"):
        near.frame = Square(upright=policy.upright)
        departures.append("frames are cut to their centre (Square, crop)")
    if policy.mode == "bilinear" or policy.position == "after":
        near.mode = "average" if policy.mode == "bilinear" else policy.mode
        near.position = "before"
        departures.append("frames are pooled before the connector, average or max")
    if policy.newlines != "no_token" or policy.time_instruction:
        near.newlines, near.time_instruction = "no_token", False
        departures.append("videos have no newline and no time instruction")
    return near, departures


def _problems(model: Llava, policy: Policy) -> Iterator[str]:
    """What keeps a model out of all classes."""
    encoder, connector, pictures = model.encoder, model.connector, image_policy(policy)
    if not isinstance(encoder, TransformersEncoder):
        yield f"the encoder is a {type(encoder).__name__}; it takes CLIP and SigLIP"
    if not (isinstance(connector, MLP) and len(connector) == 3):
        yield "its connector is an MLP of depth 2 and no other"
    if not isinstance(pictures, (AnyRes, Square, Pad)):
        yield f"it has no {type(pictures).__name__}"
    if isinstance(pictures, AnyRes) and model.newline.weight is None:
        yield "its AnyRes ends rows with a newline, and this model has none"
    if isinstance(policy, Frames):
        yield from _video_problems(policy, encoder.vision)
    if model.llm.template not in STYLES:
        yield f"the template {model.llm.template!r} is not one that can be written down"


def _video_problems(policy: Frames, vision: Vision) -> Iterator[str]:
    if not isinstance(policy.image, AnyRes):
        yield f"pictures beside videos are AnyRes, not {type(policy.image).__name__}"
    if any(side % 2 for side in vision.grid):
        yield f"a frame's features have even sides, not {vision.grid[0]}x{vision.grid[1]}"


def image_policy(policy: Policy) -> Policy:
    """The policy of pictures."""
    return policy.image if isinstance(policy, Frames) else policy
