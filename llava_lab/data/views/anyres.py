"""3. AnyRes: an image -> a base view and the tiles of the grid that fits it best."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from llava_lab.core.numbers import at_least
from llava_lab.data.geometry import Layout, Pool, ViewSpec
from llava_lab.data.grids import Size, parse_grids
from llava_lab.data.media.resample import scale
from llava_lab.data.views.base import Views, normalise

# Above it, a map is scaled down to `max_tiles`: LLaVA-NeXT llava_arch.py, anyres_max.
SLACK = 1.1
Ties = Literal["released", "transformers"]


class AnyRes(Views):
    """A base view of the whole image, and tiles of the encoder's size on the best of some grids.

    As LLaVA-NeXT's `process_anyres_image`; LLaVA-1.5-HD is the same with other grids. The grid is
    the one that keeps most of the image's pixels, then the one that wastes least.

    Args:
        grids: Candidates, width x height in tiles; the first of equals wins. `1x2, 2x1, 2x2`, the
            short form `{2x2, 1x{2,3,4}, {2,3,4}x1}`, a range `(1x1)...(6x6)`; or released
            pinpoints, pairs of pixels such as [[336, 672], [672, 336]].
        merge: `flat` strings the tiles together; `spatial` puts them back into one map, row by row;
            `spatial_unpad` also drops what is padding and ends every row with the model's newline.
        base: Whether the base view comes first.
        max_tiles: Scale a map of more features than so many tiles have down to them
            (`anyres_max_9`), or null; `flat` has no map.
        ties: transformers reads pinpoints as (height, width), so that of two grids which fit alike
            it takes the transposed one, and rounds where padding ends before it truncates;
            `released` takes the first, and truncates.
        upright: Whether photographs are turned as their EXIF orientation says, as transformers'
            loader does; the released code leaves them as they lie.
        pool: How the features of each view are made fewer, before or after the connector; null
            keeps them all.
    """

    layout_only = ("merge", "max_tiles", "pool")

    def __init__(
        self,
        grids: str | list[str] | list[list[int]],
        merge: Literal["flat", "spatial", "spatial_unpad"] = "spatial_unpad",
        base: bool = True,
        max_tiles: int | None = None,
        ties: Ties = "released",
        upright: bool = False,
        pool: Pool | None = None,
    ):
        self.grids, self.merge, self.base = grids, merge, base
        at_least(1, "AnyRes: ", max_tiles=max_tiles)
        if merge == "flat" and max_tiles is not None:
            raise ValueError(
                f"AnyRes: max_tiles={max_tiles} scales a map down, and merge=flat puts none "
                "together; set max_tiles=null, or merge=spatial"
            )
        self.max_tiles, self.ties, self.upright, self.pool = max_tiles, ties, upright, pool
        self._parsed = parse_grids(grids)
        # The parts of a string are strings, too; pairs are in pixels.
        self._in_tiles = any(isinstance(part, str) for part in grids)

    @property
    def newline(self) -> bool:
        """Rows end with a newline where padding is dropped."""
        return self.merge == "spatial_unpad"

    def canvases(self, side: int) -> list[Size]:
        """Candidates in pixels for an encoder of this side.

        Raises:
            ValueError: If pinpoints in pixels are no multiples of the side.
        """
        if self._in_tiles:
            return [(width * side, height * side) for width, height in self._parsed]
        if odd := [pair for pair in self._parsed if pair[0] % side or pair[1] % side]:
            raise ValueError(
                f"grids: {odd[0]} is no multiple of the encoder's {side} px; write tiles, such as "
                "'1x2, 2x1, 2x2', which fit any encoder"
            )
        return self._parsed

    def canvas(self, size: Size, side: int) -> Size:
        """Width and height of the canvas that is cut into tiles, for an image of this size."""
        candidates = self.canvases(side)
        if self.ties == "transformers":
            candidates = [(height, width) for width, height in candidates]
        return best_canvas(size, candidates)

    def layout(self, size: tuple[int, ...], view_spec: ViewSpec) -> Layout:
        """Base view, then the map of the tiles, each pooled and connected on its own."""
        if view_spec.cls:
            raise ValueError(
                "AnyRes puts tiles together, which a CLS feature cannot be: set cls=false"
            )
        side, view = view_spec.image_size, view_spec.block(self.pool)
        if self.merge != "flat" and not view_spec.gives_map:
            raise ValueError(
                f"AnyRes: merge={self.merge} puts tiles together as maps, and what the connector "
                f"({type(view_spec.connector).__name__}) gives lies in no map: set merge=flat"
            )
        width, height = self.canvas((size[0], size[1]), side)
        tiles = (height // side, width // side)
        base = (view,) * self.base
        if self.merge == "flat":
            return Layout(base + (view,) * (tiles[0] * tiles[1]))
        whole = (tiles[0] * view.cell[0], tiles[1] * view.cell[1])
        # The image as the map shows it, should a connector make fewer of rows than of columns.
        wide, high = view.cell[1] * view.grid[0], view.cell[0] * view.grid[1]
        shown = (size[0], size[1]) if wide == high else (size[0] * wide, size[1] * high)
        crop = unpadded(shown, whole, self.ties) if self.newline else whole
        shrunk = self._shrunk(crop, view.cell)
        end = "row" if self.newline else None
        return Layout((*base, replace(view, tiles=tiles, crop=crop, size=shrunk, newline=end)))

    def _shrunk(self, seen: Size, cell: Size) -> Size | None:
        """Rows and columns after scaling down to `max_tiles`."""
        if self.max_tiles is None:
            return None
        times = math.sqrt(seen[0] * seen[1] / (self.max_tiles * cell[0] * cell[1]))
        if times <= SLACK:
            return None
        return max(1, int(seen[0] // times)), max(1, int(seen[1] // times))

    def pixels(self, image: Image.Image, view_spec: ViewSpec) -> Tensor:
        """The base view and the tiles, row by row [1 + n, 3, s, s]."""
        side = view_spec.image_size
        canvas = fit(image, self.canvas(image.size, side))
        views = [
            canvas.crop((x, y, x + side, y + side))
            for y in range(0, canvas.height, side)
            for x in range(0, canvas.width, side)
        ]
        if self.base:
            # Squashed, not padded: so the models were trained.
            views.insert(0, scale(image, (side, side)))
        return torch.cat([normalise(view, view_spec) for view in views])


def best_canvas(size: Size, candidates: Sequence[Size]) -> Size:
    """The candidate that keeps most of the image's pixels, then wastes least, then comes first.

    LLaVA's `select_best_resolution`, its truncation included.
    """

    def merit(canvas: Size) -> tuple[int, int]:
        factor = min(canvas[0] / size[0], canvas[1] / size[1])
        kept = int(size[0] * factor) * int(size[1] * factor)
        effective = min(kept, size[0] * size[1])
        return effective, effective - canvas[0] * canvas[1]

    return max(candidates, key=merit)


def fit(image: Image.Image, canvas: Size) -> Image.Image:
    """The image, as large as it fits, in the middle of a black canvas."""
    across, down = canvas[0] / image.width, canvas[1] / image.height
    if across < down:
        size = (canvas[0], min(math.ceil(image.height * across), canvas[1]))
    else:
        size = (min(math.ceil(image.width * down), canvas[0]), canvas[1])
    whole = Image.new("RGB", canvas)
    whole.paste(scale(image, size), ((canvas[0] - size[0]) // 2, (canvas[1] - size[1]) // 2))
    return whole


def unpadded(size: Size, whole: Size, ties: Ties = "released") -> Size:
    """Rows and columns of a map that show the image and no padding: LLaVA's `unpad_image`.

    Args:
        size: Width and height of the image.
        whole: Rows and columns of the map.
        ties: See `AnyRes`.
    """
    (width, height), (rows, columns) = size, whole
    wide = width / height > columns / rows
    shown = height * (columns / width) if wide else width * (rows / height)
    kept = int(round(shown, 7) if ties == "transformers" else shown)
    if wide:
        return rows - 2 * ((rows - kept) // 2), columns
    return rows, columns - 2 * ((columns - kept) // 2)
