"""4. Encoder: pixels [n, 3, s, s] -> patch features [n, p, d], row by row, CLS first if chosen."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from llava_lab.data.geometry import ViewSpec


class Encoder(nn.Module, ABC):
    """An image encoder, cut off after the layer whose output the connector gets.

    Attributes:
        width: Width of a feature.
        vision: What it wants to see and what it gives back.
    """

    width: int
    view_spec: ViewSpec

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Features [n, p, d] of views [n, 3, s, s]."""
