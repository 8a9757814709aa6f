"""6. Connector: features [n, p, d] of the encoder's width -> the same at the LM's width."""

from torch import nn


class Connector(nn.Module):
    """What stands between encoder and LM; any `(in_width, out_width) -> Connector` will do.

    The two widths come from the parts on either side and never stand in a configuration. State-dict
    names of the classes below are those of the released `mm_projector` files.
    """


class Linear(nn.Linear, Connector):
    """One linear layer with bias: LLaVA 1.0's connector."""

    def __init__(self, in_width: int, out_width: int):
        super().__init__(in_width, out_width)


class MLP(nn.Sequential, Connector):
    """Linear layers with an exact GELU between them: LLaVA-1.5's connector at depth 2.

    Args:
        depth: Number of linear layers, 1 or more. The first changes the width, the others keep it.
    """

    def __init__(self, in_width: int, out_width: int, depth: int = 2):
        if depth < 1:
            raise ValueError(f"connector: depth is {depth}; an MLP has 1 linear layer or more")
        layers: list[nn.Module] = [nn.Linear(in_width, out_width)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(out_width, out_width)]
        super().__init__(*layers)
