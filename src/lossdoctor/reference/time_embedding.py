"""How a velocity network is told the time: sines and cosines of it, and two layers. The parts keep their places in the
network's own `state_dict`, so that they are functions and no module.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lossdoctor.reference.config import VelocityConfig


def frequencies_of(config: VelocityConfig) -> Tensor:
    """(F,), in radians: none above two turns over [0, 1]."""
    return torch.arange(1, config.frequencies + 1) * (4 * math.pi / config.frequencies)


def waves(t: Tensor, frequencies: Tensor) -> Tensor:
    """(B,) or (B, 1, ...) to (B, 2 F)."""
    angles = t.reshape(-1, 1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def layers_of(config: VelocityConfig) -> nn.Sequential:
    """From waves (B, 2 F) to (B, embedding)."""
    return nn.Sequential(
        nn.Linear(2 * config.frequencies, config.embedding),
        nn.SiLU(),
        nn.Linear(config.embedding, config.embedding),
    )
