"""From a caption to its features, and from its features to the Gaussian that the flow starts from."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossdoctor.reference.captions import Tokens
from lossdoctor.reference.config import TextConfig


class TextEncoder(nn.Module):
    """A small transformer: word and place embeddings, attention among the words of a caption, their normalised mean."""

    def __init__(self, vocabulary: int, config: TextConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, config.width)
        self.places = nn.Embedding(config.words, config.width)
        nn.init.normal_(self.words.weight, std=config.embedding_std)
        nn.init.normal_(self.places.weight, std=0.02)
        self.blocks = nn.ModuleList(_Block(config.width, config.heads) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)

    def forward(self, tokens: Tokens) -> Tensor:
        """Captions (B, L) to features (B, width), each with mean 0 and variance 1."""
        x = self.words(tokens.ids) + self.places.weight[: tokens.ids.shape[1]]
        for block in self.blocks:
            x = block(x, tokens.mask)
        kept = tokens.mask.unsqueeze(-1).to(x.dtype)
        features: Tensor = self.norm((x * kept).sum(1) / kept.sum(1))
        return features


class _Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = self.query_key_value(self.norm_attention(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        mixed_in: Tensor = x + self.mlp(self.norm_mlp(x))
        return mixed_in


class VariationalHead(nn.Module):
    """Features to the mean and log-variance of q(z0 | caption), a diagonal Gaussian of the latent's shape.

    The log-variance is nearly the same for all captions, and its bias can carry that. With the input it gets at full
    strength the features' common direction carries it too, and the pull of the KL on sigma, though settled, shows as a
    large gradient all through the text encoder (measured: 1.0 of the velocity's instead of 0.25). So it is damped.
    """

    CLAMP = (-8.0, 4.0)

    def __init__(self, config: TextConfig, latent: tuple[int, int, int]) -> None:
        super().__init__()
        self.latent = latent
        self.gain = config.logvar_gain
        dimensions = math.prod(latent)
        self.mu = nn.Linear(config.width, dimensions)
        self.logvar = nn.Linear(config.width, dimensions)
        with torch.no_grad():
            self.logvar.bias.fill_(config.logvar_start)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, width) to mu and logvar, each (B, C, H, W); logvar is clamped to CLAMP."""
        unit = features / features.shape[-1] ** 0.5
        mu, logvar = self.mu(unit), self.logvar(self.gain * unit)
        return mu.unflatten(-1, self.latent), logvar.clamp(*self.CLAMP).unflatten(-1, self.latent)
