"""Self-distillation on pictures, and the head through which captions learn it too.

The picture student and its slowly following teacher see two augmented views of each digit (DINO, Caron et al. 2021,
2104.14294). A second student sees no picture: from the sampled caption latent z0 it predicts what the teacher says of
the picture, which is what makes z0 tell digits apart.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lossdoctor.reference.config import DistillConfig


class PrototypeHead(nn.Module):
    """Inputs (B, ...) to cosines with K prototypes, (B, K) in [-1, 1]."""

    def __init__(self, inputs: int, config: DistillConfig) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, config.features),
            nn.GELU(),
            nn.Linear(config.features, config.bottleneck),
        )
        self.prototypes = nn.Linear(config.bottleneck, config.prototypes, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, K)."""
        return F.linear(F.normalize(self.project(inputs), dim=1), F.normalize(self.prototypes.weight, dim=1))


class PictureStudent(nn.Module):
    """Pictures to prototype logits. mean, std: of the training pictures, to begin with centred inputs."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: DistillConfig, mean: float, std: float, pixels: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(pixels, config.width),
            nn.GELU(),
            nn.Linear(config.width, config.width),
            nn.GELU(),
            nn.Linear(config.width, config.features),
        )
        self.head = PrototypeHead(config.features, config)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures (B, C, H, W) to logits (B, K)."""
        logits: Tensor = self.head(self.encoder((pictures - self.mean) / self.std))
        return logits


class MomentumTeacher(nn.Module):
    """A copy of the student that follows it slowly and never learns by gradient."""

    def __init__(self, student: nn.Module, momentum: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(student).requires_grad_(False).eval()
        self.momentum = momentum

    def train(self, mode: bool = True) -> MomentumTeacher:
        """Stay in evaluation mode, whatever the system around it does."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """As the student, without gradient."""
        logits: Tensor = self.module(pictures)
        return logits

    @torch.no_grad()
    def follow(self, student: nn.Module | None) -> None:
        """One step towards the student."""
        assert student is not None
        torch._foreach_lerp_(list(self.module.parameters()), list(student.parameters()), 1 - self.momentum)
