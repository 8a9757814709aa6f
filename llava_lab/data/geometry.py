"""3. Layout: where the features of an image's views stand in its visual sequence, as integers."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ViewSpec:
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


@dataclass(frozen=True)
class Pool:
    """How the map of features of each view is made smaller.

    Attributes:
        stride: Rows and columns of features that become one.
        mode: `average` or `max` of whole squares, what is left over is dropped (27 / 2 = 13); or
            `bilinear`, to the side rounded up (27 / 2 = 14).
        position: `before` the connector (the released LLaVA-NeXT-Video-7B) or `after` it
            (LLaVA-NeXT's later code); through an MLP the two differ.
    """

    stride: int
    mode: Literal["average", "max", "bilinear"] = "average"
    position: Literal["before", "after"] = "before"

    def grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a view that are left of `grid`."""
        rest = self.stride - 1 if self.mode == "bilinear" else 0
        return (grid[0] + rest) // self.stride, (grid[1] + rest) // self.stride


@dataclass(frozen=True)
class Block:
    """Views put together as one map of features, and what of the map the LM sees.

    Attributes:
        grid: Rows and columns of features in one view.
        tiles: Views down and across.
        crop: Rows and columns of the map that are kept, or None for all; the middle is kept.
        size: Rows and columns that the kept part is resampled to (bilinear), or None.
        newline: Where a learned newline stands: after every `row`, at the `end`, or nowhere.
        cls: Whether a CLS feature stands before the patches; only where nothing is put together.
        pool: How each view is made smaller before anything else, or None.
    """

    grid: tuple[int, int]
    tiles: tuple[int, int] = (1, 1)
    crop: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    newline: Literal["row", "end"] | None = None
    cls: bool = False
    pool: Pool | None = None

    @property
    def cell(self) -> tuple[int, int]:
        """Rows and columns of one view, pooled."""
        return self.pool.grid(self.grid) if self.pool else self.grid

    @property
    def views(self) -> int:
        """Number of views."""
        return self.tiles[0] * self.tiles[1]

    @property
    def whole(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return self.tiles[0] * self.cell[0], self.tiles[1] * self.cell[1]

    @property
    def seen(self) -> tuple[int, int]:
        """Rows and columns that the LM sees, newlines aside."""
        return self.size or self.crop or self.whole

    @property
    def newlines(self) -> int:
        """Number of newlines."""
        return {"row": self.seen[0], "end": 1, None: 0}[self.newline]

    @property
    def tokens(self) -> int:
        """Number of visual tokens."""
        return self.seen[0] * self.seen[1] + self.newlines + self.cls * self.views


@dataclass(frozen=True)
class Layout:
    """Pure geometry of one image's visual tokens; the only place that knows their count.

    Attributes:
        blocks: One after another, in the order of the views.
    """

    blocks: tuple[Block, ...]

    @property
    def views(self) -> int:
        """Number of views that the encoder sees for this image."""
        return sum(block.views for block in self.blocks)

    @property
    def newlines(self) -> int:
        """Number of newlines among the tokens."""
        return sum(block.newlines for block in self.blocks)

    @property
    def tokens(self) -> int:
        """Number of visual tokens that the LM sees for this image."""
        return sum(block.tokens for block in self.blocks)
