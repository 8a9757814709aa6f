"""6. Resampler: learned latents that attend to a view's features, however many these are."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from llava_lab.core.numbers import at_least
from llava_lab.data.geometry import GridSize
from llava_lab.model.connector.base import Connector


class Resampler(Connector):
    """A perceiver resampler: Flamingo (Alayrac et al. 2022, arXiv:2204.14198), Idefics2.

    Learned latents attend to the features and to themselves, in layers of the encoder's width, and
    a linear layer brings them to the LM's. What it gives is a row of latents, each of which may
    read the whole view: it lies in no map, so that AnyRes takes it with merge `flat` alone, and it
    is pooled `before` the connector or not at all.

    Args:
        latents: Number of features that it gives for a view.
        depth: Layers, 1 or more: Flamingo has 6, Idefics2 has 3.
        heads: Attention heads; they divide the encoder's width.
        expansion: Width of the hidden layer of each feed-forward, in widths of the encoder.
    """

    gives_map = False

    def __init__(
        self,
        in_width: int,
        out_width: int,
        latents: int = 64,
        depth: int = 3,
        heads: int = 8,
        expansion: int = 4,
    ):
        super().__init__()
        at_least(1, "Resampler: ", latents=latents, depth=depth, heads=heads, expansion=expansion)
        if in_width % heads:
            raise ValueError(
                f"Resampler: {heads} heads do not divide the encoder's width of {in_width}"
            )
        self.latents = nn.Parameter(torch.randn(latents, in_width))
        self.layers = nn.ModuleList(_Layer(in_width, heads, expansion) for _ in range(depth))
        self.norm = nn.LayerNorm(in_width)
        self.project = nn.Linear(in_width, out_width)

    def grid(self, grid: GridSize) -> GridSize:
        """One row of latents."""
        return 1, len(self.latents)

    def forward(self, features: Tensor) -> Tensor:
        """Features [n, 1, latents, out_width] of maps [n, h, w, in_width]."""
        features = features.flatten(1, 2)
        latents = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(latents, features)
        return self.project(self.norm(latents))[:, None]


class _Layer(nn.Module):
    """Attention of latents [n, q, d] to features [n, p, d] and latents, then a feed-forward."""

    def __init__(self, width: int, heads: int, expansion: int):
        super().__init__()
        self.heads = heads
        self.latent_norm, self.feature_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries = nn.Linear(width, width, bias=False)
        self.keys_values = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, expansion * width, bias=False),
            nn.GELU(),
            nn.Linear(expansion * width, width, bias=False),
        )

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        """Latents [n, q, d] that have read the features."""
        normed = self.latent_norm(latents)
        seen = torch.cat([self.feature_norm(features), normed], dim=1)
        projected = self.queries(normed), *self.keys_values(seen).chunk(2, dim=-1)
        queries, keys, values = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in projected
        )
        read = scaled_dot_product_attention(queries, keys, values)
        latents = latents + self.out(read.transpose(1, 2).flatten(2))
        return latents + self.feed_forward(latents)
