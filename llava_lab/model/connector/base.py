"""6. Connector: features [n, h, w, d] of the encoder -> [n, h', w', d'] at the LM's width."""

from typing import ClassVar

from torch import nn

from llava_lab.data.geometry import GridSize


class Connector(nn.Module):
    """What stands between encoder and LM; any `(in_width, out_width) -> Connector` will do.

    The two widths come from the parts on either side and never stand in a configuration. A
    connector of your own is a subclass with a `forward` on maps of features, and, where it gives
    more or fewer features than it gets, a `grid` that says so beforehand. Views do not see each
    other. State-dict names of `Linear` and `MLP` are those of the released `mm_projector` files.

    Attributes:
        needs_map: Whether it reads a feature's neighbours. If not, features may also come as one
            row [n, 1, p, d], as they do where a CLS feature is kept.
        gives_map: Whether the features that it gives lie as those that it gets. If not, they are
            neither pooled nor put together with those of other tiles.
    """

    needs_map: ClassVar[bool] = False
    gives_map: ClassVar[bool] = True

    def grid(self, grid: GridSize) -> GridSize:
        """Rows and columns of features that it gives for those that it gets; here as many.

        Raises:
            ValueError: If it cannot take so many.
        """
        return grid
