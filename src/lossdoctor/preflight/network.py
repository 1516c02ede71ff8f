"""Asking the user's velocity: in evaluation mode, with everything that begins at zero woken, on points of the path."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lossdoctor.flow.paths import Linear
from lossdoctor.preflight.given import Failed, Given, asked, like
from lossdoctor.preflight.training import STRAIGHT
from lossdoctor.preflight.trial import Bench
from lossdoctor.probe.awake import awakened
from lossdoctor.probe.neutrality import evaluation

UNCHANGED = 1e-6
"""Relative change under which an answer is the same: rounding leaves 1e-7. Fresh networks that listen changed by 0.29
and more, one whose embedding was made for another range by 1.2e-4."""


@dataclass(frozen=True)
class Network:
    """The velocity at points x (B, ...) of the path, each at its own time t (B, 1, ...) in [0, 1]. flat: t is given as
    (B,). unit: what it is multiplied with, where the sampler does so."""

    given: Given
    x: Tensor
    t: Tensor
    flat: bool
    unit: float

    def __call__(self, t: Tensor | None = None, cond: Any = None, x: Tensor | None = None) -> Tensor:
        """What it says at other times, with another condition, or at other points."""
        t = self.t if t is None else t
        x = self.x if x is None else x
        t = t * self.unit
        return _answer(self.given, x, t.flatten() if self.flat else t, cond)


@contextlib.contextmanager
def network(given: Given) -> Iterator[Network]:
    """The user's velocity, ready to be asked. Raises Failed when it takes t neither as (B, 1, ...) nor as (B,)."""
    assert given.z0 is not None
    assert given.z1 is not None
    z0, z1 = given.z0, given.z1
    rows = torch.arange(len(z0), device=z0.device, dtype=z0.dtype)
    t = (0.2 + 0.6 * (rows * 0.6180339887).remainder(1)).reshape(-1, *(1,) * (z0.ndim - 1))
    x, _ = Linear().sample(z0, z1, t, given.t_source)
    unit = _unit(given)
    with awakened(given.modules), evaluation(given.modules):
        yield Network(given, x, t, _flat(given, x, unit * t), unit)


def _flat(given: Given, x: Tensor, t: Tensor) -> bool:
    """Whether the velocity takes its time as (B,) only."""
    try:
        _answer(given, x, t, given.cond)
    except Failed as failed:
        try:
            _answer(given, x, t.flatten(), given.cond)
        except Failed:
            raise failed from None
        return True
    return False


def _unit(given: Given) -> float:
    """1000 where the sampler calls the velocity with times up to 1000, as diffusion code does."""
    if given.sampler is None:
        return 1.0
    try:
        return Bench.of(given, STRAIGHT).unit or 1.0
    except Failed:  # the check of the sampler tells why
        return 1.0


def _answer(given: Given, x: Tensor, t: Tensor, cond: Any) -> Tensor:
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        found = asked("velocity", given.velocity, x.clone(), t.clone(), cond)  # type: ignore[arg-type]
    finally:
        torch.set_rng_state(state)
    return like("velocity", found, x)


def change(one: Tensor, other: Tensor) -> float:
    """|other - one| / |one|, all as one vector; 0 where both are 0."""
    size = float(torch.linalg.vector_norm(one))
    off = float(torch.linalg.vector_norm(other - one))
    return off / size if size else float(off > 0)
