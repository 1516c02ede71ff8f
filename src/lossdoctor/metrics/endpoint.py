"""Where does free integration of the field end, and is it solved at all?

Three questions that are easily mixed up. `flow/ode_error@K` asks whether the solver solves this field, and must fall
with K whatever the field is. `flow/endpt_rmse@K` asks for *this* sample's z1, which means something only where z0 and
the condition determine it: then it is clearly below its shuffled twin. `flow/endpt_sw@K` and `flow/endpt_energy@K` ask
whether the samples are distributed like the data, and mean something over their floors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lossdoctor.errors import ShapeError, UsageError, mismatch
from lossdoctor.flow.distances import energy_distance, sliced_wasserstein
from lossdoctor.flow.paths import source_time
from lossdoctor.flow.solvers import Field, integrate, observed_order, trajectory
from lossdoctor.metrics import condition
from lossdoctor.metrics.reading import Maybe, Readings, field_metric, metric, widened
from lossdoctor.metrics.rows import flat, same_shape
from lossdoctor.probe.snapshot import Velocity

REFERENCE_SAMPLES = 64
"""On how many samples the finer reference solution is computed."""

Sampler = Callable[[Velocity, Tensor, Any, int], Tensor]
"""The user's own: sampler(velocity, z0, cond, steps) to z1_hat, with the velocity as it was handed in."""

_HALF = 1024  # the energy distance takes time quadratic in it
_PROJECTIONS = 128
# Closer than this many units of rounding, an error no longer shows the order of the solver.
_ROUNDING = 100


@field_metric
def measure(
    z0: Tensor,
    z1: Tensor,
    velocity: Velocity,
    cond: Any = None,
    *,
    steps: Sequence[int] = (8, 16, 32, 64),
    solver: str | Sampler = "euler",
    t_source: float = 0.0,
    t_ndim: int = 1,
    generator: torch.Generator | None = None,
) -> Readings:
    """Integrate from the source end to the target end with K steps for each K, and judge the end points.

    z0, z1: (B, ...), source and target samples; z1[i] belongs to z0[i] if they are paired at all. velocity(x, t, cond):
    dx/dt in the user's direction of t, called with t of `t_ndim` axes, (B, 1, ...) or a scalar for 0, in the dtype of
    z0. solver: a name of `flow.solvers.SOLVERS`, or a sampler of your own, called solver(velocity, z0, cond, K) for the
    end points (B, ...) after K steps: its grid, its times and its state are judged against the same field. t_source:
    the t of the source end, 0.0 or 1.0. generator: private randomness for the distances; without one, the same every
    time.
    Of a sampler that asks the velocity K times, once per step:
    `flow/sampler_gap@K` = |z1_hat - (z0 + sum_k (t_(k+1) - t_k) v_k)| / |z1_hat - z0| over its calls (t_k, v_k), with
    the end of time after the last: 0 for Euler's method on any grid, > 0 when a step leaves [0, 1] or is left out;
    `flow/sampler_lag@K`: likewise the root mean square distance of the states it asks at from those that the sum up
    to there leads to: 0 when each step is asked at the state it starts from. Absent for several calls per step.
    Keys: those of `pairwise`, `convergence` (for the solver, for Heun, and beside your own sampler for Euler) and
    `distribution`, and at the largest K
    `flow/endpt_std_ratio` = std(z1_hat) / std(z1) over all elements, absent for a constant z1;
    `flow/straightness` = mean |v(z_t, t) - (z1_hat - z0)|^2 / mean |z1_hat - z0|^2 over samples and over the states at
    which the solver's steps begin (Heun's, for a sampler of your own), >= 0, 0 is a straight line at constant speed;
    absent for paths that lead nowhere.
    Costs 3 sum(K) forwards over the batch, 4 beside your own sampler, and 8 max(K) over 64 samples. Nothing for an
    empty batch.
    Raises ShapeError when z0 and z1 differ in shape, or a sampler's end points from them; UsageError for steps, solver
    or t_source that cannot be.
    """
    same_shape("Both ends of a path have one shape.", "Bring z0 and z1 into the same space.", z0=z0, z1=z1)
    source_time(z0, t_source)
    counts = _checked_steps(steps)
    if z0.numel() == 0:
        return {}
    generator = generator or torch.Generator(z0.device).manual_seed(0)
    t_end = 1.0 - t_source
    field = _field(velocity, cond, t_ndim)

    def ends(of: Field, z: Tensor, k: int, by: str) -> Tensor:
        return integrate(of, z, k, by, t_start=t_source, t_end=t_end)

    known = solver if isinstance(solver, str) else "heun"
    straight = _Straightness(field)
    end = z0
    for _, state in trajectory(straight, z0, counts[-1], known, t_start=t_source, t_end=t_end):
        straight.armed, end = True, state
    found = {k: ends(field, z0, k, known) for k in counts[:-1]} | {counts[-1]: end}
    heun = found if known == "heun" else {k: ends(field, z0, k, "heun") for k in counts}
    plain: dict[int, Tensor] = {}
    calls: dict[int, _Replay] = {}
    if not isinstance(solver, str):
        calls = {k: _Replay(velocity, z0, t_end) for k in counts}
        found = {k: _sampled(solver, calls[k], z0, cond, k) for k in counts}
        plain = {k: ends(field, z0, k, "euler") for k in counts}

    few, few_field = z0, field
    if len(z0) > REFERENCE_SAMPLES and condition.splittable(cond, len(z0)):
        first = torch.arange(REFERENCE_SAMPLES, device=z0.device)
        few, few_field = z0[first], _field(velocity, condition.take(cond, first), t_ndim)
    reference = ends(few_field, few, 2 * counts[-1], "rk4")

    return {
        **pairwise.deferred(found, heun, z1, partner=_partner(cond, len(z0), generator, z0.device)),
        **convergence.deferred({k: end[: len(few)] for k, end in found.items()}, reference),
        **convergence.deferred({k: end[: len(few)] for k, end in heun.items()}, reference, solver="_heun"),
        **convergence.deferred({k: end[: len(few)] for k, end in plain.items()}, reference, solver="_euler"),
        **distribution.deferred(found, z1, generator=generator),
        **_std_ratio.deferred(found[counts[-1]], z1),
        **straight.compared(z0, end, t_end - t_source),
        **{name: value for k, one in calls.items() for name, value in one.compared(found[k], k).items()},
    }


def _checked_steps(steps: Sequence[int]) -> list[int]:
    counts = sorted(set(steps))
    if not counts or counts[0] < 1:
        got, todo = repr(tuple(steps)), "Use steps=(8, 16, 32, 64)."
        raise UsageError(mismatch("An integration needs a number of steps.", "integers >= 1", got, todo))
    return counts


def _sampled(sampler: Sampler, velocity: Velocity, z0: Tensor, cond: Any, steps: int) -> Tensor:
    end = sampler(velocity, z0.clone(), cond, steps)  # a copy: samplers like to write into their state
    if not isinstance(end, Tensor) or end.shape != z0.shape:
        got = f"shape {tuple(end.shape)}" if isinstance(end, Tensor) else type(end).__name__
        todo = "Return the end points alone, one for every sample of z0."
        raise ShapeError(mismatch("A sampler leads from z0 to z1_hat.", f"{tuple(z0.shape)}, as z0", got, todo))
    return end.to(z0.device)


def _field(velocity: Velocity, cond: Any, t_ndim: int) -> Field:
    def field(x: Tensor, t: Tensor) -> Tensor:
        t = t.to(x.dtype)
        return velocity(x, t.reshape(-1, *(1,) * (t_ndim - 1)) if t_ndim else t[0], cond)

    return field


def _partner(cond: Any, samples: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """A permutation among samples of equal condition; None when conditions cannot be compared."""
    if not condition.splittable(cond, samples):
        return None
    equal = condition.keys(cond, generator)
    if equal is None:
        equal = torch.zeros(samples, dtype=torch.int64)
    index, moved = condition.exchange(equal.to(device))
    return index, moved


@metric
def pairwise(
    found: Mapping[int, Tensor],
    heun: Mapping[int, Tensor],
    z1: Tensor,
    *,
    partner: tuple[Tensor, Tensor] | None = None,
) -> Readings:
    """Distance of each end point from its own target.

    found, heun: K to the end points (B, ...) by the chosen solver and by Heun. z1: (B, ...). partner: (B,) a
    permutation among samples of equal condition, and (B,) whether it moved the sample. Keys, >= 0, in the unit of z1:
    `flow/endpt_rmse@K`, `flow/endpt_rmse_heun@K` = sqrt(mean (z1_hat - z1)^2); with independent pairs a perfect model
    has about sqrt(2) std(z1). `flow/endpt_rmse_shuffled@K`: against the partner's z1, over the samples that have one;
    absent when none has, or conditions cannot be compared.
    """
    target = flat(z1)
    readings: dict[str, Tensor | Maybe] = {}
    for k, end in found.items():
        readings[f"flow/endpt_rmse@{k}"] = _square(end, target).mean().sqrt()
        readings[f"flow/endpt_rmse_heun@{k}"] = _square(heun[k], target).mean().sqrt()
        if partner is not None:
            index, moved = partner
            square = torch.where(moved, _square(end, target[index]), 0).sum() / moved.sum()
            readings[f"flow/endpt_rmse_shuffled@{k}"] = Maybe(square.sqrt(), moved.any())
    return readings


def _square(end: Tensor, target: Tensor) -> Tensor:
    return (flat(end) - target).square().mean(1)


@metric
def convergence(found: Mapping[int, Tensor], reference: Tensor, *, solver: str = "") -> Readings:
    """Does the solver solve this field? The only judge is a much finer solution of the same field from the same z0.

    found: K to end points (n, ...). reference: (n, ...). solver: suffix of the keys.
    `flow/ode_error<solver>@K` = |z_K - z_ref| / |z_ref|, >= 0, all samples as one vector; absent for a zero reference.
    `flow/ode_order<solver>` = slope of log error over log step size: about 1 for Euler, 2 for Heun, 0 when the sampler
    does not solve this ODE; absent for fewer than two K, and when an error is so small that it is rounding.
    """
    exact = flat(reference)
    norm = torch.linalg.vector_norm(exact)
    errors = {k: torch.linalg.vector_norm(flat(end) - exact) / norm for k, end in found.items()}
    readings: dict[str, Tensor | Maybe] = {
        f"flow/ode_error{solver}@{k}": Maybe(error, norm != 0) for k, error in errors.items()
    }
    if len(errors) > 1:
        together = torch.stack(list(errors.values()))
        rounding = _ROUNDING * torch.finfo(reference.dtype).eps
        readings[f"flow/ode_order{solver}"] = Maybe(
            observed_order(together, list(errors)), ~(together <= rounding).any() & (norm != 0)
        )
    return readings


@metric
def distribution(found: Mapping[int, Tensor], z1: Tensor, *, generator: torch.Generator) -> Readings:
    """Are the end points distributed like the data, whatever the pairing?

    found: K to end points (B, ...). z1: (B, ...). The batch is cut at random into two halves of at most 1024 samples:
    generated samples of the second half are compared with real ones of the first, and for the floor the real ones of
    the second half with the same. Value and floor thus have the same size, the same real samples and, for the sliced
    distance, the same directions, and no generated sample meets its own target. In the unit of z1, >= 0:
    `flow/endpt_sw@K`, `flow/endpt_sw_floor`: sliced 2-Wasserstein, 128 directions.
    `flow/endpt_energy@K`, `flow/endpt_energy_floor`: energy distance. All absent for fewer than 4 samples.
    """
    half = min(len(z1) // 2, _HALF)
    if half < 2:
        return {}
    shuffled = torch.randperm(len(z1), generator=generator, device=generator.device).to(z1.device)
    mine, other = shuffled[:half], shuffled[half : 2 * half]
    real = flat(z1)[mine]
    random = torch.randn(real.shape[1], _PROJECTIONS, generator=generator, device=generator.device, dtype=torch.float64)
    directions = random / torch.linalg.vector_norm(random, dim=0)
    readings: dict[str, Tensor] = {}
    for key, samples in {"_floor": z1, **{f"@{k}": end for k, end in found.items()}}.items():
        theirs = flat(samples)[other]
        readings[f"flow/endpt_sw{key}"] = sliced_wasserstein(theirs, real, directions=directions)
        readings[f"flow/endpt_energy{key}"] = energy_distance(theirs, real)
    return readings


@metric
def _std_ratio(end: Tensor, z1: Tensor) -> Readings:
    real = widened(z1).std(correction=0)
    return {"flow/endpt_std_ratio": Maybe(widened(end).std(correction=0) / real, real != 0)}


class _Replay:
    """The velocity as a sampler of the user's calls it, and beside it the path that Euler's method takes by its times.

    The times are those of the first sample: a sampler steps its batch at once.
    """

    def __init__(self, velocity: Velocity, z0: Tensor, t_end: float) -> None:
        self._velocity, self._start, self._t_end = velocity, z0, t_end
        self._state = flat(z0).double()
        self._before: tuple[Tensor, Tensor] | None = None
        self._lag: Tensor | float = 0.0
        self._calls = 0

    def __call__(self, x: Tensor, t: Tensor, *args: Any, **options: Any) -> Tensor:
        answer = self._velocity(x, t, *args, **options)
        self._calls += 1
        if x.shape == self._start.shape and answer.shape == x.shape:
            now = torch.as_tensor(t, device=x.device).detach().reshape(-1)[0].double()
            self._step_to(now)
            self._lag = self._lag + (flat(x.detach()).double() - self._state).square().sum()
            self._before = now, flat(answer.detach()).to(torch.float64, copy=True)
        return answer

    def _step_to(self, t: Tensor | float) -> None:
        if self._before is not None:
            self._state = self._state + (t - self._before[0]) * self._before[1]

    def compared(self, end: Tensor, steps: int) -> Readings:
        """The readings of a sampler that ends there after so many steps."""
        if self._calls != steps or self._before is None:
            return {}
        self._step_to(self._t_end)
        gap = torch.linalg.vector_norm(flat(end).double() - self._state)
        path = torch.linalg.vector_norm(flat(end).double() - flat(self._start).double())
        lag = torch.as_tensor(self._lag / steps).sqrt()
        return {
            f"flow/sampler_gap@{steps}": Maybe(gap / path, path != 0),
            f"flow/sampler_lag@{steps}": Maybe(lag / path, path != 0),
        }


class _Straightness:
    """The field itself, noting its first answer of every step: the velocity at the state on the path.

    The ends of the paths are known only afterwards, so sums are kept and not all velocities, in float64: they cancel.
    """

    def __init__(self, field: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.armed = True
        self._field = field
        self._steps = 0
        self._sum: Tensor | float = 0.0
        self._square: Tensor | float = 0.0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        velocity = self._field(x, t)
        if self.armed:
            v = flat(velocity).double()
            self._sum, self._square = self._sum + v, self._square + v.square().sum()
            self._steps += 1
            self.armed = False
        return velocity

    def compared(self, z0: Tensor, end: Tensor, duration: float) -> Readings:
        """The readings, for paths from z0 to `end`; duration is -1 when t runs from target to source."""
        path = flat(end).double() - flat(z0).double()
        mean_v = duration * self._sum / self._steps
        deviation = self._square / self._steps - 2 * (mean_v * path).sum() + path.square().sum()
        length = path.square().sum()
        return {"flow/straightness": Maybe(deviation.clamp(min=0) / length, length != 0)}
