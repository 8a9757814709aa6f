"""6. PixelShuffle: squares of features into one, then an MLP."""

from torch import Tensor

from llava_lab.core.numbers import at_least
from llava_lab.data.geometry import GridSize
from llava_lab.model.connector.base import Connector
from llava_lab.model.connector.mlp import MLP


class PixelShuffle(Connector):
    """Squares of neighbouring features become one wide feature, which an MLP reads.

    Nothing is lost: the LM sees fewer tokens, each made of a whole square. As in InternVL 1.5 (Chen
    et al. 2024, arXiv:2404.16821) and Idefics3 (Laurençon et al. 2024, arXiv:2408.12637).

    Args:
        factor: Rows and columns of features that become one; it divides the grid of features.
        depth: Number of linear layers of the MLP, 1 or more; with 1 there is no hidden layer
            (Idefics3).
    """

    needs_map = True

    def __init__(self, in_width: int, out_width: int, factor: int = 2, depth: int = 2):
        super().__init__()
        at_least(1, "PixelShuffle: ", factor=factor)
        self.factor = factor
        self.mlp = MLP(in_width * factor**2, out_width, depth)

    def grid(self, grid: GridSize) -> GridSize:
        """Fewer rows and columns by the factor.

        Raises:
            ValueError: If the factor does not divide them.
        """
        if grid[0] % self.factor or grid[1] % self.factor:
            raise ValueError(
                f"PixelShuffle: {grid[0]}x{grid[1]} features are not divided by factor "
                f"{self.factor}; set another factor, or pool to another grid"
            )
        return grid[0] // self.factor, grid[1] // self.factor

    def forward(self, features: Tensor) -> Tensor:
        """Features [n, h / factor, w / factor, out_width] of maps [n, h, w, in_width]."""
        rows, columns = self.grid((features.shape[1], features.shape[2]))
        squares = features.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
        return self.mlp(squares.transpose(2, 3).flatten(3))
