"""12. Pictures: the pixels of views -> what a page shows, and which visual token is where on it."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image
from torch import Tensor

from llava_lab.data.geometry import Block, Layout, ViewSpec

MOST_PIXELS = 448  # longest side of a picture on the page; smaller ones are as they are


@dataclass(frozen=True)
class Map:
    """One block of a layout: its views put together, and the visual tokens that lie on it.

    Attributes:
        name: What it is: "whole picture", "2 x 3 tiles", "frame 4".
        source: The pixels as the encoder sees them, as a data URI.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        first: Place of its first token among the image's visual tokens.
        rows: Rows of tokens.
        columns: Tokens of a row, newlines aside.
        newline: Where a newline stands: after every `row`, at the `end`, or nowhere.
        skipped: Tokens before the map: a CLS feature.
        drawn: Whether its tokens lie where they stand; not behind a connector without a map.
    """

    name: str
    source: str
    width: int
    height: int
    first: int
    rows: int
    columns: int
    newline: str | None
    skipped: int
    drawn: bool

    @property
    def tokens(self) -> int:
        """Visual tokens, newlines included."""
        ends = {"row": self.rows, "end": 1}.get(self.newline or "", 0)
        return self.skipped + self.rows * self.columns + ends

    @property
    def said(self) -> str:
        """Its tokens as arithmetic."""
        ends = {"row": f" + {self.rows} newlines", "end": " + 1 newline"}.get(
            self.newline or "", ""
        )
        cls = "1 CLS + " * bool(self.skipped)
        return f"{cls}{self.rows} x {self.columns}{ends} = {self.tokens}"


def data_uri(image: Image.Image) -> str:
    """A picture's own pixels, as a data URI."""
    out = BytesIO()
    image.save(out, "PNG")
    return f"data:image/png;base64,{b64encode(out.getvalue()).decode()}"


def unnormalised(views: Tensor, spec: ViewSpec) -> list[Image.Image]:
    """Views [n, 3, s, s] as pictures.

    Args:
        views: Normalised pixels.
        spec: Whose mean and deviation they have.
    """
    mean, std = (np.asarray(each, np.float32)[:, None, None] for each in (spec.mean, spec.std))
    levels = (views.float().cpu().numpy() * std + mean) * 255
    return [
        Image.fromarray(each.round().clip(0, 255).astype(np.uint8))
        for each in levels.transpose(0, 2, 3, 1)
    ]


def maps_of(
    layout: Layout, views: Sequence[Image.Image], spec: ViewSpec, what: str = "view"
) -> list[Map]:
    """The blocks of one image's layout, in the order of its tokens.

    Args:
        layout: The image's.
        views: Its views.
        spec: What the model makes of a view.
        what: What a view is called that is no tile: "frame".
    """
    rest, first, found = list(views), 0, []
    names = _names(layout, what)
    for name, block in zip(names, layout.blocks, strict=True):
        own, rest = rest[: block.views], rest[block.views :]
        picture = _together(block, own)
        picture.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS)
        rows, columns = block.grid if block.cls and not block.reduced else block.seen
        skipped = int(block.cls and not block.reduced)
        place = (first, rows, columns, block.newline, skipped)
        found.append(Map(name, data_uri(picture), *picture.size, *place, _drawn(block, spec)))
        first += block.tokens
    return found


def _drawn(block: Block, spec: ViewSpec) -> bool:
    return spec.gives_map or (block.cls and not block.reduced)


def _names(layout: Layout, what: str) -> Iterator[str]:
    """What each block is called."""
    blocks = layout.blocks
    for number, block in enumerate(blocks, 1):
        if block.views > 1:
            yield f"{block.tiles[0]} x {block.tiles[1]} tiles"
        elif len(blocks) == 1 or (number == 1 and blocks[-1].views > 1):
            yield "whole picture"
        else:
            yield f"{what} {number}"


def _together(block: Block, views: Sequence[Image.Image]) -> Image.Image:
    """A block's views side by side, without what is cropped from the map."""
    (down, across), side = block.tiles, views[0].width
    whole = Image.new("RGB", (across * side, down * side))
    for place, view in enumerate(views):
        whole.paste(view, (place % across * side, place // across * side))
    if block.crop is None:
        return whole
    kept = [
        size * crop / of
        for size, crop, of in zip((whole.height, whole.width), block.crop, block.whole, strict=True)
    ]
    top, left = ((of - crop) // 2 / of for crop, of in zip(block.crop, block.whole, strict=True))
    top, left = top * whole.height, left * whole.width
    return whole.crop((round(left), round(top), round(left + kept[1]), round(top + kept[0])))
