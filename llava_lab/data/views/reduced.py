"""3. Reduced: any views of a picture that has lost its detail; a control."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from llava_lab.core.numbers import at_least
from llava_lab.data.geometry import Layout, ViewSpec
from llava_lab.data.media.resample import scale
from llava_lab.data.views.base import Views


class Reduced(Views):
    """What other views show of a picture that is scaled down to a square, and back to its size.

    A control: as many views and tokens as of the picture itself, with no more to be seen in them
    than in one view of `side` pixels.

    Args:
        side: Rows and columns of pixels that are left of the picture.
        views: How it is then shown. They have no videos.
    """

    def __init__(self, side: int, views: Views):
        at_least(1, "Reduced: ", side=side)
        if views.videos:
            raise ValueError(
                f"Reduced: {type(views).__name__} shows videos, which are not reduced: name the "
                "views of pictures"
            )
        self.side, self.views = side, views
        self.upright, self.pool = views.upright, views.pool

    @property
    def newline(self) -> bool:
        """Whether the views have newlines."""
        return self.views.newline

    def check(self, view_spec: ViewSpec, max_length: int) -> None:
        """Refuse what the views refuse."""
        self.views.check(view_spec, max_length)

    def load(self, path: Path) -> Any:
        """The picture, as the views read it."""
        return self.views.load(path)

    def layout(self, size: tuple[int, ...], view_spec: ViewSpec) -> Layout:
        """That of the picture itself."""
        return self.views.layout(size, view_spec)

    def pixels(self, image: Image.Image, view_spec: ViewSpec) -> Tensor:
        """The views of the reduced picture."""
        small = scale(image, (self.side, self.side))
        return self.views.pixels(scale(small, image.size), view_spec)
