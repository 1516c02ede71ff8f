"""The KL of a posterior at its prior has hardly a gradient, whatever its weight: how strong it would be off it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from lossdoctor.treat.measured import Measured

KNOWS = 1.0
"""Nats of a sample, the least that a posterior knows whose KL is raised."""
_NOISE = 1e-4
"""Nats below which the KL is what rounding leaves of it."""


def at_prior(seen: Measured) -> bool:
    """Whether the posterior is known to know less than `KNOWS`."""
    return seen.nats < KNOWS


def off_prior(seen: Measured) -> Measured:
    """The gradient of a KL as it would be if the posterior knew `KNOWS`, where it knows less; all else as measured.

    Near the prior a Gaussian's KL is half of a squared distance from it, |mu|^2 / 2 + |log sigma|^2, so its gradient is
    as long as the root of the KL. A KL that won looks like one that is weak until it is compared at the same distance.
    """
    if not at_prior(seen):
        return seen
    away = math.sqrt(KNOWS / max(seen.nats, _NOISE))
    size = np.array([away if kind == "kl" else 1.0 for kind in seen.kinds])
    return replace(seen, gram=seen.gram * np.outer(size, size))
