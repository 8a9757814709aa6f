"""3. Policy: an image -> the pixels of its views [n, 3, s, s] and its Layout."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_lab.data.layout import Block, Layout
from llava_lab.data.picture import load_image
from llava_lab.data.resample import centre, pad, scale


@dataclass(frozen=True)
class Vision:
    """What an encoder wants to see and what it gives back.

    Attributes:
        image_size: Side of the square view in pixels.
        grid: Rows and columns of patch features in one view.
        cls: Whether a CLS feature stands before the patches.
        mean: Mean of each colour channel, pixels in [0, 1].
        std: Standard deviation of each colour channel.
    """

    image_size: int
    grid: tuple[int, int]
    cls: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Policy(ABC):
    """How an image becomes the square views that an encoder takes.

    `layout` counts on integers alone, `pixels` computes, and the two agree.
    """

    # Values that change where features stand and not the pixels: stored features serve them all.
    layout_only: ClassVar[tuple[str, ...]] = ()
    # Whether images are turned as their EXIF orientation says; the released code does not.
    upright: bool = False

    @property
    def newline(self) -> bool:
        """Whether layouts have newlines, which the model must then have."""
        return False

    @property
    def videos(self) -> bool:
        """Whether videos have views, too."""
        return False

    def check(self, vision: Vision, max_length: int) -> None:
        """Refuse what does not fit an encoder or, where that is known beforehand, the LM.

        Args:
            vision: What the encoder wants and gives.
            max_length: Longest row in tokens.
        """
        self.layout((1, 1), vision)

    def load(self, path: Path) -> Any:
        """Read what `pixels` takes: an RGB image."""
        return load_image(path, self.upright)

    @abstractmethod
    def layout(self, size: tuple[int, ...], vision: Vision) -> Layout:
        """Geometry of an image's visual tokens.

        Args:
            size: Width and height of the image, as Pillow gives them; of a video also its frames.
            vision: What the encoder wants and gives.
        """

    @abstractmethod
    def pixels(self, image: Any, vision: Vision) -> Tensor:
        """Normalised views [n, 3, s, s] of what `load` gave, float32."""

    def words(self, path: Path) -> str:
        """A line that the question is told about an image or video; nothing by default."""
        return ""


def verify_media(path: Path, policy: Policy) -> tuple[int, ...]:
    """Decode all that a policy shows of an image or a video, and return what `layout` takes.

    It costs what loading the file for training costs, in time and memory: about 5 ms for a JPEG of
    640x480, tenths of a second for a video. Nothing cheaper would find the damage that loading
    finds.

    Args:
        path: The image; a `VideoPath` for a video or a folder of frames.
        policy: How it is shown.

    Returns:
        Width and height; of a video also the number of frames that are shown.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read, with the reason.
    """
    return policy.load(path).size


class Square(Policy):
    """One square view, as the encoder's own processor makes it.

    Args:
        resize: `crop` scales the shorter side to the view and keeps the centre (CLIP's processor;
            what lies outside is lost). `squash` scales both sides and ignores the aspect ratio
            (SigLIP's processor).
        upright: Whether photographs are turned as their EXIF orientation says, as transformers'
            loader does; the released code leaves them as they lie.
    """

    def __init__(self, resize: Literal["crop", "squash"] = "crop", upright: bool = False):
        if resize not in ("crop", "squash"):
            raise ValueError(f"Square: resize is {resize!r}; it is crop or squash")
        self.resize, self.upright = resize, upright

    def layout(self, size: tuple[int, ...], vision: Vision) -> Layout:
        """One view, whatever the size."""
        return Layout((Block(vision.grid, cls=vision.cls),))

    def pixels(self, image: Image.Image, vision: Vision) -> Tensor:
        """The view [1, 3, s, s]."""
        side = vision.image_size
        view = centre(image, side) if self.resize == "crop" else scale(image, (side, side))
        return normalise(view, vision)


class Pad(Policy):
    """One square view of the whole image, centred on a canvas of the encoder's mean colour.

    Args:
        upright: Whether photographs are turned as their EXIF orientation says, as transformers'
            loader does; the released code leaves them as they lie.
    """

    def __init__(self, upright: bool = False):
        self.upright = upright

    def layout(self, size: tuple[int, ...], vision: Vision) -> Layout:
        """One view, whatever the size."""
        return Layout((Block(vision.grid, cls=vision.cls),))

    def pixels(self, image: Image.Image, vision: Vision) -> Tensor:
        """The view [1, 3, s, s]."""
        # LLaVA cuts the mean to an integer, 122 116 104 for CLIP: mm_utils.py, expand2square.
        background = (
            int(vision.mean[0] * 255),
            int(vision.mean[1] * 255),
            int(vision.mean[2] * 255),
        )
        return normalise(pad(image, vision.image_size, background), vision)


def normalise(view: Image.Image, vision: Vision) -> Tensor:
    """Pixels [1, 3, s, s] of a view: levels to [0, 1], less the mean, over the deviation."""
    # The steps and precisions of transformers' processors: pixels are equal to the bit.
    levels = (np.asarray(view, np.float64) * (1 / 255)).astype(np.float32)
    mean, std = np.asarray(vision.mean, np.float32), np.asarray(vision.std, np.float32)
    return torch.from_numpy(((levels - mean) / std).transpose(2, 0, 1)[None].copy())
