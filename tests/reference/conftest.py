"""A reference system small enough to train in a second."""

from __future__ import annotations

import pytest

from lossdoctor.config import override
from lossdoctor.reference import Digits, ReferenceConfig, Trainer, load_digits

TINY = {
    "text.width": 16,
    "text.heads": 2,
    "autoencoder.latent": (2, 2, 2),
    "autoencoder.width": 32,
    "autoencoder.steps": 30,
    "autoencoder.warmup": 5,
    "velocity.width": 32,
    "velocity.blocks": 1,
    "velocity.embedding": 16,
    "distill.width": 32,
    "distill.features": 16,
    "distill.bottleneck": 8,
    "distill.prototypes": 12,
    "train.steps": 60,
    "train.batch": 32,
    "train.warmup": 5,
    "train.evaluate_every": 25,
}


@pytest.fixture(scope="session")
def tiny() -> ReferenceConfig:
    return override(ReferenceConfig(seed=3), TINY)


@pytest.fixture(scope="session")
def digits() -> Digits:
    every = load_digits()
    return Digits(every.pictures[:300], every.labels[:300])


@pytest.fixture
def trainer(tiny: ReferenceConfig, digits: Digits) -> Trainer:
    return Trainer(tiny, digits)
