"""6. CAbstractor: convolutions around a pooling to a square of any side, then an MLP."""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from llava_lab.core.numbers import at_least
from llava_lab.data.geometry import GridSize
from llava_lab.model.connector.base import Connector


class CAbstractor(Connector):
    """Honeybee's C-Abstractor (Cha et al. 2023, arXiv:2312.06742).

    Blocks of RegNet (a bottleneck of convolutions with squeeze and excitation, and layer norms, so
    that views and batches do not mix), an average pooling to as many features as are wanted, as
    many blocks again, and linear layers with SiLU. The blocks have the encoder's width. Honeybee's
    learned position embeddings are left out: a connector does not know the grid beforehand, and
    what the encoder gives knows its place.

    Args:
        side: Rows and columns of features that it gives; no more than it gets.
        depth: Blocks before the pooling, and again behind it; with 0 the pooling is all.
        mlp_depth: Number of linear layers, 1 or more.
    """

    needs_map = True

    def __init__(
        self, in_width: int, out_width: int, side: int = 12, depth: int = 3, mlp_depth: int = 2
    ):
        super().__init__()
        at_least(1, "CAbstractor: ", side=side, mlp_depth=mlp_depth)
        at_least(0, "CAbstractor: ", depth=depth)
        self.side = side
        self.before, self.after = _blocks(in_width, depth), _blocks(in_width, depth)
        layers: list[nn.Module] = [nn.Linear(in_width, out_width)]
        for _ in range(mlp_depth - 1):
            layers += [nn.SiLU(), nn.Linear(out_width, out_width)]
        self.mlp = nn.Sequential(*layers)

    def grid(self, grid: GridSize) -> GridSize:
        """A square of the side.

        Raises:
            ValueError: If it gets fewer rows or columns.
        """
        if self.side > min(grid):
            raise ValueError(
                f"CAbstractor: side is {self.side}, more than {grid[0]}x{grid[1]} features have; "
                "set a smaller one"
            )
        return self.side, self.side

    def forward(self, features: Tensor) -> Tensor:
        """Features [n, side, side, out_width] of maps [n, h, w, in_width]."""
        maps = self.before(features.permute(0, 3, 1, 2))
        maps = self.after(adaptive_avg_pool2d(maps, self.grid((maps.shape[2], maps.shape[3]))))
        return self.mlp(maps.permute(0, 2, 3, 1))


def _blocks(width: int, depth: int) -> Any:
    """So many of RegNet's blocks on maps [n, d, h, w]; timm takes seconds to import."""
    from timm.layers import LayerNorm2d
    from timm.models.regnet import RegStage

    if not depth:
        return nn.Identity()
    return RegStage(
        depth, width, width, stride=1, dilation=1, act_layer=nn.SiLU, norm_layer=LayerNorm2d
    )
