"""The velocity network for latents with a shape: a transformer over their patches, told time and caption by its norms.

It is the DiT of Peebles & Xie (2212.09748) with adaLN-zero: every block's norms are scaled and shifted by an embedding
of time and caption, and its two updates are gated by factors that begin at 0. The caption comes as one vector, as it
does to the other velocity network; there is no attention to its words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossdoctor.reference.config import VelocityConfig
from lossdoctor.reference.time_embedding import frequencies_of, layers_of, waves

_MLP = 4
"""Width of a block's MLP over its own."""


class VelocityTransformer(nn.Module):
    """v(x, t, cond) with the parts, by name, and the frequencies of time of `velocity.Velocity`.

    `head`, the last layer, begins at zero, so training starts from a field at rest.
    """

    frequencies: Tensor
    places: Tensor

    def __init__(self, config: VelocityConfig, latent: tuple[int, int, int], condition: int) -> None:
        super().__init__()
        channels, height, width = latent
        self.patch, self.grid = config.patch, (height // config.patch, width // config.patch)
        inside = channels * config.patch**2
        self.register_buffer("frequencies", frequencies_of(config))
        self.register_buffer("places", places_of(self.grid, config.width), persistent=False)
        self.time = layers_of(config)
        self.condition = nn.Linear(condition, config.embedding)
        self.inlet = nn.Linear(inside, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False, eps=1e-6)
        self.modulation = _zero(nn.Linear(config.embedding, 2 * config.width))
        self.head = _zero(nn.Linear(config.width, inside))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """x: (B, C, H, W). t: (B,), or (B, 1, ...), 0 at the source. cond: (B, width) features. Returns x's shape."""
        embedding = F.silu(self.time(waves(t, self.frequencies)) + self.condition(cond))
        hidden = self.inlet(self._patches(x)) + self.places
        for block in self.blocks:
            hidden = block(hidden, embedding)
        scale, shift = self.modulation(embedding).unsqueeze(1).chunk(2, dim=2)
        return self._picture(self.head(self.norm(hidden) * (1 + scale) + shift))

    def _patches(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, patches, C * patch * patch), row by row."""
        return F.unfold(x, self.patch, stride=self.patch).transpose(1, 2)

    def _picture(self, patches: Tensor) -> Tensor:
        size = (self.grid[0] * self.patch, self.grid[1] * self.patch)
        return F.fold(patches.transpose(1, 2), size, self.patch, stride=self.patch)


class _Block(nn.Module):
    """Attention among the patches and an MLP, each gated."""

    def __init__(self, config: VelocityConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, _MLP * width), nn.GELU("tanh"), nn.Linear(_MLP * width, width))
        self.modulation = _zero(nn.Linear(config.embedding, 6 * width))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (B, patches, width), embedding: (B, embedding)."""
        scale, shift, gate, scale_mlp, shift_mlp, gate_mlp = self.modulation(embedding).unsqueeze(1).chunk(6, dim=2)
        x = x + gate * self._attended(self.norm_attention(x) * (1 + scale) + shift)
        updated: Tensor = x + gate_mlp * self.mlp(self.norm_mlp(x) * (1 + scale_mlp) + shift_mlp)
        return updated

    def _attended(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.query_key_value(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        attended: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return attended


def places_of(grid: tuple[int, int], width: int) -> Tensor:
    """Sines and cosines of the row and the column of each patch, (rows * columns, width), row by row.

    A quarter of `width` for each of the four, at frequencies from 1 to 1/10,000; what is left over is 0.
    """
    each = width // 4
    rates = 10_000 ** (-torch.arange(each) / max(1, each))
    rows = torch.arange(grid[0]).repeat_interleave(grid[1])[:, None] * rates
    columns = torch.arange(grid[1]).repeat(grid[0])[:, None] * rates
    return F.pad(torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], 1), (0, width - 4 * each))


def _zero(layer: nn.Linear) -> nn.Linear:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
