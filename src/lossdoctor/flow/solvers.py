"""Solve dx/dt = v(x, t) on a fixed grid, and measure how fast a solver converges.

The grid is t_k = t_start + k (t_end - t_start) / steps, computed from k and not by adding, so the last time is t_end.
Source of the orders: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, chapter II.1.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lossdoctor.errors import MissingExtraError, ShapeError, UsageError, mismatch

Field = Callable[[Tensor, Tensor], Tensor]
"""The velocity v(x, t): x (B, ...), t (B,) to the shape of x."""

Slope = Callable[[Tensor, float], Tensor]
"""A field at one time for the whole batch, as the steps below see it."""


@dataclass(frozen=True, slots=True)
class Solver:
    """One way to step from t to u. `order` is that of its global error, `evaluations` counts field calls per step."""

    name: str
    order: int
    evaluations: int
    step: Callable[[Slope, Tensor, float, float], Tensor]


def _euler(v: Slope, x: Tensor, t: float, u: float) -> Tensor:
    return x + (u - t) * v(x, t)


def _euler_mid(v: Slope, x: Tensor, t: float, u: float) -> Tensor:
    # State of Euler, time of the midpoint. The error keeps the term (u - t)^2 / 2 * (dv/dx) v: order 1 unless the
    # velocity does not depend on the state.
    return x + (u - t) * v(x, (t + u) / 2)


def _midpoint(v: Slope, x: Tensor, t: float, u: float) -> Tensor:
    return x + (u - t) * v(x + (u - t) / 2 * v(x, t), (t + u) / 2)


def _heun(v: Slope, x: Tensor, t: float, u: float) -> Tensor:
    first = v(x, t)
    return x + (u - t) / 2 * (first + v(x + (u - t) * first, u))


def _rk4(v: Slope, x: Tensor, t: float, u: float) -> Tensor:
    h, middle = u - t, (t + u) / 2
    k1 = v(x, t)
    k2 = v(x + h / 2 * k1, middle)
    k3 = v(x + h / 2 * k2, middle)
    k4 = v(x + h * k3, u)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


SOLVERS: Final[Mapping[str, Solver]] = {
    solver.name: solver
    for solver in (
        Solver("euler", 1, 1, _euler),
        Solver("euler_mid", 1, 1, _euler_mid),
        Solver("heun", 2, 2, _heun),
        Solver("midpoint", 2, 2, _midpoint),
        Solver("rk4", 4, 4, _rk4),
    )
}


def integrate(
    field: Field, z0: Tensor, steps: int, solver: str = "euler", *, t_start: float = 0.0, t_end: float = 1.0
) -> Tensor:
    """The state at t_end of the path that starts from z0 at t_start: the shape and dtype of z0.

    field, z0, ...: see `trajectory`, which is this function with the states in between.
    """
    [(_, end)] = deque(trajectory(field, z0, steps, solver, t_start=t_start, t_end=t_end), maxlen=1)
    return end


def trajectory(
    field: Field, z0: Tensor, steps: int, solver: str = "euler", *, t_start: float = 0.0, t_end: float = 1.0
) -> Iterator[tuple[float, Tensor]]:
    """The steps + 1 pairs (t_k, state at t_k) of the path that starts from z0 (B, ...) at t_start, one by one.

    field: called with a state of the dtype of z0 and t (B,) in float32 or wider. Between the calls the state is kept
    in float32 or wider, since a small step vanishes in half precision. t_end < t_start integrates backwards.
    Gradients flow unless the caller switches them off. Raises UsageError for an unknown solver or steps < 1, and
    ShapeError (at the first step) when the field does not return the shape of the state.
    """
    if solver not in SOLVERS:
        todo = "Choose one of these, or use dopri5() for an adaptive reference."
        raise UsageError(mismatch("No such solver.", " | ".join(SOLVERS), repr(solver), todo))
    if steps < 1:
        todo = "Give the number of steps from t_start to t_end."
        raise UsageError(mismatch("An integration needs a step.", "steps >= 1", f"{steps}", todo))
    grid = [t_start + k * (t_end - t_start) / steps for k in range(steps)] + [t_end]
    return _walk(field, z0, SOLVERS[solver], grid)


def _walk(field: Field, z0: Tensor, solver: Solver, grid: Sequence[float]) -> Iterator[tuple[float, Tensor]]:
    wide = torch.promote_types(z0.dtype, torch.float32)

    def slope(x: Tensor, t: float) -> Tensor:
        times = torch.full((len(x),), t, dtype=wide, device=x.device)
        return _velocity(field, x.to(z0.dtype), times)

    yield grid[0], z0
    state = z0.to(wide)
    for t, u in itertools.pairwise(grid):
        state = solver.step(slope, state, t, u)
        yield u, state.to(z0.dtype)


def _velocity(field: Field, x: Tensor, t: Tensor) -> Tensor:
    velocity = field(x, t)
    if velocity.shape != x.shape:
        expected, got = f"{tuple(x.shape)}, as the state", f"a velocity of shape {tuple(velocity.shape)}"
        todo = "Reshape inside the field, so that nothing relies on broadcasting."
        raise ShapeError(mismatch("A velocity must have the shape of the state.", expected, got, todo))
    return velocity


def dopri5(
    field: Field,
    z0: Tensor,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    t_start: float = 0.0,
    t_end: float = 1.0,
) -> Tensor:
    """The state at t_end by adaptive Dormand-Prince 5(4): a reference whose error is controlled, not its steps.

    field, z0, t_start, t_end: as in `trajectory`; the field is never asked outside [t_start, t_end]. rtol, atol: bounds
    on the error of a step. Synchronises at every step. Raises MissingExtraError without torchdiffeq (extra "ode"),
    UsageError when no step is small enough: a velocity that is NaN, infinite or too rough for the tolerances.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise MissingExtraError("torchdiffeq", "ode", "The adaptive solver dopri5") from error
    low, high = min(t_start, t_end), max(t_start, t_end)
    state = z0.to(torch.promote_types(z0.dtype, torch.float32))

    def slope(t: Tensor, x: Tensor) -> Tensor:
        # The probe for the first step size may look beyond the end.
        times = t.clamp(low, high).to(state.dtype).repeat(len(x))
        return _velocity(field, x.to(z0.dtype), times).to(state.dtype)

    ends = torch.tensor([t_start, t_end], dtype=torch.float64, device=z0.device)
    try:
        # step_t makes the last step land on t_end. By default it overshoots and interpolates: 10 to 100 times less
        # accurate on the problems of the tests, for more evaluations.
        states = odeint(slope, state, ends, rtol=rtol, atol=atol, method="dopri5", options={"step_t": ends[1:]})
    except AssertionError as error:
        rule, expected = (
            "The field could not be integrated adaptively.",
            "a finite, smooth velocity and t_start != t_end",
        )
        todo = "Look for NaN in the field, loosen rtol and atol, or use a fixed-step solver with many steps."
        raise UsageError(mismatch(rule, expected, f"torchdiffeq stopped with: {error}", todo)) from error
    end: Tensor = states[-1]
    return end.to(z0.dtype)


def observed_order(errors: Tensor | Sequence[float], steps: Sequence[int]) -> Tensor:
    """Least-squares slope of log error over log step size: about p for a solver of order p, about 0 for a wrong one.

    errors: (n,), positive; steps: the n >= 2 numbers of steps they belong to, not all equal. Returns a 0-d tensor on
    the device of `errors`, in float32 or wider, without synchronising; not finite when an error is 0, NaN or infinite.
    Raises ShapeError when the lengths differ, UsageError for steps that have no slope.
    """
    errors = errors if isinstance(errors, Tensor) else torch.tensor(errors, dtype=torch.float64)
    if errors.shape != (len(steps),):
        todo = "Pass one error per number of steps."
        got = f"errors of shape {tuple(errors.shape)}"
        raise ShapeError(mismatch("Errors and steps belong together.", f"shape ({len(steps)},)", got, todo))
    if len(set(steps)) < 2 or min(steps) < 1:
        todo = "Integrate with several numbers of steps, such as 8, 16, 32, 64."
        raise UsageError(mismatch("A slope needs two points.", "at least two different steps >= 1", f"{steps}", todo))
    sizes = [-math.log(count) for count in steps]
    mean = sum(sizes) / len(sizes)
    spread = sum((size - mean) ** 2 for size in sizes)
    logs = errors.to(torch.promote_types(errors.dtype, torch.float32)).log()
    # Python numbers as weights: a tensor of them would have to be copied to the device.
    return torch.stack([(size - mean) / spread * log for size, log in zip(sizes, logs.unbind(), strict=True)]).sum()
