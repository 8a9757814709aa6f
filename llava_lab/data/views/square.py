"""3. Square: one square view, cropped or squashed."""

from typing import Literal

from PIL import Image
from torch import Tensor

from llava_lab.data.geometry import Layout, Pool, ViewSpec
from llava_lab.data.media.resample import centre, scale
from llava_lab.data.views.base import Views, normalise


class Square(Views):
    """One square view, as the encoder's own processor makes it.

    Args:
        resize: `crop` scales the shorter side to the view and keeps the centre (CLIP's processor;
            what lies outside is lost). `squash` scales both sides and ignores the aspect ratio
            (SigLIP's processor).
        upright: Whether photographs are turned as their EXIF orientation says, as transformers'
            loader does; the released code leaves them as they lie.
        pool: How the features of each view are made fewer, before or after the connector; null
            keeps them all.
    """

    layout_only = ("pool",)

    def __init__(
        self,
        resize: Literal["crop", "squash"] = "crop",
        upright: bool = False,
        pool: Pool | None = None,
    ):
        if resize not in ("crop", "squash"):
            raise ValueError(f"Square: resize is {resize!r}; it is crop or squash")
        self.resize, self.upright, self.pool = resize, upright, pool

    def layout(self, size: tuple[int, ...], view_spec: ViewSpec) -> Layout:
        """One view, whatever the size."""
        return Layout((view_spec.block(self.pool),))

    def pixels(self, image: Image.Image, view_spec: ViewSpec) -> Tensor:
        """The view [1, 3, s, s]."""
        side = view_spec.image_size
        view = centre(image, side) if self.resize == "crop" else scale(image, (side, side))
        return normalise(view, view_spec)
