"""Free integration of a velocity field in evaluation mode, leaving everything as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lossdoctor import metrics
from lossdoctor.doctor.examination import owner_of, randomness
from lossdoctor.doctor.outlet import Outlet
from lossdoctor.doctor.patient import Patient
from lossdoctor.flow.solvers import SOLVERS
from lossdoctor.metrics.reading import to_host
from lossdoctor.probe import neutrality
from lossdoctor.probe.snapshot import FlowBatch, Velocity
from lossdoctor.record import Record

STEPS = (8, 16, 32, 64)
ROLLOUT_SECONDS = 30.0
"""A rollout nobody asked for takes no longer."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How a field is integrated.

    t_ndim: axes of the times it is called with. forwards: what extra forwards need. The others as in `Doctor.endpoint`.
    """

    velocity: Velocity
    cond: Any
    steps: tuple[int, ...]
    solver: str | metrics.endpoint.Sampler
    t_source: float
    t_ndim: int
    forwards: Callable[[], AbstractContextManager[object]] = nullcontext

    def measure(
        self, z0: Tensor, z1: Tensor, tops: Sequence[nn.Module], generator: torch.Generator
    ) -> dict[str, float]:
        """The endpoint metrics from z0 to z1. tops: modules whose modes and buffers are kept."""
        with self._evaluation(tops):
            readings = metrics.endpoint.measure.deferred(
                z0.detach(),
                z1.detach(),
                self.velocity,
                self.cond,
                steps=self.steps,
                solver=self.solver,
                t_source=self.t_source,
                t_ndim=self.t_ndim,
                generator=generator,
            )
        return to_host(readings)

    def seconds(self, batch: FlowBatch, tops: Sequence[nn.Module]) -> float:
        """How long `measure` would take on a batch, from one call of the field."""
        with self._evaluation(tops):
            started = time.perf_counter()
            float(self.velocity(batch.z0, batch.t_like, batch.cond).sum())  # type: ignore[arg-type]
            calls = 3 * sum(self.steps) + 8 * max(self.steps)
            return calls * (time.perf_counter() - started)

    def facts(self) -> dict[str, Any]:
        """Name and nominal order of the solver, and its steps; of a sampler of the user's own order 1 is expected."""
        if isinstance(self.solver, str):
            named: dict[str, Any] = {"solver": self.solver, "order": SOLVERS[self.solver].order}
        else:
            named = {"solver": getattr(self.solver, "__name__", type(self.solver).__name__), "order": 1}
        return {**named, "steps": list(self.steps)}

    @contextmanager
    def _evaluation(self, tops: Sequence[nn.Module]) -> Iterator[None]:
        every = [*tops, *owner_of(self.velocity), *owner_of(self.solver)]
        kept = neutrality.every_module(every)
        with neutrality.undisturbed(kept, None, self.forwards), neutrality.evaluation(every):
            yield


class Rollouts:
    """The rollouts of one Doctor, recorded. last: the flow of the last measured step. done: whether there was one."""

    def __init__(self, patient: Patient, out: Outlet) -> None:
        self._patient, self._out = patient, out
        self.last: FlowBatch | None = None
        self.done = False

    def measure(
        self,
        z0: Tensor,
        z1: Tensor,
        velocity: Velocity,
        cond: Any,
        *,
        steps: Sequence[int] = STEPS,
        solver: str | metrics.endpoint.Sampler = "euler",
        t_source: float,
    ) -> dict[str, float]:
        """As `Doctor.endpoint`; nothing when it fails."""
        values: dict[str, float] = {}
        self.done = True
        with self._out.guard("endpoint"):
            t_ndim = 1 if self.last is None else self.last.t_like.ndim
            rollout = Rollout(velocity, cond, tuple(steps), solver, t_source, t_ndim, self._patient.forwards)
            values = rollout.measure(z0, z1, self._patient.tops, randomness(self._out.step, z0.device))
            self._out.deliver([Record(self._out.step, values)])
            self._out.describe(endpoint={**rollout.facts(), "samples": len(z0)})
        return values

    @property
    def possible(self) -> bool:
        """Whether `of_last_batch` is still to be measured and has what it needs: both ends and the velocity."""
        batch = self.last
        whole = batch is not None and all(part is not None for part in (batch.velocity, batch.z0, batch.z1))
        return whole and not self.done and "endpoint" not in self._out.off

    def of_last_batch(self, longest: Callable[[float], float]) -> dict[str, float]:
        """The same of the last measured batch, where that is `possible`, unless it would take too long.

        longest: from the seconds it would take this rank to those it would take the slowest.
        """
        batch: Any = self.last
        forwards = self._patient.forwards
        rollout = Rollout(batch.velocity, batch.cond, STEPS, "euler", batch.t_source, batch.t_like.ndim, forwards)
        seconds = longest(rollout.seconds(batch, self._patient.tops))
        if seconds > ROLLOUT_SECONDS:
            self._out.event("rollout_skipped", seconds=seconds, hint="call doctor.endpoint(...) on a smaller batch")
            return {}
        return self.measure(
            batch.z0, batch.z1, batch.velocity, batch.cond, steps=rollout.steps, t_source=batch.t_source
        )
