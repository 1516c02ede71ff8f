"""The reference system at the size of a clinic: captions to digits in some seconds, by all three losses.

It is the system of `lossdoctor demo` with a smaller velocity network, fewer steps on smaller batches at a higher rate,
and a teacher that follows faster; its faults are those of `reference.faults`. Measured over three seeds: 94 % to 96 %
of the pictures are the digit asked for, and the weighted gradients of the distillation and the KL are 0.29 and 0.21 of
the velocity's.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from lossdoctor.clinic.program import Program
from lossdoctor.clinic.programs.switch import left
from lossdoctor.config import override
from lossdoctor.doctor import Doctor
from lossdoctor.flow import energy_distance
from lossdoctor.losses import gaussian_kl
from lossdoctor.reference import Digits, Judge, ReferenceConfig, Trainer, captions_of
from lossdoctor.reference.captions import CaptionBook
from lossdoctor.reference.faults import FAULTS, sick
from lossdoctor.reference.pictures import stream
from lossdoctor.store import Run

STEPS: Final = 800
SETTINGS: Final[dict[str, Any]] = {
    "autoencoder.steps": 500,
    "velocity.width": 256,
    "velocity.blocks": 2,
    "distill.momentum": 0.95,
    "distill.lr_scale": 3.0,
    "train.batch": 64,
    "train.lr": 1.5e-3,
    "train.warmup": 40,
    "train.evaluate_every": 200,
}
"""What differs from the demo."""
MEASURED: Final = 50
"""Steps measured in full."""
PER_DIGIT: Final = 48
"""Pictures drawn of each digit, to be judged."""

_PICTURES, _LATENT, _PRIOR = "eval/picture_distance", "eval/z0_accuracy", "eval/kl_per_dim"


class Reference(Program):
    """Caption encoder, posterior, velocity network, students and teacher, frozen picture autoencoder."""

    name = "reference"
    faults = FAULTS
    steps = STEPS

    def train(self, fault: str | None, seed: int, run: Path | None = None) -> Run:
        """See `Program.train`. The autoencoder is trained once per seed and process. UsageError for another fault."""
        config = replace(override(ReferenceConfig(), {**SETTINGS, "train.steps": self.steps}), seed=seed)
        sick_with = left(fault)
        trainer = Trainer(config) if sick_with is None else sick(config, sick_with)
        trainer.adopt(_autoencoder(config))
        every = max(1, config.train.steps // MEASURED)
        with Doctor(**trainer.patient(), run=run, every=every, live=False, meta={"seed": seed}) as doctor:
            trainer.run(doctor=doctor)
            doctor.log(grades(trainer))
        return doctor.run

    def harm(self, run: Run) -> float:
        """What is missing to what the three losses are there for, >= 0; infinite when that is unknown.

        How far the pictures of each digit are from real ones, over how far other real ones are; the share of captions
        whose digit z0 does not tell; the KL per dimension from the prior.
        """
        if not {_PICTURES, _LATENT, _PRIOR} <= set(run):
            return math.inf
        pictures, latent, prior = (float(run[name].values[-1]) for name in (_PICTURES, _LATENT, _PRIOR))
        return max(0.0, pictures - 1) + (1 - latent) + prior


@functools.lru_cache(maxsize=4)
def _autoencoder(config: ReferenceConfig) -> dict[str, Any]:
    trainer = Trainer(config)
    trainer.prepare()
    return trainer.autoencoder.state_dict()


@torch.no_grad()
def grades(trainer: Trainer) -> dict[str, float]:
    """Judgements of the averaged generator, as sampling calls it. Nothing when it no longer gives numbers.

    `eval/picture_distance`: mean over the digits of the energy distance between generated and real training pictures,
    over that of held-out pictures, about 1 is perfect. `eval/accuracy`: see `Judge`. `eval/z0_accuracy`: share of z0
    from which a linear map, fitted to other draws, tells the digit. `eval/kl_per_dim`: of the posterior from N(0, I).
    """
    sampler, randomness = trainer.sampler(), stream(trainer.config.seed, "grades")
    ways = [captions_of(digit) for digit in range(10)]
    labels = torch.arange(10).repeat(PER_DIGIT)
    asked = [ways[digit][n // 10 % len(ways[digit])] for n, digit in enumerate(labels.tolist())]
    drawn = Digits(sampler(asked, randomness=randomness), labels)
    more = labels.repeat(4)
    tokens = CaptionBook(trainer.tokenizer).draw(more, randomness).to(trainer.device)
    noise = torch.randn(len(more), *trainer.config.autoencoder.latent, generator=randomness).to(trainer.device)
    _, mu, logvar, z0 = sampler.generator.source(tokens, noise)
    if not (drawn.pictures.isfinite().all() and z0.isfinite().all()):
        return {}
    real, held_out = trainer.training_set, trainer.held_out
    assert isinstance(real, Digits), "the clinic's reference system has no other pictures"
    assert isinstance(held_out, Digits)
    return {
        _PICTURES: _distance(drawn, real) / _distance(held_out, real),
        "eval/accuracy": Judge(real).judge(drawn).accuracy,
        _LATENT: _told_apart(z0.flatten(1).cpu(), more),
        _PRIOR: float(gaussian_kl(mu, logvar, reduction="per_dim")),
    }


def _distance(some: Digits, others: Digits) -> float:
    """Energy distance between the pictures of a digit, averaged over the digits."""
    pairs = ((some.pictures[some.labels == d], others.pictures[others.labels == d]) for d in range(10))
    return sum(float(energy_distance(a.flatten(1), b.flatten(1))) for a, b in pairs) / 10


def _told_apart(z0: Tensor, labels: Tensor) -> float:
    """Share of the second half of the rows whose label a linear map finds that was fitted to the first half."""
    rows = F.pad(z0.double(), (0, 1), value=1.0)
    half = len(rows) // 2
    fitted = torch.linalg.lstsq(rows[:half], F.one_hot(labels[:half], 10).double()).solution
    return float(((rows[half:] @ fitted).argmax(1) == labels[half:]).double().mean())
