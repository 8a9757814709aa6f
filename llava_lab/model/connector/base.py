"""6. Connector: features [n, p, d] of the encoder's width -> the same at the LM's width."""

from torch import nn


class Connector(nn.Module):
    """What stands between encoder and LM; any `(in_width, out_width) -> Connector` will do.

    The two widths come from the parts on either side and never stand in a configuration. State-dict
    names of the classes below are those of the released `mm_projector` files.
    """
