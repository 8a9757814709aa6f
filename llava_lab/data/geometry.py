"""3. Layout: where the features of an image's views stand in its visual sequence, as integers.

The geometry is a chain. The encoder gives a map of features for each view; pooling and the
connector each say which map they make of the one they get (`grid`); tiles are put together from
what is left. Training, `plan`, evaluation and serving all count by it, without weights.
"""

from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar, Literal, Protocol

from llava_lab.core.numbers import at_least

GridSize = tuple[int, int]  # rows and columns


class GridRule(Protocol):
    """What the geometry asks of a connector.

    Attributes:
        needs_map: Whether it reads a feature's neighbours, so that features must lie in a map.
        gives_map: Whether what it gives lies in a map like the one that it gets.
    """

    needs_map: ClassVar[bool]
    gives_map: ClassVar[bool]

    def grid(self, grid: GridSize) -> GridSize:
        """Rows and columns of features that it gives for those that it gets.

        Raises:
            ValueError: If it cannot take so many.
        """


@dataclass(frozen=True)
class Pool:
    """How the map of features of each view is made smaller.

    Args:
        stride: Rows and columns of features that become one.
        mode: `average` or `max` of whole squares, what is left over is dropped (27 / 2 = 13); or
            `bilinear`, to the side rounded up (27 / 2 = 14).
        position: `before` the connector (the released LLaVA-NeXT-Video-7B) or `after` it
            (LLaVA-NeXT's later code); through an MLP the two differ.
    """

    stride: int
    mode: Literal["average", "max", "bilinear"] = "average"
    position: Literal["before", "after"] = "before"

    def check(self) -> None:
        """Refuse values that no pool has.

        Raises:
            ValueError: If there is one; names it.
        """
        at_least(1, "pool: ", stride=self.stride)
        for name, value, known in (
            ("mode", self.mode, ("average", "max", "bilinear")),
            ("position", self.position, ("before", "after")),
        ):
            if value not in known:
                raise ValueError(f"pool: {name} is {value!r}; it is one of {', '.join(known)}")

    def grid(self, grid: GridSize) -> GridSize:
        """Rows and columns of a view that are left of `grid`.

        Raises:
            ValueError: If none are left.
        """
        rest = self.stride - 1 if self.mode == "bilinear" else 0
        left = (grid[0] + rest) // self.stride, (grid[1] + rest) // self.stride
        if not all(left):
            raise ValueError(
                f"pool: stride {self.stride} leaves nothing of {grid[0]}x{grid[1]} features"
            )
        return left


@dataclass(frozen=True)
class ViewSpec:
    """What a model wants to see and what becomes of each view before views are put together.

    An encoder describes itself alone; `Llava.view_spec` adds its connector.

    Attributes:
        image_size: Side of the square view in pixels.
        grid: Rows and columns of patch features in one view.
        cls: Whether a CLS feature stands before the patches. Features then lie in no map: they go
            through the model as one row [n, 1, 1 + rows x columns, d].
        mean: Mean of each colour channel, pixels in [0, 1].
        std: Standard deviation of each colour channel.
        connector: What the connector makes of a map; None where it keeps every feature.
    """

    image_size: int
    grid: GridSize
    cls: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    connector: GridRule | None = None

    def block(self, pool: Pool | None = None) -> "Block":
        """One view, pooled and connected.

        Args:
            pool: How it is pooled, or None.

        Raises:
            ValueError: If the pool or the connector cannot take the features that it would get.
        """
        if pool:
            pool.check()
        if self.cls and pool:
            raise ValueError(
                "features are pooled as a map, which a CLS feature is not part of: set cls=false"
            )
        block = Block(self.grid, cls=self.cls, pool=pool)
        cell = connected = block.connected
        after = pool if pool and pool.position == "after" else None
        if self.connector is not None:
            name = type(self.connector).__name__
            if self.cls and self.connector.needs_map:
                raise ValueError(
                    f"{name} needs a map of features, which a CLS feature is not part of: set "
                    "cls=false"
                )
            if after and not self.connector.gives_map:
                raise ValueError(
                    f"what {name} gives lies in no map and cannot be pooled: set position=before"
                )
            cell = connected = self.connector.grid(cell)
        if after:
            cell = after.grid(cell)
        return block if connected == block.connected else replace(block, reduced=cell)

    @property
    def encoded(self) -> GridSize:
        """Rows and columns of one view that the encoder gives; one row with a CLS feature."""
        return Block(self.grid, cls=self.cls).encoded

    @property
    def gives_map(self) -> bool:
        """Whether the features of a view still lie in a map when views are put together."""
        return not self.cls and (self.connector is None or self.connector.gives_map)


@dataclass(frozen=True)
class Block:
    """Views put together as one map of features, and what of the map the LM sees.

    Attributes:
        grid: Rows and columns of patch features in one view.
        tiles: Views down and across.
        crop: Rows and columns of the map that are kept, or None for all; the middle is kept.
        size: Rows and columns that the kept part is resampled to (bilinear), or None.
        newline: Where a learned newline stands: after every `row`, at the `end`, or nowhere.
        cls: Whether a CLS feature stands before the patches; only where nothing is put together.
        pool: How each view is made smaller before anything else, or None.
        reduced: Rows and columns of one view, pooled and connected; None where the connector keeps
            every feature that it gets.
    """

    grid: GridSize
    tiles: GridSize = (1, 1)
    crop: GridSize | None = None
    size: GridSize | None = None
    newline: Literal["row", "end"] | None = None
    cls: bool = False
    pool: Pool | None = None
    reduced: GridSize | None = None

    @property
    def encoded(self) -> GridSize:
        """Rows and columns of one view that the encoder gives; one row with a CLS feature."""
        return (1, 1 + self.grid[0] * self.grid[1]) if self.cls else self.grid

    @property
    def connected(self) -> GridSize:
        """Rows and columns of one view that the connector gets."""
        if self.pool is None or self.pool.position == "after":
            return self.encoded
        return self.pool.grid(self.encoded)

    @property
    def cell(self) -> GridSize:
        """Rows and columns of one view, pooled and connected."""
        if self.reduced:
            return self.reduced
        return self.pool.grid(self.encoded) if self.pool else self.encoded

    @property
    def views(self) -> int:
        """Number of views."""
        return self.tiles[0] * self.tiles[1]

    @property
    def whole(self) -> GridSize:
        """Rows and columns of the map."""
        return self.tiles[0] * self.cell[0], self.tiles[1] * self.cell[1]

    @property
    def seen(self) -> GridSize:
        """Rows and columns that the LM sees, newlines aside."""
        return self.size or self.crop or self.whole

    @property
    def newlines(self) -> int:
        """Number of newlines."""
        return {"row": self.seen[0], "end": 1, None: 0}[self.newline]

    @property
    def tokens(self) -> int:
        """Number of visual tokens."""
        return self.seen[0] * self.seen[1] + self.newlines


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
    def encoded(self) -> int:
        """Number of features that the encoder gives for this image."""
        return sum(block.views * prod(block.encoded) for block in self.blocks)

    @property
    def connected(self) -> int:
        """Number of features that the connector gets for this image."""
        return sum(block.views * prod(block.connected) for block in self.blocks)

    @property
    def newlines(self) -> int:
        """Number of newlines among the tokens."""
        return sum(block.newlines for block in self.blocks)

    @property
    def tokens(self) -> int:
        """Number of visual tokens that the LM sees for this image."""
        return sum(block.tokens for block in self.blocks)
