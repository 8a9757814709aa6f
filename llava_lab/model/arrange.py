"""7. Layout: the features of an image's views [n, h, w, d] -> one visual sequence [v, d]."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from llava_lab.data.geometry import Block, Layout


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


def arrange(pieces: Sequence[Tensor], layouts: list[Layout], newline: Tensor | None) -> Tensor:
    """Put the views of all images together as their layouts say.

    Args:
        pieces: Features [n, h, w, d] of each block's views, pooled and at the LM's width.
        layouts: One for each image.
        newline: The learned newline [d], where a layout has one.

    Raises:
        ValueError: If a layout ends rows and there is no newline.
    """
    blocks = [block for layout in layouts for block in layout.blocks]
    if newline is None and any(block.newlines for block in blocks):
        raise ValueError("the views ends rows with a newline; set model.newline to true")
    return torch.cat(
        [_arrange(piece, block, newline) for piece, block in zip(pieces, blocks, strict=True)]
    )


def _arrange(views: Tensor, block: Block, newline: Tensor | None) -> Tensor:
    """The sequence [v, d] of one block's views [n, h, w, d]."""
    if block.tiles == (1, 1) and block.seen == block.cell and not block.newline:
        return views.flatten(0, 2)
    (down, across), (rows, columns) = block.tiles, block.cell
    # [tiles down, tiles across, rows, columns, d] -> [all rows, all columns, d]
    seen = views.unflatten(0, block.tiles).transpose(1, 2)
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
