"""5. Pool: each block's features [n, p, d] -> fewer features [n, p', d], around the connector."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from llava_lab.data.geometry import Layout, Pool


def connect(
    features: Tensor, layouts: list[Layout], connector: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """Features of each block's views at the LM's width, pooled where its layout says.

    Args:
        features: [n, p, d] of all images' views.
        layouts: One for each image.
        connector: Encoder's width to the LM's.

    Raises:
        ValueError: If views or features are not as many as the layouts say.
    """
    blocks = [block for layout in layouts for block in layout.blocks]
    views = sum(block.views for block in blocks)
    if views != len(features):
        raise ValueError(f"the layouts name {views} views, the encoder saw {len(features)}")
    for block in blocks:
        if block.grid[0] * block.grid[1] + block.cls != features.shape[1]:
            raise ValueError(f"{block}, but the encoder gives {features.shape[1]} features a view")
    pieces = features.split([block.views for block in blocks])
    connected: list[Tensor] = list(pieces)
    # Views that are pooled alike go through the connector together.
    for pool in dict.fromkeys(block.pool for block in blocks):
        alike = [index for index, block in enumerate(blocks) if block.pool == pool]
        same = torch.cat([pieces[index] for index in alike])
        grid = blocks[alike[0]].grid
        if pool is None:
            same = connector(same)
        elif pool.position == "before":
            same = connector(pooled(same, grid, pool))
        else:
            same = pooled(connector(same), grid, pool)
        parts = same.split([blocks[index].views for index in alike])
        for index, part in zip(alike, parts, strict=True):
            connected[index] = part
    return connected


def pooled(features: Tensor, grid: tuple[int, int], pool: Pool) -> Tensor:
    """Views [n, rows * columns, d] made smaller by a pool: LLaVA-NeXT's `get_2dPool`."""
    maps = features.transpose(1, 2).unflatten(2, grid)
    if pool.mode == "bilinear":
        maps = interpolate(maps, pool.grid(grid), mode="bilinear")
    else:
        maps = (avg_pool2d if pool.mode == "average" else max_pool2d)(maps, pool.stride)
    return maps.flatten(2).transpose(1, 2)
