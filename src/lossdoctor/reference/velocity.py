"""The velocity network: residual blocks over the flat latent, modulated by time and caption."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from lossdoctor.reference.config import VelocityConfig
from lossdoctor.reference.time_embedding import frequencies_of, layers_of, waves


class Velocity(nn.Module):
    """v(x, t, cond), a smooth function: SiLU throughout, and no frequency of t above two turns over [0, 1].

    `head`, the last layer, begins at zero, so training starts from a field at rest.
    """

    frequencies: Tensor

    def __init__(self, config: VelocityConfig, latent: tuple[int, int, int], condition: int) -> None:
        super().__init__()
        dimensions = math.prod(latent)
        self.register_buffer("frequencies", frequencies_of(config))
        self.time = layers_of(config)
        self.condition = nn.Linear(condition, config.embedding)
        self.inlet = nn.Linear(dimensions, config.width)
        self.blocks = nn.ModuleList(_Block(config.width, config.embedding) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, dimensions)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """x: (B, C, H, W). t: (B,), or (B, 1, ...), 0 at the source. cond: (B, width) features. Returns x's shape."""
        embedding = F.silu(self.embed_time(t) + self.embed_condition(cond))
        hidden = self.inlet(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, embedding)
        return self.read_out(hidden).view_as(x)

    def embed_time(self, t: Tensor) -> Tensor:
        """(B,) or (B, 1, ...) to (B, embedding)."""
        embedded: Tensor = self.time(waves(t, self.frequencies))
        return embedded

    def embed_condition(self, cond: Tensor) -> Tensor:
        """Features to (B, embedding)."""
        embedded: Tensor = self.condition(cond)
        return embedded

    def read_out(self, hidden: Tensor) -> Tensor:
        """The last hidden state (B, width) to the velocity (B, D)."""
        velocity: Tensor = self.head(F.silu(self.norm(hidden)))
        return velocity


class _Block(nn.Module):
    """A residual MLP whose normalised input is scaled and shifted by the embedding."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.modulation = nn.Linear(embedding, 2 * width)
        self.expand = nn.Linear(width, width)
        self.contract = nn.Linear(width, width)

    def forward(self, hidden: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding).chunk(2, dim=1)
        update: Tensor = self.contract(F.silu(self.expand(self.norm(hidden) * (1 + scale) + shift)))
        return hidden + update
