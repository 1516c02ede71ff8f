"""From captions to pictures: sample z0 from the caption's posterior, follow the field to z1, decode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lossdoctor.flow import integrate
from lossdoctor.reference.captions import Tokenizer
from lossdoctor.reference.system import Autoencoder, Generator


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
        """One picture per caption, (B, 1, 8, 8) in [-1, 1] on the CPU.

        randomness: on the CPU; the same gives the same pictures. Raises UsageError for captions the tokenizer refuses,
        for an unknown solver, or steps < 1.
        """
        noise = torch.randn(len(captions), *self.latent, generator=randomness)
        device = next(self.generator.parameters()).device
        cond, _, _, z0 = self.generator.source(self.tokenizer.encode(captions).to(device), noise.to(device))
        z1 = integrate(lambda x, t: self.generator.field(x, t, cond), z0, steps, solver)
        return self.autoencoder.decode(z1).cpu()
