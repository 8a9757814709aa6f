"""5. Pool: each block's features [n, h, w, d] -> fewer [n, h', w', d], around the connector."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from llava_lab.data.geometry import Block, Layout, Pool


def connect(
    features: Tensor, layouts: list[Layout], connector: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Features of each block's views at the LM's width, pooled where its layout says.

    Args:
        features: [n, h, w, d] of all images' views.
        layouts: One for each image.
        connector: Encoder's width to the LM's.

    Returns:
        Features [n, h', w', d'] of each block's views.

    Raises:
        ValueError: If views or features are not as many as the layouts say.
    """
    blocks = [block for layout in layouts for block in layout.blocks]
    views = sum(block.views for block in blocks)
    if views != len(features):
        raise ValueError(f"the layouts name {views} views, the encoder saw {len(features)}")
    for block in blocks:
        if features.ndim != 4 or features.shape[1:3] != block.encoded:
            rows, columns = block.encoded
            raise ValueError(
                f"the layouts count {rows} x {columns} features of a view, [{views}, {rows}, "
                f"{columns}, width]; the encoder gives {list(features.shape)}"
            )
    pieces = features.split([block.views for block in blocks])
    connected: list[Tensor] = list(pieces)
    # Views that are pooled alike go through the connector together.
    for pool in dict.fromkeys(block.pool for block in blocks):
        alike = [index for index, block in enumerate(blocks) if block.pool == pool]
        same = torch.cat([pieces[index] for index in alike])
        if pool and pool.position == "before":
            same = pooled(same, pool)
        same = connector(same)
        if pool and pool.position == "after":
            same = pooled(same, pool)
        parts = same.split([blocks[index].views for index in alike])
        for index, part in zip(alike, parts, strict=True):
            connected[index] = _checked(part, blocks[index], connector)
    return connected


def _checked(views: Tensor, block: Block, connector: object) -> Tensor:
    """The features of a block, if they are those that its layout counts."""
    if views.ndim != 4 or views.shape[1:3] != block.cell:
        rows, columns = block.cell
        raise ValueError(
            f"the layouts count {rows} x {columns} features of a view behind the connector, "
            f"{type(connector).__name__} gives {list(views.shape)}: its `grid` and `forward` differ"
        )
    return views


def pooled(features: Tensor, pool: Pool) -> Tensor:
    """Views [n, h, w, d] made smaller by a pool: LLaVA-NeXT's `get_2dPool`."""
    maps = features.permute(0, 3, 1, 2)
    if pool.mode == "bilinear":
        maps = interpolate(maps, pool.grid((maps.shape[2], maps.shape[3])), mode="bilinear")
    else:
        maps = (avg_pool2d if pool.mode == "average" else max_pool2d)(maps, pool.stride)
    return maps.permute(0, 2, 3, 1)
