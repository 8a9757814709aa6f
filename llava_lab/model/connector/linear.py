"""6. Linear: LLaVA 1.0's connector."""

from torch import nn

from llava_lab.model.connector.base import Connector


class Linear(nn.Linear, Connector):
    """One linear layer with bias: LLaVA 1.0's connector."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__(in_width, out_width)
