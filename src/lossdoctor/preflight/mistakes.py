"""What people get wrong in a sampler, each as a reference integrator that has this mistake and no other.

Which mistake a sampler has is found by comparing where it ends with where each of these ends, at several numbers of
steps. Sound ones are among them, so that "none" is an answer that has to fit, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lossdoctor.flow.solvers import SOLVERS
from lossdoctor.preflight.standin import Problem, Slope
from lossdoctor.rules.vel407_off_scale_latent import SCALES

Grid = list[tuple[float, float]]
"""Of every step: the time at which it begins, and its length."""


@dataclass(frozen=True)
class Mistake:
    """One way to be wrong, or to be right.

    code, cause: rule and root that name it, both empty for a sound method. sentence: message key. rank: among equally
    good explanations the smaller one counts. end: where this integrator ends, from the problem and a number of steps.
    """

    code: str
    cause: str
    sentence: str
    end: Callable[[Problem, int], Tensor]
    solver: str = "euler"
    rank: int = 0
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.code


def even(steps: int) -> Grid:
    """t_k = k / N."""
    return [(k / steps, 1 / steps) for k in range(steps)]


def walk(problem: Problem, slope: Slope, grid: Grid, solver: str) -> Tensor:
    """The state after the steps of a grid, from z0."""
    x = problem.z0
    ones = (1,) * x.ndim

    def at(state: Tensor, t: float) -> Tensor:
        return slope(state, torch.full(ones, t, dtype=state.dtype, device=state.device))

    for t, h in grid:
        x = SOLVERS[solver].step(at, x, t, t + h)
    return x


def sound() -> Iterator[Mistake]:
    """Right methods: every solver on N, N - 1 and N + 1 even steps, since N may count points or steps."""
    for name in SOLVERS:
        for more in (0, -1, 1):

            def end(p: Problem, n: int, name: str = name, more: int = more) -> Tensor:
                return walk(p, p.slope, even(max(n + more, 1)), name)

            yield Mistake("", "", "", end, name, rank=0 if not more else 1)


def mistakes(slopes: Sequence[float], latent_scale: float | None) -> Iterator[Mistake]:
    """Every known mistake. slopes: factors of the velocity worth a try, as seen in the sampler's own calls."""
    yield from _field_mistakes(slopes, latent_scale)
    yield from _grid_mistakes()
    yield from _state_mistakes()


# Another field


def _field_mistakes(slopes: Sequence[float], latent_scale: float | None) -> Iterator[Mistake]:
    for name in SOLVERS:
        yield Mistake("SMP506", "inference-sign", "preflight.sampler.sign", _with(_negative, name), name)
        yield Mistake("SMP506", "inference-time", "preflight.sampler.reversed", _with(_reversed, name), name)
        yield Mistake("SMP506", "inference-time", "preflight.sampler.backwards", _with(_backwards, name), name, rank=1)
        for missing, variant in (
            ("alpha'(t), beta'(t)", (-1.0, 1.0)),
            ("alpha'(t)", (-1.0, None)),
            ("beta'(t)", (None, 1.0)),
        ):
            yield Mistake(
                "SMP505",
                "path-derivative-missing",
                "preflight.sampler.derivative",
                _with(_without(*variant), name),
                name,
                rank=1,
                params={"missing": missing},
            )
    yield from _factors(slopes, latent_scale)


def _factors(slopes: Sequence[float], latent_scale: float | None) -> Iterator[Mistake]:
    known = {round(value, 12): model for model, scale in SCALES.items() for value in (scale, 1 / scale)}
    if latent_scale:
        known |= {round(latent_scale, 12): "latent_scale", round(1 / latent_scale, 12): "latent_scale"}
    # In radians or in steps of training instead of [0, 1].
    angle = {round(2 / torch.pi, 12), round(torch.pi / 2, 12)}
    for factor in (*known, *angle, *slopes):
        named = known.get(factor)
        for name in SOLVERS:
            if factor in angle:
                yield Mistake(
                    "SMP505", "path-derivative-missing", "preflight.sampler.angle", _with(_times(factor), name), name,
                    params={"factor": factor},
                )  # fmt: skip
                continue
            sentence = "preflight.sampler.factor.known" if named else "preflight.sampler.factor"
            params: dict[str, Any] = {"factor": factor, **({"model": named} if named else {})}
            rank = 0 if named else 2
            yield Mistake(
                "SMP506", "inference-scale", sentence, _with(_times(factor), name), name, rank=rank, params=params
            )


def _with(change: Callable[[Problem], Slope], solver: str) -> Callable[[Problem, int], Tensor]:
    return lambda problem, steps: walk(problem, change(problem), even(steps), solver)


def _negative(problem: Problem) -> Slope:
    return lambda x, t: -problem.slope(x, t)


def _reversed(problem: Problem) -> Slope:
    return lambda x, t: problem.slope(x, 1 - t)


def _backwards(problem: Problem) -> Slope:
    return lambda x, t: -problem.slope(x, 1 - t)


def _times(factor: float) -> Callable[[Problem], Slope]:
    return lambda problem: lambda x, t: factor * problem.slope(x, t)


def _without(d_alpha: float | None, d_beta: float | None) -> Callable[[Problem], Slope]:
    """A velocity put together from the two ends with these numbers in place of alpha' and beta'."""

    def change(problem: Problem) -> Slope:
        def slope(x: Tensor, t: Tensor) -> Tensor:
            source, data = problem.ends(problem.slope, x, t)
            at = problem.path.coefficients(t)
            left = at.d_alpha if d_alpha is None else torch.full_like(t, d_alpha)
            right = at.d_beta if d_beta is None else torch.full_like(t, d_beta)
            return left * source + right * data

        return slope

    return change


# Another grid


def _grid_mistakes() -> Iterator[Mistake]:
    for name in SOLVERS:
        for sentence, grid in _GRIDS.items():

            def end(p: Problem, n: int, name: str = name, grid: Callable[[int], Grid] = grid) -> Tensor:
                return walk(p, p.slope, grid(n), name)

            yield Mistake("SMP502", "sampler-grid", f"preflight.sampler.grid.{sentence}", end, name)


def _spaced(
    count: Callable[[int], int], between: Callable[[int], int], length: Callable[[int], int], first: int = 0
) -> Callable[[int], Grid]:
    """`count` steps of 1 / length, at times (k + first) / between."""
    return lambda n: [((k + first) / max(between(n), 1), 1 / max(length(n), 1)) for k in range(count(n))]


def _n(more: int) -> Callable[[int], int]:
    return lambda n: n + more


_GRIDS: dict[str, Callable[[int], Grid]] = {
    "over": _spaced(_n(0), _n(-1), _n(-1)),
    "over_lengths": _spaced(_n(0), _n(0), _n(-1)),
    "points": _spaced(_n(0), _n(-1), _n(0)),
    "short_points": _spaced(_n(-1), _n(-1), _n(0)),
    "short": _spaced(_n(-1), _n(0), _n(0)),
    "long": _spaced(_n(1), _n(0), _n(0)),
    "under": _spaced(_n(0), _n(1), _n(1)),
    "late": _spaced(_n(0), _n(0), _n(0), first=1),
}


# Another state or time than that of the step


def _state_mistakes() -> Iterator[Mistake]:
    for sentence, end in {
        "initial": _stale_initial,
        "previous": _stale_previous,
        "late": _one_time(1.0),
        "early": _one_time(0.0),
        "half": _one_time(0.5),
        "predictor": _stale_predictor,
        "corrector": _stale_corrector,
        "previous_time": _previous_time,
    }.items():
        cause = "sampler-state" if sentence in ("initial", "previous", "predictor") else "inference-time"
        code = "SMP502" if sentence in ("initial", "previous", "predictor", "corrector", "previous_time") else "SMP506"
        cause = "sampler-state" if code == "SMP502" else cause
        yield Mistake(code, cause, f"preflight.sampler.state.{sentence}", end)


def _at(problem: Problem, x: Tensor, t: float) -> Tensor:
    return problem.slope(x, torch.full((1,) * x.ndim, t, dtype=x.dtype, device=x.device))


def _stale_initial(problem: Problem, steps: int) -> Tensor:
    x = problem.z0
    for t, h in even(steps):
        x = x + h * _at(problem, problem.z0, t)
    return x


def _stale_previous(problem: Problem, steps: int) -> Tensor:
    x = before = problem.z0
    for t, h in even(steps):
        x, before = x + h * _at(problem, before, t), x
    return x


def _previous_time(problem: Problem, steps: int) -> Tensor:
    x, before = problem.z0, 0.0
    for t, h in even(steps):
        x, before = x + h * _at(problem, x, before), t
    return x


def _one_time(time: float) -> Callable[[Problem, int], Tensor]:
    def end(problem: Problem, steps: int) -> Tensor:
        x = problem.z0
        for _, h in even(steps):
            x = x + h * _at(problem, x, time)
        return x

    return end


def _stale_predictor(problem: Problem, steps: int) -> Tensor:
    """Heun's second slope at the state of the first."""
    x = problem.z0
    for t, h in even(steps):
        x = x + h / 2 * (_at(problem, x, t) + _at(problem, x, t + h))
    return x


def _stale_corrector(problem: Problem, steps: int) -> Tensor:
    """Heun's second slope at the time of the first."""
    x = problem.z0
    for t, h in even(steps):
        first = _at(problem, x, t)
        x = x + h / 2 * (first + _at(problem, x + h * first, t))
    return x
