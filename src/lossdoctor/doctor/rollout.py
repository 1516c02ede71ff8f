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
from lossdoctor.doctor.examination import owner_of
from lossdoctor.flow.solvers import SOLVERS
from lossdoctor.metrics.reading import to_host
from lossdoctor.probe import neutrality
from lossdoctor.probe.snapshot import FlowBatch, Velocity

STEPS = (8, 16, 32, 64)


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
