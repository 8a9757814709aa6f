"""7. Layout: the features of an image's views [n, p, d] -> one visual sequence [v, d]."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from llava_lab.data.layout import Block, Layout


class Newline(nn.Module):
    """The learned vector that ends the rows of a map of features (`image_newline`).

    Args:
        width: The LM's.
        there: Whether the model has one.
    """

    def __init__(self, width: int, there: bool):
        super().__init__()
        # Random of the size of an embedding, as released.
        self.weight = nn.Parameter(torch.randn(width) / width**0.5) if there else None


def arrange(features: Tensor, layouts: list[Layout], newline: Tensor | None = None) -> Tensor:
    """Put the views of all images together as their layouts say.

    Args:
        features: [n, p, d] of all images' views.
        layouts: One for each image.
        newline: The learned newline [d], where a layout has one.

    Raises:
        ValueError: If views or features are not as many as the layouts say, or a layout ends rows
            and there is no newline.
    """
    blocks = [block for layout in layouts for block in layout.blocks]
    views = sum(block.views for block in blocks)
    if views != len(features):
        raise ValueError(f"the layouts name {views} views, the encoder saw {len(features)}")
    for block in blocks:
        if block.grid[0] * block.grid[1] + block.cls != features.shape[1]:
            raise ValueError(f"{block}, but the encoder gives {features.shape[1]} features a view")
        if block.newlines and newline is None:
            raise ValueError("the policy ends rows with a newline; set model.newline to true")
    pieces, start = [], 0
    for block in blocks:
        pieces.append(_arrange(features[start : start + block.views], block, newline))
        start += block.views
    return torch.cat(pieces)


def _arrange(views: Tensor, block: Block, newline: Tensor | None) -> Tensor:
    """The sequence [v, d] of one block's views [n, p, d]."""
    if block.cls or (block.tiles == (1, 1) and block.seen == block.grid and not block.newline):
        return views.flatten(0, 1)
    (down, across), (rows, columns) = block.tiles, block.grid
    # [tiles down, tiles across, rows, columns, d] -> [all rows, all columns, d]
    seen = views.unflatten(1, block.grid).unflatten(0, block.tiles).transpose(1, 2)
    seen = seen.reshape(down * rows, across * columns, -1)
    if block.crop:
        top, left = (
            (whole - kept) // 2 for whole, kept in zip(block.whole, block.crop, strict=True)
        )
        seen = seen[top : top + block.crop[0], left : left + block.crop[1]]
    if block.size:
        seen = interpolate(seen.permute(2, 0, 1)[None], block.size, mode="bilinear")
        seen = seen[0].permute(1, 2, 0)
    if block.newline is None:
        return seen.flatten(0, 1)
    assert newline is not None
    end = newline.to(seen.dtype)
    if block.newline == "end":
        return torch.cat([seen.flatten(0, 1), end[None]])
    return torch.cat([seen, end.expand(len(seen), 1, -1)], dim=1).flatten(0, 1)
