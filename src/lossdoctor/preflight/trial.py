"""The user's sampler on the bench: called with a stand-in for the network, at several numbers of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lossdoctor.preflight.given import Failed, Given, asked, like
from lossdoctor.preflight.standin import Problem, StandIn
from lossdoctor.preflight.training import Kind, Training
from lossdoctor.rules.finding import say

COUNTS = (8, 16, 32)
GRID = 1000.0
"""Times in steps of training, as in diffusion code."""
_DETOUR = 0.5


@dataclass(frozen=True)
class Trial:
    """The sampler's end points by number of steps, and the stand-ins that saw its calls."""

    ends: Mapping[int, Tensor]
    standins: Mapping[int, StandIn]


@dataclass(frozen=True)
class Bench:
    """A sampler, the problem it is to solve, and what the network in its place says. turned, handed: see `StandIn`."""

    given: Given
    problem: Problem
    training: Training
    t_source: float
    turned: bool = False
    handed: float = 1.0

    @classmethod
    def of(cls, given: Given, training: Training) -> Bench:
        """The bench for a training; a target that has no name counts as the velocity it should be."""
        assert given.z0 is not None
        assert given.z1 is not None
        assert training.path is not None
        # Where a path stands still at an end, its two ends cannot be told from a velocity beside it.
        path = training.path
        if training.kind in ("unknown", "noise"):
            training = replace(training, kind="velocity")
        converted = training.kind in ("straight", "data", "source")
        detour = 0.0 if converted and path.name not in ("linear", "trigonometric") else _DETOUR
        source = 1 - given.t_source if training.reversed_source else given.t_source
        return cls(given, Problem.of(path, given.z0, given.z1, detour), training, source)

    def saying(self, kind: Kind, factor: float = 1.0) -> Bench:
        """The same sampler before a network that predicts something else. factor: of "scaled"."""
        other = Bench.of(self.given, replace(self.training, kind=kind, factor=factor))
        return replace(other, turned=self.turned, handed=self.handed)

    def run(self, counts: Sequence[int]) -> Trial:
        """The sampler with each number of steps. Raises Failed when it fails."""
        standins = {n: self._standin(self.unit or 1.0) for n in counts}
        return Trial({n: self._end(standin, n) for n, standin in standins.items()}, standins)

    def random(self) -> bool:
        """Whether the end points depend on random numbers that the sampler draws."""
        one, other = (self._end(self._standin(self.unit or 1.0), COUNTS[0], seed) for seed in range(2))
        return not torch.equal(one, other)

    def way(self) -> dict[int, float] | None:
        """Which part of the way straight to z1 its steps add up to, by number of steps, whatever the method.

        None where the network predicts no velocity, and where the sampler leaves that way.
        """
        if self.training.kind not in ("velocity", "negative"):
            return None
        line = self.problem.z1 - self.problem.z0
        found = {}
        for n in COUNTS:
            gone = self._end(self._standin(self.unit or 1.0, flat=True), n) - self.problem.z0
            found[n] = float((gone * line).sum() / line.square().sum())
            if not float((gone - found[n] * line).square().mean().sqrt()) <= 2e-3 * self.problem.size:
                return None
        return found

    @cached_property
    def ranges(self) -> dict[int, tuple[float, float]]:
        """The first and the last time the sampler asks at, by number of steps."""
        found = {}
        for n in COUNTS:
            # Before the unit of time is known, the true field could be asked for a thousand times too far away.
            standin = self._standin(flat=True)
            self._answer(standin, n)
            times = [call.t for call in standin.calls] or [0.0]
            found[n] = (min(times), max(times))
        return found

    @cached_property
    def unit(self) -> float | None:
        """What the sampler's times are to be divided by: 1, or 1000; None where they fit neither."""
        for unit in (1.0, GRID):
            # A grid that is one step off leaves [0, 1] by 1 / (N - 1).
            fits = [low >= -1.5 / n * unit and high <= (1 + 1.5 / n) * unit for n, (low, high) in self.ranges.items()]
            if all(fits) and (unit == 1.0 or all(high > 0.5 * unit for _, high in self.ranges.values())):
                return unit
        return None

    def _standin(self, unit: float = 1.0, *, flat: bool = False) -> StandIn:
        return StandIn(self.problem, self.training, self.t_source, unit, self.turned, self.handed, flat)

    def _answer(self, standin: StandIn, steps: int, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return asked("sampler", self.given.sampler, standin, self.problem.z0.clone(), self.given.cond, steps)  # type: ignore[arg-type]

    def _end(self, standin: StandIn, steps: int, seed: int = 0) -> Tensor:
        z0, end = self.problem.z0, self._answer(standin, steps, seed)
        if isinstance(end, Tensor) and end.ndim == z0.ndim + 1 and end.shape[1:] == z0.shape:
            raise Failed("sampler", say("preflight.PRE001.trajectory", got=str(tuple(end.shape))))
        end = like("sampler", end, z0).to(z0)
        if not standin.calls:
            raise Failed("sampler", say("preflight.PRE001.not_called"))
        return end
