"""A demo small enough for a test: every part is there, nothing is learned."""

from __future__ import annotations

import pytest

SMALL = {
    "train.steps": 6,
    "train.batch": 32,
    "train.warmup": 2,
    "train.evaluate_every": 100,
    "train.progress_every": 1,
    "autoencoder.steps": 8,
    "autoencoder.batch": 32,
    "autoencoder.width": 32,
    "velocity.width": 32,
    "velocity.blocks": 1,
    "distill.width": 32,
    "data.held_out": 0.02,
}


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Arguments of the command line that make a demo small."""
    return [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
