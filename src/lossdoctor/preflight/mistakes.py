"""What people get wrong in a sampler, each as a reference integrator that has this mistake and no other.

Which mistake a sampler has is found by comparing where it ends with where each of these ends, at several numbers of
steps. Sound ones are among them, so that "none" is an answer that has to fit, too. They walk even steps, or those of a
`Ruler` that was read off the sampler's own calls (`grids`).
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


@dataclass(frozen=True)
class Ruler:
    """A grid for every number of steps. plain_end: the last step is one of Euler's, whatever the solver: where a second
    evaluation would have to divide by a time of 0, samplers leave it out. calls: of every step, None for any number."""

    grid: Callable[[int], Grid]
    plain_end: bool = False
    calls: int | None = None

    @property
    def solvers(self) -> list[str]:
        """Those that have as many evaluations, or one, as some that are paid for may go unused."""
        return [name for name, one in SOLVERS.items() if self.calls is None or one.evaluations in (1, self.calls)]


EVEN = Ruler(even)


def walk(problem: Problem, slope: Slope, grid: Grid, solver: str, *, plain_end: bool = False) -> Tensor:
    """The state after the steps of a grid, from z0."""
    x = problem.z0
    ones = (1,) * x.ndim

    def at(state: Tensor, t: float) -> Tensor:
        return slope(state, torch.full(ones, t, dtype=state.dtype, device=state.device))

    for k, (t, h) in enumerate(grid, 1):
        plain = plain_end and k == len(grid)
        x = SOLVERS["euler" if plain else solver].step(at, x, t, t + h)
    return x


def sound(ruler: Ruler = EVEN) -> Iterator[Mistake]:
    """Right methods: every solver; on N, N - 1 and N + 1 even steps, since N may count points or steps."""
    for name in ruler.solvers:
        for more in (0, -1, 1) if ruler is EVEN else (0,):

            def end(p: Problem, n: int, name: str = name, more: int = more) -> Tensor:
                return walk(p, p.slope, ruler.grid(max(n + more, 1)), name, plain_end=ruler.plain_end)

            yield Mistake("", "", "", end, name, rank=0 if not more else 1)


def mistakes(slopes: Sequence[float], latent_scale: float | None, ruler: Ruler = EVEN) -> Iterator[Mistake]:
    """Every known mistake. slopes: factors of the velocity worth a try, as seen in the sampler's own calls."""
    yield from _field_mistakes(slopes, latent_scale, ruler)
    yield from _grid_mistakes() if ruler is EVEN else _late(ruler)
    yield from _state_mistakes(ruler)


# Another field


def _field_mistakes(slopes: Sequence[float], latent_scale: float | None, ruler: Ruler) -> Iterator[Mistake]:
    for name in ruler.solvers:
        yield Mistake("SMP506", "inference-sign", "preflight.sampler.sign", _with(_negative, name, ruler), name)
        yield Mistake("SMP506", "inference-time", "preflight.sampler.reversed", _with(_reversed, name, ruler), name)
        yield Mistake(
            "SMP506", "inference-time", "preflight.sampler.backwards", _with(_backwards, name, ruler), name, rank=1
        )
        for missing, variant in (
            ("alpha'(t), beta'(t)", (-1.0, 1.0)),
            ("alpha'(t)", (-1.0, None)),
            ("beta'(t)", (None, 1.0)),
        ):
            yield Mistake(
                "SMP505",
                "path-derivative-missing",
                "preflight.sampler.derivative",
                _with(_without(*variant), name, ruler),
                name,
                rank=1,
                params={"missing": missing},
            )
    yield from _factors(slopes, latent_scale, ruler)


ANGLES = (round(2 / torch.pi, 12), round(torch.pi / 2, 12))
"""In radians instead of [0, 1], and back."""


def known_factors(latent_scale: float | None, slopes: Sequence[float]) -> dict[float, str | None]:
    """Constants people leave in a velocity, each with whose it is: of known autoencoders, of the user's own, ANGLES,
    and those that were seen."""
    known: dict[float, str | None] = {
        round(value, 12): model for model, scale in SCALES.items() for value in (scale, 1 / scale)
    }
    if latent_scale:
        known |= {round(latent_scale, 12): "latent_scale", round(1 / latent_scale, 12): "latent_scale"}
    return known | {one: known.get(one) for one in (*ANGLES, *slopes)}


def _factors(slopes: Sequence[float], latent_scale: float | None, ruler: Ruler) -> Iterator[Mistake]:
    for factor, named in known_factors(latent_scale, slopes).items():
        for name in ruler.solvers:
            if factor in ANGLES:
                yield Mistake(
                    "SMP505", "path-derivative-missing", "preflight.sampler.angle",
                    _with(_times(factor), name, ruler), name, params={"factor": factor},
                )  # fmt: skip
                continue
            sentence = "preflight.sampler.factor.known" if named else "preflight.sampler.factor"
            params: dict[str, Any] = {"factor": factor, **({"model": named} if named else {})}
            rank = 0 if named else 2
            yield Mistake(
                "SMP506",
                "inference-scale",
                sentence,
                _with(_times(factor), name, ruler),
                name,
                rank=rank,
                params=params,
            )


def _with(change: Callable[[Problem], Slope], solver: str, ruler: Ruler) -> Callable[[Problem, int], Tensor]:
    return lambda problem, steps: walk(problem, change(problem), ruler.grid(steps), solver, plain_end=ruler.plain_end)


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


def _late(ruler: Ruler) -> Iterator[Mistake]:
    """Asked at the end of each step. What else can be wrong with such a grid is read off its steps (`grids`)."""

    def end(p: Problem, n: int) -> Tensor:
        return walk(p, p.slope, [(t + h, h) for t, h in ruler.grid(n)], "euler")

    yield Mistake("SMP502", "sampler-grid", "preflight.sampler.grid.ahead", end)


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


def _state_mistakes(ruler: Ruler) -> Iterator[Mistake]:
    for sentence, (code, cause, steps) in _STATES.items():

        def end(p: Problem, n: int, steps: Callable[[Problem, Grid], Tensor] = steps) -> Tensor:
            grid = ruler.grid(n)
            if not ruler.plain_end:
                return steps(p, grid)
            x, (t, h) = steps(p, grid[:-1]), grid[-1]
            return x + h * _at(p, x, t)

        yield Mistake(code, cause, f"preflight.sampler.state.{sentence}", end)


def _at(problem: Problem, x: Tensor, t: float) -> Tensor:
    return problem.slope(x, torch.full((1,) * x.ndim, t, dtype=x.dtype, device=x.device))


def _stale_initial(problem: Problem, grid: Grid) -> Tensor:
    x = problem.z0
    for t, h in grid:
        x = x + h * _at(problem, problem.z0, t)
    return x


def _stale_previous(problem: Problem, grid: Grid) -> Tensor:
    x = before = problem.z0
    for t, h in grid:
        x, before = x + h * _at(problem, before, t), x
    return x


def _previous_time(problem: Problem, grid: Grid) -> Tensor:
    x, before = problem.z0, 0.0
    for t, h in grid:
        x, before = x + h * _at(problem, x, before), t
    return x


def _one_time(time: float) -> Callable[[Problem, Grid], Tensor]:
    def steps(problem: Problem, grid: Grid) -> Tensor:
        x = problem.z0
        for _, h in grid:
            x = x + h * _at(problem, x, time)
        return x

    return steps


def _stale_predictor(problem: Problem, grid: Grid) -> Tensor:
    """Heun's second slope at the state of the first."""
    x = problem.z0
    for t, h in grid:
        x = x + h / 2 * (_at(problem, x, t) + _at(problem, x, t + h))
    return x


def _stale_corrector(problem: Problem, grid: Grid) -> Tensor:
    """Heun's second slope at the time of the first."""
    x = problem.z0
    for t, h in grid:
        first = _at(problem, x, t)
        x = x + h / 2 * (first + _at(problem, x + h * first, t))
    return x


_STATES: dict[str, tuple[str, str, Callable[[Problem, Grid], Tensor]]] = {
    "initial": ("SMP502", "sampler-state", _stale_initial),
    "previous": ("SMP502", "sampler-state", _stale_previous),
    "late": ("SMP506", "inference-time", _one_time(1.0)),
    "early": ("SMP506", "inference-time", _one_time(0.0)),
    "half": ("SMP506", "inference-time", _one_time(0.5)),
    "predictor": ("SMP502", "sampler-state", _stale_predictor),
    "corrector": ("SMP502", "sampler-state", _stale_corrector),
    "previous_time": ("SMP502", "sampler-state", _previous_time),
}
