"""6. MLP: LLaVA-1.5's connector."""

from torch import nn

from llava_lab.core.numbers import at_least
from llava_lab.model.connector.base import Connector


class MLP(nn.Sequential, Connector):
    """Linear layers with an exact GELU between them: LLaVA-1.5's connector at depth 2.

    Args:
        depth: Number of linear layers, 1 or more. The first changes the width, the others keep it.
    """

    def __init__(self, in_width: int, out_width: int, depth: int = 2):
        at_least(1, "MLP: ", depth=depth)
        layers: list[nn.Module] = [nn.Linear(in_width, out_width)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(out_width, out_width)]
        super().__init__(*layers)
