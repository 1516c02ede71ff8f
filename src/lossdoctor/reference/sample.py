"""From captions to pictures: sample z0 from the caption's posterior, follow the field to z1, decode."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lossdoctor.flow import integrate
from lossdoctor.reference.captions import Tokenizer
from lossdoctor.reference.system import Autoencoder, Generator

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""velocity(x, t, cond)."""

_AT_ONCE = 512
"""Captions that are drawn together; more are drawn in turn."""


class Sampler:
    """Draws pictures for captions. generator: the averaged one. latent: (C, H, W) of its noise."""

    def __init__(
        self, generator: Generator, autoencoder: Autoencoder, tokenizer: Tokenizer, latent: tuple[int, int, int]
    ) -> None:
        self.generator, self.autoencoder, self.tokenizer, self.latent = generator, autoencoder, tokenizer, latent

    @torch.no_grad()
    def __call__(
        self, captions: Sequence[str], *, randomness: torch.Generator, steps: int = 32, solver: str = "heun"
    ) -> Tensor:
        """One picture per caption, (B, C, H, W) in [-1, 1] on the CPU.

        randomness: on the CPU; the same gives the same pictures. Raises UsageError for captions the tokenizer refuses,
        for an unknown solver, or steps < 1.
        """
        noise = torch.randn(len(captions), *self.latent, generator=randomness)
        device = next(self.generator.parameters()).device
        tokens = self.tokenizer.encode(captions)
        drawn = []
        for rows in torch.split(torch.arange(len(captions)), _AT_ONCE):
            cond, _, _, z0 = self.generator.source(tokens.rows(rows).to(device), noise[rows].to(device))
            drawn.append(self.autoencoder.decode(self.follow(z0, cond, steps, solver)).cpu())
        return torch.cat(drawn)

    def follow(self, z0: Tensor, cond: Tensor, steps: int, solver: str, velocity: Velocity | None = None) -> Tensor:
        """The field from z0 (B, C, H, W) to z1, as every picture is drawn. velocity: in place of the generator's."""
        field = velocity or self.generator.field
        return integrate(lambda x, t: field(x, t, cond), z0, steps, solver)
