"""How the learning rate goes over the steps."""

from __future__ import annotations

import math


def rate(step: int, steps: int, warmup: int, final: float) -> float:
    """Share of the learning rate at `step` (0 is the first): a linear rise, times half a cosine from 1 to `final`."""
    cosine = final + (1 - final) * (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
    return min(1.0, (step + 1) / warmup) * cosine if warmup else cosine
