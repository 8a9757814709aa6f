"""Classes: a model of ours -> which of transformers' LLaVA classes it is, or why none.

`LlavaNextVideo` where the views is Frames, `LlavaNext` where it is AnyRes, else `Llava`.
"""

from collections.abc import Iterator
from copy import copy

from llava_lab.data.geometry import ViewSpec
from llava_lab.data.templates import CHAT_FORMATS
from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames
from llava_lab.model.connector.mlp import MLP
from llava_lab.model.encoder.transformers import TransformersEncoder
from llava_lab.model.llava import Llava


def expressed(model: Llava, views: Views, nearest: bool) -> tuple[Views, list[str]]:
    """The views that transformers' class follows, and in what it departs from ours.

    Args:
        model: The model.
        views: How its images become views.
        nearest: Take the class that comes nearest where none does what our views does.

    Raises:
        ValueError: If no class has such a part, or one comes near and `nearest` is false.
    """
    near, departures = nearest_views(views)
    problems = list(_problems(model, near))
    if problems or (departures and not nearest):
        reasons = "; ".join(problems + departures)
        way_out = (
            "" if problems else ". With --nearest it is exported all the same, and sees otherwise"
        )
        raise ValueError(f"transformers' LLaVA cannot express this model: {reasons}{way_out}")
    return near, departures


def nearest_views(views: Views) -> tuple[Views, list[str]]:
    """The nearest views that one of transformers' classes has, and in what it departs."""
    if isinstance(views, AnyRes):
        if (views.merge, views.base, views.max_tiles) == ("spatial_unpad", True, None):
            return views, []
        near = AnyRes(views.grids, ties=views.ties, upright=views.upright, pool=views.pool)
        return near, ["its AnyRes is spatial_unpad with a base view and without max_tiles"]
    if not isinstance(views, Frames):
        return views, []
    near = copy(views)
    near.image, departures = nearest_views(views.image)
    if views.stride != 2:
        near.stride = 2
        departures.append(
            "its processor counts a quarter of a frame's features, as for stride 2 of even sides"
        )
    if not (isinstance(views.frame, Square) and views.frame.resize == "crop"):
        near.frame = Square(upright=views.upright)
        departures.append("frames are cut to their centre (Square, crop)")
    if views.mode == "bilinear" or views.position == "after":
        near.mode = "average" if views.mode == "bilinear" else views.mode
        near.position = "before"
        departures.append("frames are pooled before the connector, average or max")
    if views.newlines != "no_token" or views.time_instruction:
        near.newlines, near.time_instruction = "no_token", False
        departures.append("videos have no newline and no time instruction")
    return near, departures


def _problems(model: Llava, views: Views) -> Iterator[str]:
    """What keeps a model out of all classes."""
    encoder, connector, pictures = model.encoder, model.connector, image_views(views)
    if not isinstance(encoder, TransformersEncoder):
        yield f"the encoder is a {type(encoder).__name__}; it takes CLIP and SigLIP"
    if not (isinstance(connector, MLP) and len(connector) == 3):
        depth = f" of depth {len(connector) // 2 + 1}" if isinstance(connector, MLP) else ""
        yield (
            f"the connector is {type(connector).__name__}{depth}; its connector is an MLP of "
            "depth 2 and no other"
        )
    elif (before := encoder.view_spec.encoded) != (after := connector.grid(before)):
        yield (
            f"the connector ({type(connector).__name__}) makes {after[0]}x{after[1]} features of "
            f"{before[0]}x{before[1]}, and its connector keeps every feature"
        )
    if not isinstance(pictures, (AnyRes, Square, Pad)):
        yield f"it has no {type(pictures).__name__}"
    if pictures.pool is not None:
        yield f"it pools no pictures ({type(pictures).__name__}: pool)"
    if isinstance(pictures, AnyRes) and model.newline.weight is None:
        yield "its AnyRes ends rows with a newline, and this model has none"
    if isinstance(views, Frames):
        yield from _video_problems(views, encoder.view_spec)
    if model.llm.head().bias is not None:
        kind = model.llm.model.config.model_type
        yield f"the output layer of the LM ({kind}) has a bias, and its LMs have none"
    if model.llm.template not in CHAT_FORMATS:
        yield f"the template {model.llm.template!r} is not one that can be written down"


def _video_problems(views: Frames, view_spec: ViewSpec) -> Iterator[str]:
    if not isinstance(views.image, AnyRes):
        yield f"pictures beside videos are AnyRes, not {type(views.image).__name__}"
    if any(side % 2 for side in view_spec.grid):
        yield f"a frame's features have even sides, not {view_spec.grid[0]}x{view_spec.grid[1]}"


def image_views(views: Views) -> Views:
    """The views of pictures."""
    return views.image if isinstance(views, Frames) else views
