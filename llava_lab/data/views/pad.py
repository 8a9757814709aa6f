"""3. Pad: one square view of the whole image, padded."""

from PIL import Image
from torch import Tensor

from llava_lab.data.geometry import Layout, Pool, ViewSpec
from llava_lab.data.media.resample import pad
from llava_lab.data.views.base import Views, normalise


class Pad(Views):
    """One square view of the whole image, centred on a canvas of the encoder's mean colour.

    Args:
        upright: Whether photographs are turned as their EXIF orientation says, as transformers'
            loader does; the released code leaves them as they lie.
        pool: How the features of each view are made fewer, before or after the connector; null
            keeps them all.
    """

    layout_only = ("pool",)

    def __init__(self, upright: bool = False, pool: Pool | None = None):
        self.upright, self.pool = upright, pool

    def layout(self, size: tuple[int, ...], view_spec: ViewSpec) -> Layout:
        """One view, whatever the size."""
        return Layout((view_spec.block(self.pool),))

    def pixels(self, image: Image.Image, view_spec: ViewSpec) -> Tensor:
        """The view [1, 3, s, s]."""
        # LLaVA cuts the mean to an integer, 122 116 104 for CLIP: mm_utils.py, expand2square.
        background = (
            int(view_spec.mean[0] * 255),
            int(view_spec.mean[1] * 255),
            int(view_spec.mean[2] * 255),
        )
        return normalise(pad(image, view_spec.image_size, background), view_spec)
