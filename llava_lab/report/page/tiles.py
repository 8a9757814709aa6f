"""12. Tiles: a picture's size and its views -> where each view lies on the picture."""

from dataclasses import dataclass

from llava_lab.data.views.anyres import AnyRes
from llava_lab.data.views.base import Views
from llava_lab.data.views.pad import Pad
from llava_lab.data.views.square import Square
from llava_lab.data.views.video import Frames

Box = tuple[float, float, float, float]  # left, top, width, height


@dataclass(frozen=True)
class Tiles:
    """Where views lie, in the picture's own pixels.

    Attributes:
        canvas: Left, top, width and height of all that is shown; padding lies outside the picture.
        boxes: What each view shows, but for a base view, which shows the whole picture.
        base: Whether there is a base view, too.
    """

    canvas: Box
    boxes: tuple[Box, ...] = ()
    base: bool = False


def tiles_of(views: Views, size: tuple[int, int], side: int) -> Tiles:
    """Where the views of a picture, or of one frame of a video, lie.

    Args:
        views: How pictures become views.
        size: Width and height of the picture.
        side: Width and height of a view.
    """
    width, height = size
    whole = (0.0, 0.0, float(width), float(height))
    if isinstance(views, Frames):
        return tiles_of(views.frame, size, side)
    if isinstance(views, AnyRes):
        across, down = views.canvas(size, side)
        factor = min(across / width, down / height)
        left, top = (width - across / factor) / 2, (height - down / factor) / 2
        step = side / factor
        boxes = tuple(
            (left + x * step, top + y * step, step, step)
            for y in range(down // side)
            for x in range(across // side)
        )
        return Tiles((left, top, across / factor, down / factor), boxes, views.base)
    if isinstance(views, Pad):
        longer = max(size)
        square = ((width - longer) / 2, (height - longer) / 2, float(longer), float(longer))
        return Tiles(square, (square,))
    if isinstance(views, Square):
        short = min(size)
        middle = ((width - short) / 2, (height - short) / 2, float(short), float(short))
        return Tiles(whole, (middle if views.resize == "crop" else whole,))
    return Tiles(whole)  # views of the user's own
