"""Wake what begins at zero: a layer of zeros hides everything behind it, connected or not.

Last layers and gates often begin at zero on purpose. Asked before the first step, such a network answers 0 to every
time and condition, and no gradient gets past it. Small random numbers in those parameters show what is connected.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn

SIZE = 0.05
"""Standard deviation of the numbers put in: of the order of the usual initialisation of a layer of 400 inputs."""


@contextlib.contextmanager
def awakened(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Parameters that are 0 throughout hold small random numbers inside, from a generator of their own; bit for bit
    what they were afterwards. Version counters do not move."""
    sleeping = [
        p
        for p in {id(p): p for module in modules for p in module.parameters()}.values()
        if p.numel() and p.is_floating_point() and not p.detach().any()
    ]
    before = [p.detach().clone() for p in sleeping]  # -0.0 is a zero too
    generator = torch.Generator().manual_seed(0)
    try:
        for p in sleeping:
            p.data.copy_(SIZE * torch.randn(p.shape, generator=generator))
        yield
    finally:
        for p, value in zip(sleeping, before, strict=True):
            p.data.copy_(value)
