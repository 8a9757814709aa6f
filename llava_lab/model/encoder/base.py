"""4. Encoder: pixels [n, 3, s, s] -> patch features [n, h, w, d], or with CLS [n, 1, 1 + hw, d]."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import Tensor, nn

from llava_lab.data.geometry import ViewSpec


class Encoder(nn.Module, ABC):
    """An image encoder, cut off after the layer whose output the connector gets.

    Attributes:
        width: Width of a feature.
        view_spec: What it wants to see and what it gives back.
        resize: How its own processor makes a square of a picture, by the names of `Square`; where
            views are given, they decide.
    """

    width: int
    view_spec: ViewSpec
    resize: ClassVar[Literal["crop", "squash"]] = "crop"

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """Features of views [n, 3, s, s].

        Returns:
            A map [n, h, w, d] of the grid that `view_spec` names; where a CLS feature is kept, it
            and the patches row by row as one row [n, 1, 1 + h x w, d].
        """
