"""A problem with a known solution, and a stand-in that answers the sampler in place of the network.

The field is exact: it leads every z0 along a known curve to its z1. The curve is the path of the training plus a detour
that is 0 at both ends, and off the curve the field pushes further away. On the bare straight path it would be the
same everywhere and at all times, and a sampler that asks at a stale state or a wrong time would go unnoticed.

Inside this file time runs from the source at 0 to the data at 1, whatever the user's direction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lossdoctor.errors import ShapeError, mismatch
from lossdoctor.flow.paths import Path
from lossdoctor.preflight.given import draw
from lossdoctor.preflight.training import Training

PUSH = 1.0
"""Growth rate of a distance from the curve. Large enough that a wrong state shows, and small enough that a sound
Euler method with 8 steps still ends at 0.38 to 0.40 of the distance to go."""

_ROWS, _COLUMNS = 8, 256

Slope = Callable[[Tensor, Tensor], Tensor]
"""dx/dt toward the data at x (B, ...) and t (B, 1, ...)."""


@dataclass(frozen=True)
class Problem:
    """From z0 to z1, (B, ...) both. aside: (B, ...), how far the curve leaves the path, 0 where only the path itself
    will do. size: root mean square distance to go."""

    path: Path
    z0: Tensor
    z1: Tensor
    aside: Tensor
    size: float

    @classmethod
    def of(cls, path: Path, z0: Tensor, z1: Tensor, detour: float) -> Problem:
        """The problem whose curve leaves the path by `detour` of the distance to go."""
        size = float((z1 - z0).square().mean().sqrt())
        return cls(path, z0, z1, detour * size * draw(z0, seed=1), size)

    def curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Position and velocity on the curve at t (B, 1, ...)."""
        at = self.path.coefficients(t)
        x = at.alpha * self.z0 + at.beta * self.z1 + 3 * (t - t**3) * self.aside
        return x, at.d_alpha * self.z0 + at.d_beta * self.z1 + 3 * (1 - 3 * t**2) * self.aside

    def slope(self, x: Tensor, t: Tensor) -> Tensor:
        """The exact field at x (B, ...), t (B, 1, ...)."""
        on, along = self.curve(t)
        return along + PUSH * (x - on)

    def ends(self, slope: Slope, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The source and the data that a velocity at (x, t) points to on the path: z0, z1 with
        x = alpha z0 + beta z1 and velocity = alpha' z0 + beta' z1."""
        at = self.path.coefficients(t)
        v = slope(x, t)
        # Only where a path stands still, as t^2 does at 0, is there no such pair.
        whole = at.alpha * at.d_beta - at.beta * at.d_alpha
        whole = torch.where(whole.abs() < 1e-3, torch.full_like(whole, 1e-3), whole)
        return (at.d_beta * x - at.beta * v) / whole, (at.alpha * v - at.d_alpha * x) / whole

    def few(self) -> Problem:
        """The same for few numbers: the field treats every number by itself, so that these are as good as all."""
        return Problem(self.path, few(self.z0), few(self.z1), few(self.aside), self.size)


def few(states: Tensor) -> Tensor:
    """(B, ...) to (b, d): the first rows, and the first numbers of each."""
    rows = states[:_ROWS]
    return rows.reshape(len(rows), -1)[:, :_COLUMNS]


@dataclass
class Call:
    """One call of the stand-in: the time of the first row in the user's unit, the condition, and few of the numbers of
    state and velocity."""

    t: float
    cond: Any
    x: Tensor
    slope: Tensor


@dataclass
class StandIn:
    """`velocity(x, t, cond)`: what a perfect network says. Records how it was called.

    t_source, unit: the user's time is `unit` times one that has the source at t_source. training: what a network of
    this training says, in place of the velocity. turned: it answers for time 1 - t. handed: it answers for x over this
    number. flat: whatever x and t are, it says what is true on the way straight to z1.
    """

    problem: Problem
    training: Training
    t_source: float
    unit: float = 1.0
    turned: bool = False
    handed: float = 1.0
    flat: bool = False
    calls: list[Call] = field(default_factory=list)

    def __call__(self, x: Tensor, t: Any, cond: Any = None, *_: Any, **__: Any) -> Tensor:
        """What a network would say at x (B, ...), or several times B rows, and t: a number, or one per row."""
        rows = self.problem.z0
        if not isinstance(x, Tensor) or x.ndim != rows.ndim or x.shape[1:] != rows.shape[1:] or len(x) % len(rows):
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(
                mismatch(
                    "The sampler called velocity(x, t, cond) with another x.",
                    f"shape {tuple(rows.shape)}, or a multiple of {len(rows)} rows",
                    got,
                    "keep the state in the shape of z0",
                )
            )
        times = len(x) // len(rows)
        problem = self.problem
        if times > 1:
            repeat = (times, *(1,) * (rows.ndim - 1))
            z0, z1, aside = (one.repeat(repeat) for one in (problem.z0, problem.z1, problem.aside))
            problem = Problem(problem.path, z0, z1, aside, problem.size)
        state = x.detach().to(rows) / self.handed
        user = self._time(t, state)
        source = user / self.unit
        source = source if (self.t_source == 0.0) != self.turned else 1 - source
        slope = problem.z1 - problem.z0 if self.flat else problem.slope(state, source)
        self.calls.append(Call(float(user.flatten()[0]), cond, few(state[: len(rows)]), few(slope[: len(rows)])))
        return self._said(problem, state, source, slope).to(x.dtype)

    def _time(self, t: Any, x: Tensor) -> Tensor:
        times: Tensor = torch.as_tensor(t, device=x.device).to(x.dtype)
        ones = (1,) * (x.ndim - 1)
        if times.numel() == 1:
            return times.reshape(1, *ones).expand(len(x), *ones)
        if times.numel() != len(x):
            raise ShapeError(
                mismatch(
                    "The sampler called velocity(x, t, cond) with another t.",
                    f"one time, or one per row: ({len(x)}, {', '.join('1' for _ in ones)})",
                    f"shape {tuple(times.shape)} for x of shape {tuple(x.shape)}",
                    "give t the shape (B, 1, ...)",
                )
            )
        return times.reshape(-1, *ones)

    def _said(self, problem: Problem, x: Tensor, t: Tensor, slope: Tensor) -> Tensor:
        sign = 1.0 if self.t_source == 0.0 else -1.0
        kind = self.training.kind
        if kind in ("data", "source", "straight"):
            source, data = (problem.z0, problem.z1) if self.flat else problem.ends(problem.slope, x, t)
            return data if kind == "data" else source if kind == "source" else sign * (data - source)
        factor = {"negative": -1.0, "scaled": self.training.factor}.get(kind, 1.0)
        return factor * sign * slope
