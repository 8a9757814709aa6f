"""3. Frames: a video -> some of its frames, each a view, its features pooled."""

from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_lab.core.numbers import above, at_least
from llava_lab.data.geometry import Layout, Pool, ViewSpec
from llava_lab.data.image_folder import VideoPath
from llava_lab.data.media.clip import Clip, index_clip, load_clip
from llava_lab.data.views.base import Views
from llava_lab.data.views.square import Square

# Room that a question and its answer need at the least.
TEXT_TOKENS = 64

Newlines = Literal["grid", "frame", "one_token", "no_token"]


class Frames(Views):
    """Frames of a video as {1xN} AnyRes: a view each, no base view, pooled, one after another.

    A mixed stage has pictures, too; they go the way of `image`.

    Args:
        frames: Number of frames, or the most of them.
        fps: Frames a second that are wanted, where that is less than `frames` (training of
            LLaVA-NeXT-Video: 1); null spreads `frames` frames over the whole video, and repeats
            frames of one that has fewer.
        stride: Rows and columns of features of a frame that are pooled into one.
        mode: `average`, `max` or `bilinear`.
        position: Whether features are pooled `before` or `after` the connector.
        newline: Where the model's newline stands: after every row (`grid`), every `frame`, the
            whole video (`one_token`), or nowhere.
        time_instruction: Whether the question is told how long the video lasts and when its frames
            are shown.
        frame: How a frame becomes a view; null is `Square`. Its `upright` is that of `image`.
        image: How a picture becomes views; null is `Square`.
    """

    layout_only = ("stride", "mode", "position", "newlines", "time_instruction")

    def __init__(
        self,
        frames: int = 16,
        fps: float | None = None,
        stride: int = 2,
        mode: Literal["average", "max", "bilinear"] = "average",
        position: Literal["before", "after"] = "before",
        newline: Newlines = "no_token",
        time_instruction: bool = False,
        frame: Views | None = None,
        image: Views | None = None,
    ):
        at_least(1, "Frames: ", frames=frames)
        above(0, "Frames: ", fps=fps)
        if newline not in get_args(Newlines):
            known = ", ".join(get_args(Newlines))
            raise ValueError(f"Frames: newline is {newline!r}; it is one of {known}")
        Pool(stride, mode, position).check()
        self.frames, self.fps, self.newlines = frames, fps, newline
        self.stride, self.mode, self.position = stride, mode, position
        self.time_instruction = time_instruction
        self.image = image or Square()
        self.frame = frame or Square(upright=self.image.upright)
        if self.frame.upright != self.image.upright:
            raise ValueError(
                f"Frames: upright is {self.frame.upright} for frames and {self.image.upright} for "
                "pictures; set frame's and image's to one value"
            )
        if self.frame.pool is not None:
            raise ValueError(
                "Frames: frame has a pool, and frames are pooled by stride, mode and position of "
                "Frames itself; the pool of pictures is that of image"
            )

    @property
    def videos(self) -> bool:
        """Yes."""
        return True

    @property
    def upright(self) -> bool:  # pyrefly: ignore[bad-override]
        """Whether pictures and the frames of a folder are turned as their EXIF data say."""
        return self.image.upright

    @property
    def newline(self) -> bool:
        """Whether videos or pictures have newlines."""
        return self.newlines != "no_token" or self.image.newline

    def check(self, view_spec: ViewSpec, max_length: int) -> None:
        """Refuse more frames than the LM can read, with the arithmetic and what would fit."""
        self.image.check(view_spec, max_length)
        whole = self.tokens(self.frames, view_spec)
        if whole + TEXT_TOKENS > max_length:
            rows, columns = self.layout((1, 1, 1), view_spec).blocks[0].cell
            raise ValueError(
                f"{self.frames} frames x {rows}x{columns} features, newlines included, are "
                f"{whole:,} visual tokens; with {TEXT_TOKENS} of text {whole + TEXT_TOKENS:,}, and "
                f"a row has {max_length:,}. At most {self.most_frames(view_spec, max_length)} "
                "frames fit: take fewer (frames), pool more (stride), or scale the LM's positions "
                "(model.llm.rope_factor)"
            )

    @property
    def pool(self) -> Pool | None:  # pyrefly: ignore[bad-override]
        """How the features of a frame are pooled."""
        return Pool(self.stride, self.mode, self.position) if self.stride > 1 else None

    def with_numbers(self, frames: int, stride: int) -> "Frames":
        """The same with so many frames, pooled so."""
        other = copy(self)
        other.frames, other.stride = frames, stride
        return other

    def choose(self, count: int, fps: float) -> list[int]:
        """Indices of the frames that are taken of `count` at `fps` frames a second.

        LLaVA-NeXT's rules; its step of 0 for slow videos is a step of 1 here.
        """
        if self.fps is not None:
            wanted = range(0, count, max(1, round(fps / self.fps)))
            if len(wanted) <= self.frames:
                return list(wanted)
        return np.linspace(0, count - 1, self.frames, dtype=int).tolist()

    def load(self, path: Path) -> Image.Image | Clip:
        """The frames of a video that are taken, or a picture."""
        if isinstance(path, VideoPath):
            return load_clip(path, self.choose, self.upright)
        return self.image.load(path)

    def layout(self, size: tuple[int, ...], view_spec: ViewSpec) -> Layout:
        """A block a frame; of a picture, what `image` makes."""
        if len(size) == 2:
            return self.image.layout(size, view_spec)
        if view_spec.cls:
            raise ValueError("Frames pools maps, which a CLS feature is not part of: set cls=false")
        block = view_spec.block(self.pool)
        if self.newlines == "grid" and not view_spec.gives_map:
            raise ValueError(
                "Frames: newline=grid ends rows of a map, and what the connector "
                f"({type(view_spec.connector).__name__}) gives lies in no map: set newline=frame"
            )
        rows, end = replace(block, newline="row"), replace(block, newline="end")
        most, last = {
            "grid": (rows, rows),
            "frame": (end, end),
            "one_token": (block, end),
            "no_token": (block, block),
        }[self.newlines]
        return Layout((most,) * (size[2] - 1) + (last,))

    def tokens(self, frames: int, view_spec: ViewSpec) -> int:
        """Visual tokens of a video of so many frames."""
        return self.layout((1, 1, frames), view_spec).tokens

    def most_frames(self, view_spec: ViewSpec, max_length: int, text: int = TEXT_TOKENS) -> int:
        """The most frames whose tokens, with `text` more, fit a row; 0 if one does not."""
        last = self.tokens(1, view_spec)
        each = self.tokens(2, view_spec) - last
        return max(0, (max_length - text - last) // each + 1)

    def pixels(self, image: Image.Image | Clip, view_spec: ViewSpec) -> Tensor:
        """The frames [n, 3, s, s], or the views of a picture."""
        if isinstance(image, Clip):
            return torch.cat([self.frame.pixels(frame, view_spec) for frame in image.frames])
        return self.image.pixels(image, view_spec)

    def words(self, path: Path) -> str:
        """The time instruction of a video: LLaVA-NeXT's words, a space missing as there."""
        if not self.time_instruction or not isinstance(path, VideoPath):
            return ""
        index = index_clip(path)
        chosen = self.choose(len(index.times), index.fps)
        times = ",".join(f"{index.times[number]:.2f}s" for number in chosen)
        return (
            f"The video lasts for {index.duration:.2f} seconds, and {len(chosen)} frames are "
            f"uniformly sampled from it. These frames are located at {times}."
            "Please answer the following questions related to this video."
        )
