"""4. Encoder: pixels [n, 3, s, s] -> patch features [n, h, w, d], or with CLS [n, 1, 1 + hw, d]."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from llava_lab.data.geometry import ViewSpec


class Encoder(nn.Module, ABC):
    """An image encoder, cut off after the layer whose output the connector gets.

    Attributes:
        width: Width of a feature.
        view_spec: What it wants to see and what it gives back.
    """

    width: int
    view_spec: ViewSpec

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Features of views [n, 3, s, s].

        Returns:
            A map [n, h, w, d] of the grid that `view_spec` names; where a CLS feature is kept, it
            and the patches row by row as one row [n, 1, 1 + h x w, d].
        """
