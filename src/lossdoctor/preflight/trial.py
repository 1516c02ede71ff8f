"""The user's sampler on the bench: called with a stand-in for the network, at several numbers of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lossdoctor.preflight.given import Failed, Given, asked, like
from lossdoctor.preflight.standin import Problem, StandIn
from lossdoctor.preflight.training import Training
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
    """A sampler, the problem it is to solve, and what the network in its place says."""

    given: Given
    problem: Problem
    training: Training
    t_source: float

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

    def run(self, counts: Sequence[int]) -> Trial:
        """The sampler with each number of steps. Raises Failed when it fails."""
        standins = {n: StandIn(self.problem, self.training, self.t_source, self.unit or 1.0) for n in counts}
        return Trial({n: self._end(standin, n) for n, standin in standins.items()}, standins)

    def random(self) -> bool:
        """Whether the end points depend on random numbers that the sampler draws."""
        standins = [StandIn(self.problem, self.training, self.t_source) for _ in range(2)]
        one, other = (self._end(standin, COUNTS[0], seed) for seed, standin in enumerate(standins))
        return not torch.equal(one, other)

    @cached_property
    def ranges(self) -> dict[int, tuple[float, float]]:
        """The first and the last time the sampler asks at, by number of steps."""
        found = {}
        for n in COUNTS:
            standin = StandIn(self.problem, self.training, self.t_source)
            self._end(standin, n)
            times = [call.t for call in standin.calls]
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

    def _end(self, standin: StandIn, steps: int, seed: int = 0) -> Tensor:
        torch.manual_seed(seed)
        z0 = self.problem.z0
        end = asked("sampler", self.given.sampler, standin, z0.clone(), self.given.cond, steps)  # type: ignore[arg-type]
        if isinstance(end, Tensor) and end.ndim == z0.ndim + 1 and end.shape[1:] == z0.shape:
            raise Failed("sampler", say("preflight.PRE001.trajectory", got=str(tuple(end.shape))))
        end = like("sampler", end, z0).to(z0)
        if not standin.calls:
            raise Failed("sampler", say("preflight.PRE001.not_called"))
        return end
