"""3. Views: an image -> the pixels of its views [n, 3, s, s] and its Layout."""

from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_lab.data.geometry import Layout, Pool, ViewSpec
from llava_lab.data.media.picture import load_image


class Views(ABC):
    """How an image becomes the square views that an encoder takes.

    `layout` counts on integers alone, `pixels` computes, and the two agree.
    """

    # Values that change where features stand and not the pixels: stored features serve them all.
    layout_only: ClassVar[tuple[str, ...]] = ()
    # Whether images are turned as their EXIF orientation says; the released code does not.
    upright: bool = False
    # How the features of each view are made fewer, around the connector.
    pool: Pool | None = None

    @property
    def newline(self) -> bool:
        """Whether layouts have newlines, which the model must then have."""
        return False

    @property
    def videos(self) -> bool:
        """Whether videos have views, too."""
        return False

    def check(self, view_spec: ViewSpec, max_length: int) -> None:
        """Refuse what does not fit a model or, where that is known beforehand, the LM.

        Args:
            view_spec: What the model wants to see and makes of a view.
            max_length: Longest row in tokens.
        """
        self.layout((1, 1), view_spec)

    def load(self, path: Path) -> Any:
        """Read what `pixels` takes: an RGB image."""
        return load_image(path, self.upright)

    @abstractmethod
    def layout(self, size: tuple[int, ...], view_spec: ViewSpec) -> Layout:
        """Geometry of an image's visual tokens.

        Args:
            size: Width and height of the image, as Pillow gives them; of a video also its frames.
            view_spec: What the model wants to see and makes of a view.
        """

    @abstractmethod
    def pixels(self, image: Any, view_spec: ViewSpec) -> Tensor:
        """Normalised views [n, 3, s, s] of what `load` gave, float32."""

    def words(self, path: Path) -> str:
        """A line that the question is told about an image or video; nothing by default."""
        return ""


def verify_media(path: Path, views: Views) -> tuple[int, ...]:
    """Decode all that views shows of an image or a video, and return what `layout` takes.

    It costs what loading the file for training costs, in time and memory: about 5 ms for a JPEG of
    640x480, tenths of a second for a video. Nothing cheaper would find the damage that loading
    finds.

    Args:
        path: The image; a `VideoPath` for a video or a folder of frames.
        views: How it is shown.

    Returns:
        Width and height; of a video also the number of frames that are shown.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, with the reason.
    """
    return views.load(path).size


def normalise(view: Image.Image, view_spec: ViewSpec) -> Tensor:
    """Pixels [1, 3, s, s] of a view: levels to [0, 1], less the mean, over the deviation."""
    levels = np.asarray(view)
    pixels = np.empty((1, 3, *levels.shape[:2]), np.float32)
    for channel, values in enumerate(_pixels(tuple(view_spec.mean), tuple(view_spec.std))):
        np.take(values, levels[:, :, channel], out=pixels[0, channel], mode="clip")
    return torch.from_numpy(pixels)


@cache
def _pixels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """The pixel of each level [3, 256], which is a fourth of the work of computing all pixels."""
    # The steps and precisions of transformers' processors: pixels are equal to the bit.
    levels = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    shift, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    return np.ascontiguousarray(((levels[:, None] - shift) / scale).T)
