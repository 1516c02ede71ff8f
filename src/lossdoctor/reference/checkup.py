"""The checks of `lossdoctor preflight` on this training, before its first step: one batch, no step is taken.

With an autoencoder from a folder the question is above all whether its scale belongs to its weights, and the pictures:
latents as the training gets them, and what decoding undoes, are held against mean 0 and standard deviation 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lossdoctor import preflight
from lossdoctor.diagnose import Diagnosis
from lossdoctor.reference.diffusers_vae import LatentAutoencoder
from lossdoctor.reference.trainer import Trainer

ROWS = 64
"""Pictures of the batch."""


def checkup(trainer: Trainer) -> Diagnosis:
    """What preflight finds. The trainer must be ready, see `Trainer.prepare`; the training is afterwards as before."""
    loader = trainer._loader(trainer.training_set, "checkup", moved=False)
    batch = loader.assemble(trainer.training_set.rows(torch.arange(min(ROWS, len(trainer.training_set)))))
    batch = batch.to(trainer.device)
    system, sampler = trainer.system, trainer.sampler()
    with torch.no_grad():
        cond, mu, logvar, z0 = system.generator.source(batch.tokens, batch.source_noise)
    scale = trainer.autoencoder.scale if isinstance(trainer.autoencoder, LatentAutoencoder) else None

    def sampled(velocity: Any, z0: Tensor, cond: Tensor, steps: int) -> Tensor:
        return sampler.follow(z0, cond, steps, "euler", velocity)

    return preflight.check(
        model=system,
        optimizer=trainer.optimizer,
        losses=lambda: system.losses(batch),
        heads=system.heads(),
        teacher=trainer.patient()["teacher"],
        target=system._on_path,
        sampler=sampled,
        velocity=system.generator.field,
        kl=lambda mu, logvar: system._kl(mu, logvar, mu),
        mu=mu,
        logvar=logvar,
        z0=z0,
        z1=system.encode(batch),
        cond=cond,
        latent_scale=None if scale is None else float(scale),
    )
