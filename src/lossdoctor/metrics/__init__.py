"""Snapshot in, numbers out. Each family is a module of pure functions, usable without a Doctor.

`lossdoctor.metrics.<family>.<function>(tensors)` returns `dict[str, Tensor]`: 0-d tensors on their device, undefined
keys absent. Every family has one `measure`, which the Doctor calls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lossdoctor.metrics import distillation, endpoint, gradients, posterior, probes, steps, velocity
from lossdoctor.metrics.reading import Readings
from lossdoctor.probe.snapshot import Snapshot

FAMILIES = ("distillation", "endpoint", "gradients", "posterior", "probes", "steps", "velocity")
FOUNDATIONS = ("asking", "condition", "reading", "rows")
"""What the families are built on; a family imports these and no other family."""

__all__ = [
    "AFTER_STEP",
    "BEFORE_STEP",
    "FAMILIES",
    "FOUNDATIONS",
    "distillation",
    "endpoint",
    "gradients",
    "posterior",
    "probes",
    "steps",
    "velocity",
]

Family = Callable[[Snapshot], Readings]
"""What a due step asks of a family: the readings its part of the snapshot allows, none without that part."""


def _velocity(s: Snapshot) -> Readings:
    source = {} if s.source is None else velocity.source_gradient.deferred(*s.source)
    if s.flow is None:
        return source
    generator = s.randomness(s.flow.v_pred.device)
    return {**velocity.measure.deferred(s.flow, loss=s.velocity_loss, generator=generator), **source}


def _probes(s: Snapshot) -> Readings:
    if s.flow is None:
        return {}
    with s.undisturbed():
        generator = s.randomness(s.flow.v_pred.device)
        return probes.measure(s.flow, generator=generator, batch_coupled=s.batch_coupled, stochastic=s.stochastic)


def _posterior(s: Snapshot) -> Readings:
    if s.posterior is None:
        return {}
    generator = s.randomness(s.posterior.mu.device)
    return posterior.measure.deferred(s.posterior, generator=generator, weight=s.kl_weight)


BEFORE_STEP: Mapping[str, Family] = {
    "distillation": lambda s: distillation.measure.deferred(s.distill, loss=s.distill_loss) if s.distill else {},
    "gradients": lambda s: gradients.measure.deferred(s.gradients) if s.gradients else {},
    "posterior": _posterior,
    "probes": _probes,
    "velocity": _velocity,
}
"""The families that need the parameters as they were in the forward of the step."""

AFTER_STEP: Mapping[str, Family] = {
    "steps": lambda s: steps.measure.deferred(s.updates, s.ema, s.teacher) if s.updates else {},
}
"""The families that need to know what the optimizers did. `endpoint` is in neither: it is asked for."""
