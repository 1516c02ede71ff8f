"""The block of the transformers that are measured here."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

LENGTH = 64
"""Tokens of a sequence."""
ATTENTION_HEADS = 4


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        split = (batch, length, 3, ATTENTION_HEADS, width // ATTENTION_HEADS)
        q, k, v = self.qkv(self.first(x)).view(split).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))
        return x + self.mlp(self.second(x))  # type: ignore[no-any-return]
